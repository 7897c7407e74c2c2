"""GPTQ and AWQ by the real llm-compressor, in its own environment, which is made on first use."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from export import CalibrationData, quantize_model, write_model_card
from export.config import CalibratedConfig, QuantizeConfig
from export.quantize import llm_compressor
from export.quantize import llm_compressor_environment as calibration_env
from export.quantize.llm_compressor import quantize_calibrated
from export.quantize.llm_compressor_environment import install_calibration
from export.runtimes.transformers_folder import load_model
from tests.commands import tuneline_forked, tuneline_here
from tests.integration.export import families
from tests.integration.export.credentials import check_received, plant
from tests.integration.export.merging import tensors
from tests.integration.export.quantize.test_experts import MIXTURES
from tests.integration.export.quantize.test_experts import make_base as make_mixture
from tuneline.core.artifact import Artifact, Input, verify_artifact
from tuneline.core.errors import ArtifactError, DataError, MissingError
from tuneline.models.source import resolve_model
from tuneline.models.tokenizer import load_tokenizer

DATA = Input(role="data", kind="file", digest="sha256:" + "0" * 64)
NUM_SAMPLES = 4800
CONVERSATIONS = [
    [
        {"role": "user", "content": f"the printer on floor {number} does not print"},
        {"role": "assistant", "content": f"what is the weather like on day {number % 7}"},
    ]
    for number in range(24)
]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which the environment was not made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(base: Path, method: str, scheme: str, out: Path) -> Artifact:
    values = {"method": method, "scheme": scheme, "group_size": 32, "num_calibration_samples": 24}
    config = CalibratedConfig.model_validate(values)
    return quantize_calibrated(
        config, resolve_model(str(base)), out, CalibrationData(CONVERSATIONS, DATA)
    )


def logits(folder: Path, base: Path) -> torch.Tensor:
    """Of the conversations; quantized weights are as transformers reads them."""
    network, _ = load_model(folder)
    tokenizer = load_tokenizer(base)
    with torch.inference_mode():
        return torch.cat(
            [
                network(
                    tokenizer.apply_chat_template(
                        messages, tokenize=True, return_dict=False, return_tensors="pt"
                    )
                ).logits[0]
                for messages in CONVERSATIONS
            ]
        )


@pytest.mark.parametrize(
    ("method", "scheme", "family", "dtype"),
    [
        ("gptq", "w4a16", "llama", torch.float32),
        ("gptq", "int8", "qwen2", torch.bfloat16),
        ("awq", "w4a16", "qwen3", torch.bfloat16),
        ("gptq", "w4a16", "qwen3_moe", torch.bfloat16),
        ("gptq", "w4a16", "qwen3_next", torch.bfloat16),
    ],
)
def test_it_stores_what_the_scheme_stores_and_answers_nearer(
    method: str, scheme: str, family: str, dtype: torch.dtype, calibration: Path, tmp_path: Path
) -> None:
    make_base = make_mixture if family in MIXTURES else families.make_base
    base = make_base(tmp_path / "base", family, dtype)
    made = run(base, method, scheme, tmp_path / "made")
    verify_artifact(made)
    rounded = quantize_model(
        QuantizeConfig.model_validate({"scheme": scheme, "group_size": 32}),
        resolve_model(str(base)),
        tmp_path / "rounded",
    )
    # The same files, the same tensors, the same config: a server sees no difference in kind.
    assert {file.name for file in made.path.iterdir()} == {
        file.name for file in rounded.path.iterdir()
    }
    assert (made.path / "config.json").read_bytes() == (rounded.path / "config.json").read_bytes()
    found, nearest = tensors(made.path), tensors(rounded.path)
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in nearest.items()
    }
    codes = [name for name in found if name.endswith("weight_packed") or "_proj.weight" in name]
    assert any(not torch.equal(found[name], nearest[name]) for name in codes)
    if method == "gptq":
        for name in set(found) & set(tensors(base)) - set(codes):
            assert torch.equal(found[name], tensors(base)[name]), name
    exact = logits(base, base)
    errors = {
        name: float((logits(artifact.path, base) - exact).square().mean())
        for name, artifact in (("calibrated", made), ("nearest", rounded))
    }
    print(method, scheme, family, errors)
    assert errors["calibrated"] < errors["nearest"]
    inputs = {entry.role: entry.digest for entry in made.manifest.inputs}
    assert inputs["data"] == DATA.digest
    assert made.manifest.config["method"] == method
    # Another release than that of this process computed the codes.
    assert made.manifest.metrics["quantized_with"]["compressed-tensors"] == "0.19.0"
    assert "llmcompressor 0.14." in write_model_card(made)


def test_a_mixtral_is_refused_before_the_environment_is_asked_for(
    nowhere: Path, tmp_path: Path
) -> None:
    base = make_mixture(tmp_path / "base", "mixtral")
    with pytest.raises(ArtifactError, match="stores the experts of a mixtral under names that"):
        run(base, "gptq", "int8", tmp_path / "made")


def test_a_kill_leaves_neither_artifact_nor_worker(
    calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")  # as after a training in the same process
    base = families.make_base(tmp_path / "base")
    rows = [json.dumps({"messages": messages}) + "\n" for messages in CONVERSATIONS]
    # Enough of them that the calibration is still at work when its first line is read.
    (tmp_path / "rows.jsonl").write_text("".join(rows) * (NUM_SAMPLES // len(rows)))
    log = tmp_path / "log"
    process = tuneline_forked(
        log, "--verbose", "export", "quantize", "--model", str(base),
        "--scheme", "w4a16", "--group-size", "32", "--method", "gptq",
        "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"),
        "--num-calibration-samples", str(NUM_SAMPLES),
    )  # fmt: skip
    while "Calibrating" not in log.read_text():
        assert process.is_alive(), log.read_text()[-2000:]
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 143, log.read_text()[-2000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "log", "rows.jsonl"]
    assert [line for line in command_lines() if str(tmp_path) in line] == []


def command_lines() -> Iterator[str]:
    """Of all processes."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            yield (process / "cmdline").read_text(errors="replace")


