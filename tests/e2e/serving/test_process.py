"""vLLM's process: how it dies before it is ready."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from serving.config import ServingConfig
from serving.supervisor.plan import plan_launch
from serving.supervisor.process import running_server
from tuneline.core.errors import ArtifactError, ConfigError, ServerError, TamperedError
from tuneline.models.source import ModelSource, resolve_model


def test_a_model_that_cannot_be_read_says_why(
    base: ModelSource, tmp_path: Path, serving_settings: dict[str, Any]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base.path, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])
    log_path = tmp_path / "vllm.log"
    with pytest.raises(ArtifactError) as caught:  # noqa: SIM117
        with running_server(
            ServingConfig(**serving_settings), resolve_model(str(broken)), name="t",
            log_path=log_path,
        ):  # fmt: skip
            pytest.fail("it got ready")
    first, *lines = str(caught.value).splitlines()
    assert re.fullmatch(
        r"vLLM died while loading, after \d+ s \(exit code 1\): SafetensorError: .*", first
    )
    shown = [line for line in lines if line.startswith("  | ")]
    assert len(shown) == 15
    assert "SafetensorError" in shown[-1], "they lead to the error, not past it"
    assert f"  whole log: {log_path}" in lines
    assert any(f"{broken}: transformers cannot load it: SafetensorError" in line for line in lines)
    assert caught.value.exit_code == 3
    assert "SafetensorError" in log_path.read_text()


def test_a_model_that_fails_its_check_is_not_loaded(
    base: ModelSource, tmp_path: Path, serving_settings: dict[str, Any]
) -> None:
    def check() -> None:
        raise TamperedError("model: differs from its manifest")

    log_path = tmp_path / "vllm.log"
    with pytest.raises(TamperedError, match="differs from its manifest"):  # noqa: SIM117
        with running_server(
            ServingConfig(**serving_settings), base, name="t", log_path=log_path, check=check
        ):
            pytest.fail("it got ready")
    assert log_path.exists(), "vLLM was started"
    assert "non-default args" not in log_path.read_text(), "vLLM has read its arguments"


def test_a_flag_that_vllm_does_not_know_says_so(
    base: ModelSource, tmp_path: Path, serving_settings: dict[str, Any]
) -> None:
    config = ServingConfig(**serving_settings, extra_args={"swap_space": 4})
    with pytest.raises(ConfigError, match="vLLM has no flag --swap-space") as caught:  # noqa: SIM117
        with running_server(config, base, name="t", log_path=tmp_path / "vllm.log"):
            pytest.fail("it got ready")
    assert caught.value.problems[0].startswith("serving.extra_args.swap_space: ")


def test_a_model_that_loads_too_long_is_ended(
    base: ModelSource, tmp_path: Path, serving_settings: dict[str, Any]
) -> None:
    config = ServingConfig(**{**serving_settings, "ready_timeout_s": 0.5})
    started_s = time.monotonic()
    with pytest.raises(ServerError, match=r"not ready after 0\.5 s") as caught:  # noqa: SIM117
        with running_server(config, base, name="t", log_path=tmp_path / "vllm.log"):
            pytest.fail("it got ready")
    assert time.monotonic() - started_s < 10
    assert "serving.ready_timeout_s" in str(caught.value)


def test_a_cache_that_lies_on_a_disk_that_fills_costs_no_start(
    base: ModelSource,
    tmp_path: Path,
    serving_settings: dict[str, Any],
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = small_disk("80m")
    monkeypatch.setenv("HOME", str(disk))
    config = ServingConfig(**serving_settings)
    cache = plan_launch(config, base, None, "t", tmp_path / "x.log", "127.0.0.1", 1).cache
    assert cache.is_kept and cache.folder.is_relative_to(disk)
    kernel = cache.files / "torchinductor" / "kernel.so"
    kernel.parent.mkdir()
    kernel.write_bytes(b"\x7fELF one")
    cache.record()
    cache.close()
    kernel.write_bytes(b"\x7fELF two")

    def fill() -> None:
        with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass

    caplog.set_level(logging.WARNING, "tuneline")
    with running_server(
        config, base, name="t", log_path=tmp_path / "vllm.log", check=fill
    ) as server:
        assert os.statvfs(disk).f_bavail == 0
        assert "1 files differ from record.json (torchinductor/kernel.so)" in caplog.text
        assert not kernel.exists()
        with openai.OpenAI(base_url=server.endpoint.url, api_key="none") as client:
            answer = client.completions.create(model="t", prompt="Category", max_tokens=4)
        assert answer.choices[0].text


def test_a_port_that_is_taken_is_named(
    base: ModelSource, tmp_path: Path, serving_settings: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        config = ServingConfig(**serving_settings)
        with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1 is taken") as caught:  # noqa: SIM117
            with running_server(config, base, name="t", log_path=tmp_path / "vllm.log", port=port):
                pytest.fail("it started")
    assert f"--set serving.port={port + 1}" in str(caught.value)
    assert not (tmp_path / "vllm.log").exists()
