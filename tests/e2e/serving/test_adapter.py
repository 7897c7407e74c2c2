"""A base with its adapter behind real vLLM, until it is killed while it is used."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest

from serving.chat import answers
from serving.compare import ask_each
from serving.config import ServedParityConfig, ServingConfig
from serving.parity import prove_served
from serving.supervisor.group import group_members
from serving.supervisor.process import RunningServer, running_server
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.reference import read_reference
from tuneline.models.source import ModelSource


def test_base_and_adapter_side_by_side_and_then_a_kill_is_the_reason(
    base: ModelSource,
    adapter: Artifact,
    adapter_reference: Artifact,
    reference: Artifact,
    serving_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = ServingConfig(**serving_settings, mode="adapter")
    out = tmp_path / "killed"
    with pytest.raises(ServerError, match="vLLM died while it was in use") as caught:  # noqa: SIM117
        with running_server(
            config, base, name="tickets", adapter=adapter, log_path=tmp_path / "vllm.log"
        ) as server:
            assert_both_are_served(server, adapter_reference, reference, tmp_path)
            os.kill(server.pid, signal.SIGKILL)
            prove_served(ServedParityConfig(), reference, server.endpoint, out, dtype="float32")
    assert "SIGKILL" in str(caught.value)
    assert isinstance(caught.value.__cause__, ServerError), "what the client saw is kept"
    assert group_members(server.pid) == []
    assert not out.exists()


def assert_both_are_served(
    server: RunningServer, adapter_reference: Artifact, reference: Artifact, out: Path
) -> None:
    assert server.pid in group_members(server.pid)
    assert len(group_members(server.pid)) >= 2  # the HTTP server and its engine
    with openai.OpenAI(base_url=server.endpoint.url, api_key="none") as client:
        served = [model.id for model in client.models.list()]
    assert served == ["tickets-base", *server.served_names]
    for name, golden in [
        *((name, adapter_reference) for name in server.served_names),
        ("tickets-base", reference),
    ]:
        endpoint = Endpoint(server.endpoint.url, name)
        parity = prove_served(ServedParityConfig(), golden, endpoint, out / name)
        assert parity.manifest.metrics["problems"] == []
        assert parity.manifest.metrics["num_equal_answers"] == 8
    assert_they_answer_side_by_side(server, adapter_reference, reference)
    with urlopen(server.metrics_url) as page:  # noqa: S310 (http, our own server)
        assert 'kind="adapter",name="tickets"' in page.read().decode()


def assert_they_answer_side_by_side(
    server: RunningServer, adapter_reference: Artifact, reference: Artifact
) -> None:
    """The first prompt whose answers differ gives both answers at once, streamed."""
    tuned, base = read_reference(adapter_reference), read_reference(reference)
    tuned_entry, base_entry = next(
        (mine, other) for mine, other in zip(tuned, base, strict=True) if mine.text != other.text
    )
    assert tuned_entry.messages == base_entry.messages
    length = {"temperature": 0, "max_tokens": min(len(tuned_entry.token_ids), 8)}
    names = {"tickets-base": base_entry, server.served_names[0]: tuned_entry}
    found = ask_each(
        {name: answers(Endpoint(server.endpoint.url, name), length) for name in names},
        {name: list(entry.messages) for name, entry in names.items()},
    )
    assert list(found) == list(names)
    for name, entry in names.items():
        assert found[name] and entry.text.startswith(found[name])