def test_without_the_environment_the_command_to_type_is_named(
    nowhere: Path, tmp_path: Path
) -> None:
    base = families.make_base(tmp_path / "base")
    with pytest.raises(MissingError, match="not installed") as caught:
        run(base, "gptq", "int8", tmp_path / "out")
    assert "tuneline export install-calibration" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_the_worker_says_when_it_fails_is_shown(
    calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = families.make_base(tmp_path / "base")
    broken = tmp_path / "worker.py"
    broken.write_text("raise ValueError('no such layer')\n")
    monkeypatch.setattr(llm_compressor, "WORKER", broken)
    with pytest.raises(ArtifactError, match="exit code 1: ValueError: no such layer"):
        run(base, "gptq", "int8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


WRITES_ITS_ENVIRONMENT = f"""#!{sys.executable}
import json, os, pathlib
pathlib.Path(__file__).with_name("received.json").write_text(json.dumps(dict(os.environ)))
raise SystemExit("ValueError: an interpreter that only writes down its environment")
"""


def test_llm_compressor_inherits_no_credential(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's interpreter is a program that writes down what it received."""
    python = calibration_env.calibration_dir() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(WRITES_ITS_ENVIRONMENT)
    python.chmod(0o755)
    (python.parents[1] / calibration_env.READY).touch()
    base = families.make_base(tmp_path / "base")
    rows = [json.dumps({"messages": messages}) + "\n" for messages in CONVERSATIONS]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    plant(monkeypatch)
    done = tuneline_here(
        "export", "form", "gptq-int8", "--model", str(base), "--data",
        str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "only writes down its environment" in done.stderr
    check_received(python.with_name("received.json"))
    assert not (tmp_path / "out").exists()


def test_an_installation_that_fails_inherits_only_the_index_credentials_and_is_not_taken_for_one(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python program that the installation starts writes down what it received."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import json, os, pathlib\n"
        "here = pathlib.Path(__file__).parent\n"
        "here.joinpath(f'{os.getpid()}.json').write_text(json.dumps(dict(os.environ)))\n"
    )
    plant(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:password@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(MissingError, match="cannot be had"):
        install_calibration()
    with pytest.raises(MissingError, match="not installed"):
        calibration_env.calibration_python()
    written = sorted((tmp_path / "site").glob("*.json"))
    assert len(written) > 1
    for path in written:
        check_received(path)
        assert "password" in json.loads(path.read_text())["PIP_INDEX_URL"]


def test_a_conversation_that_the_template_refuses(calibration: Path, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    with pytest.raises(DataError, match="refuses a conversation: no such role"):
        run(base, "gptq", "int8", tmp_path / "out")


def test_no_conversations(calibration: Path, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base")
    config = CalibratedConfig.model_validate({"method": "gptq", "scheme": "int8"})
    with pytest.raises(DataError, match="no conversation"):
        quantize_calibrated(
            config, resolve_model(str(base)), tmp_path / "out", CalibrationData([], DATA)
        )
