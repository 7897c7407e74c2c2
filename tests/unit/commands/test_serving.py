"""Options of `tuneline serve` and `tuneline chat` with a model folder; no server starts."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import serving
from serving import answers_chats
from serving.config import ServingConfig
from serving.supervisor.plan import require_pooling, require_routes
from tests.commands import tuneline_here
from tuneline.commands.serving import _chat_server, _to_serve, chat
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.source import resolve_model

BASE = Path(__file__).resolve().parents[3] / "examples" / "tiny-base"


def _without_template(folder: Path) -> Path:
    shutil.copytree(BASE, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_model_folder_takes_the_section_serving() -> None:
    overrides = ["serving.max_model_len=512", "serving.extra_args.swap_space=1"]
    config, what, name = _to_serve(BASE, overrides, Path("runs"), None, 18000)
    model, adapter = what.model, what.adapter
    assert (config.max_model_len, config.port) == (512, 18000)
    assert config.extra_args == {"swap_space": 1}
    assert (model.path, adapter, name) == (BASE, None, "tiny-base")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.r=4", "a model folder has the section serving only"),
        ("max_model_len=4", "a model folder has the section serving only"),
        ("serving.max_model_len=none at all", "max_model_len: input should be a valid integer"),
        ("serving.max_len=4", "did you mean max_model_len?"),
        ("serving.max_model_len", "expected key=value"),
        ("serving=4", "a model folder has the section serving only"),
    ],
)
def test_another_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _to_serve(BASE, [override], Path("runs"), None, None)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_model_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(BASE, folder)
    tib = 1 << 40
    entry = {"dtype": "F32", "shape": [1 << 19, 1 << 19], "data_offsets": [0, tib]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as weights:
        weights.write(len(header).to_bytes(8, "little") + header)
        weights.truncate(8 + len(header) + tib)  # a hole: nothing of it is on the disk
    done = tuneline_here(
        "serve", str(folder), "--set", "serving.dtype=float32", "--runs-dir", str(tmp_path)
    )
    assert done.returncode == 2, done.stderr
    assert "with 1024.00 GiB of weights the server takes 1026.00 GiB" in done.stderr
    assert "Choose a smaller model, or quantize it: export.merge.quantize." in done.stderr
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "BertForMaskedLM"])
def test_a_model_that_writes_no_text_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    done = tuneline_here("serve", str(folder), "--runs-dir", str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert f"architectures is {name}; expected a model that writes text" in done.stderr
    assert "Try: --set 'serving.routes=[" in done.stderr
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.parametrize(
    ("name", "routes", "refused"),
    [
        ("LlamaForCausalLM", ["embeddings", "score"], ""),
        ("LlamaForCausalLM", ["embeddings", "classify"], "classify; it has embeddings, pooling"),
        ("LlamaForSequenceClassification", ["classify", "pooling", "tokenize"], ""),
        ("LlamaForSequenceClassification", ["embeddings"], "embeddings; it has classify, pooling"),
        ("BertModel", ["embeddings"], ""),
        ("BertForQuestionAnswering", ["pooling"], "pooling; it has none of them"),
    ],
)
def test_a_model_without_what_a_route_gives_is_refused(
    tmp_path: Path, name: str, routes: list[str], refused: str
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": [name], "model_type": "llama"})
    )
    config = ServingConfig.model_validate({"routes": routes})
    if not refused:
        require_routes(config, tmp_path)
        return
    with pytest.raises(ArtifactError, match=re.escape(f"does not have serving.routes: {refused}")):
        require_routes(config, tmp_path)


def test_a_unit_of_systemd_runs_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "a model's 50 %"
    shutil.copytree(BASE, folder)
    sets = ["--set", "serving.shutdown_timeout=60", "--set", "serving.extra_args.seed=$HOME"]
    done = tuneline_here(
        "serve", str(folder), "--systemd", "--port", "8000", "--runs-dir", str(tmp_path), *sets
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    words = lines["ExecStart"]
    assert words.split('" "')[1:4] == ["serve", str(folder).replace("%", "%%"), "--port"]
    assert words.endswith('"serving.extra_args.seed=$$HOME"')
    assert lines["TimeoutStopSec"] == "90"
    assert (lines["KillMode"], lines["Restart"]) == ("mixed", "on-failure")
    unit = tmp_path / "tuneline.service"
    unit.write_text(done.stdout)
    if shutil.which("systemd-analyze") is not None:
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert "tuneline.service" not in verified.stderr
    refused = tuneline_here("serve", str(folder), "--systemd", "--print")
    assert (refused.returncode, "--print: has no meaning" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("template", "options", "expected"),
    [
        (None, {}, False),
        (None, {"extra_args": {"chat-template": "t.jinja"}}, True),
        ("{{ messages }}", {}, True),
        ([{"name": "tool_use", "template": "x"}], {}, False),
        ([{"name": "default", "template": "x"}], {}, True),
    ],
)
def test_a_folder_answers_chats_if_it_has_a_template(
    tmp_path: Path, template: Any, options: dict[str, Any], expected: bool
) -> None:
    folder = _without_template(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "chat_template": template}))
    config = ServingConfig.model_validate(options)
    assert answers_chats(config, resolve_model(str(folder)), None) is expected
    # An adapter's own template serves too.
    assert answers_chats(config, resolve_model(str(folder)), BASE)


def test_a_chat_with_a_folder_without_a_template_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ConfigError, match="has no chat template, so it cannot chat"):
        chat(_without_template(tmp_path / "model"), message="Hello", runs_dir=tmp_path)


def test_a_chat_leaves_the_adapters_of_the_live_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ServingConfig] = []

    @contextlib.contextmanager
    def server(config: ServingConfig, *_: Any, **__: Any) -> Iterator[Any]:
        given.append(config)
        yield SimpleNamespace(endpoint="the endpoint")

    monkeypatch.setattr(serving, "running_server", server)
    overrides = [f"serving.adapters.root={tmp_path}", "serving.keys_file=keys.toml"]
    with _chat_server(BASE, overrides, tmp_path) as (_, name):
        assert name == "tiny-base"
    assert [config.adapters for config in given] == [None]
    assert _to_serve(BASE, overrides, tmp_path, None, None)[0].adapters is not None


def test_the_list_of_keys_shows_a_key_that_may_use_no_model(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    digest = "0" * 63
    file.write_text(
        f'[none]\nsha256 = "{digest}1"\nmodels = []\n[zero]\nsha256 = "{digest}2"\npriority = 0\n'
        f'[all]\nsha256 = "{digest}3"\n'
    )
    done = tuneline_here("keys", "list", "--file", str(file))
    assert done.stdout.splitlines() == ["none  models=[]", "zero  -", "all  -"]


@pytest.mark.parametrize(
    ("pooling", "kinds", "extra_args", "is_refused"),
    [
        ("max", ("Pooling",), {}, True),
        ("weightedmean", ("Pooling", "Normalize"), {}, True),
        ("mean_sqrt_len_tokens", ("Pooling",), {}, True),
        ("mean_sqrt_len_tokens", ("Pooling", "Normalize"), {}, False),
        ("mean", ("Pooling",), {}, False),
        ("max", ("Pooling",), {"pooler_config": {"pooling_type": "MEAN"}}, False),
        ("max", ("SpladePooling",), {}, False),
    ],
)
def test_a_pooling_that_vllm_does_not_have_is_refused(
    tmp_path: Path,
    pooling: str,
    kinds: tuple[str, ...],
    extra_args: dict[str, Any],
    is_refused: bool,
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    modules = [{"type": f"x.{kind}", "path": kind} for kind in ("Transformer", *kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    config = ServingConfig(routes=["embeddings"], extra_args=extra_args)
    refused = pytest.raises(
        ArtifactError, match=f"the pooling is {pooling.removesuffix('_tokens')}"
    )
    with refused if is_refused else contextlib.nullcontext():
        require_pooling(config, tmp_path)


def test_a_length_that_the_model_does_not_take_is_refused_before_the_start(tmp_path: Path) -> None:
    done = tuneline_here(
        "serve", str(BASE), "--set", "serving.max_model_len=4096", "--runs-dir", str(tmp_path)
    )
    assert done.returncode == 2, done.stderr
    assert "serving.max_model_len is 4,096; the model tiny-base takes 1,024 tokens" in done.stderr
    assert not list(tmp_path.rglob("*.log"))
    _to_serve(BASE, ["serving.max_model_len=4096"], tmp_path, None, None, starts=False)
