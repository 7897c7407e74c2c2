"""Merged and quantized in one pass, then served by real vLLM: the server answers what transformers
reads from the same folder, and what was learnt still comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.config import MergeConfig
from export.merge.merge import merge
from serving.chat import answers
from serving.config import ServedParityConfig, ServingConfig
from serving.parity import prove_served
from serving.supervisor.process import running_server
from tests.commands import tuneline_here
from tests.e2e.serving.conftest import reference_of
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.errors import ServerError
from tuneline.core.files import MANIFEST
from tuneline.core.reference import read_reference
from tuneline.core.tolerances import Tolerances
from tuneline.models.source import ModelSource, resolve_model

HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text()
DROPPED = "layers.0.mlp.up_proj.lora_B.weight"

# bfloat16 and float32 with the same weights: a KL of about 1e-5, and one answer may part where two
# tokens are as likely. A tensor of the adapter that is lost costs 1e-3.
SAME_WEIGHTS = Tolerances(
    min_greedy_agreement=7 / 8,
    min_token_agreement=0.8,
    max_logprob_difference=0.1,
    mean_logprob_difference=0.001,
    mean_kl=1e-4,
)


@pytest.fixture(scope="session")
def faulty_adapter(adapter: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter with one tensor lost."""
    folder = tmp_path_factory.mktemp("faulty") / "adapter"
    shutil.copytree(adapter.path, folder, ignore=shutil.ignore_patterns(MANIFEST))
    values = {**load_file(folder / "adapter_model.safetensors")}
    (name,) = (name for name in values if name.endswith(DROPPED))
    values[name] = values[name] * 0
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("scheme", "least_equal"), [("w4a16", 2), ("fp8", 7)])
def test_a_quantized_model_answers_as_its_folder_says_and_as_the_trained_one(
    scheme: str,
    least_equal: int,
    base: ModelSource,
    adapter: Artifact,
    faulty_adapter: Path,
    adapter_reference: Artifact,
    serving_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = MergeConfig.model_validate({"dtype": "bfloat16", "quantize": scheme, "group_size": 32})
    model = merge(config, base, adapter, tmp_path / "model")
    faulty = merge(config, base, faulty_adapter, tmp_path / "faulty")
    goldens = {
        made.path.name: reference_of(
            AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32),
            base,
            tmp_path / f"{made.path.name}-reference",
        )
        for made in (model, faulty)
    }
    expected = read_reference(adapter_reference)
    assert len(expected) == 8
    serving = ServingConfig(**{**serving_settings, "dtype": "bfloat16"})
    parity = ServedParityConfig(tolerances=SAME_WEIGHTS)
    log_path = tmp_path / "vllm.log"
    serves = running_server(
        serving, resolve_model(str(model.path)), name="quantized", log_path=log_path
    )
    if scheme == "w4a16" and not HAS_AVX512:
        # The server's own first request finds it, before anybody is told that it is ready.
        with pytest.raises(ServerError, match="died at its first request") as raised, serves:
            pass
        assert "does not have this kernel" in (raised.value.hint or "")
        pytest.skip("refused; the kernel that multiplies needs AVX-512")
    with serves as server:
        proofs = {
            name: prove_served(parity, golden, server.endpoint, tmp_path / f"{name}-parity")
            for name, golden in goldens.items()
        }
        given = [
            "".join(
                answers(server.endpoint, {"temperature": 0, "max_tokens": len(entry.token_ids)})(
                    entry.messages
                )
            )
            for entry in expected
        ]
    assert "compressed-tensors" in log_path.read_text()
    figures = {name: proof.manifest.metrics for name, proof in proofs.items()}
    print(scheme, figures)
    assert figures["model"]["num_prompts_with_equal_ids"] == 8
    assert figures["model"]["problems"] == []
    assert any(problem.startswith("mean_kl") for problem in figures["faulty"]["problems"])
    equal = sum(answer == entry.text for answer, entry in zip(given, expected, strict=True))
    # Four bits without calibration cost this tiny model some of what it learnt by heart.
    assert equal >= least_equal, list(zip(given, [entry.text for entry in expected], strict=True))


def test_a_quantized_model_is_proven_by_the_weights_that_it_is_said_to_have(
    base: ModelSource,
    adapter: Artifact,
    faulty_adapter: Path,
    adapter_reference: Artifact,
    serving_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Rounding passes and a lost tensor fails: one server is compared with its own adapter and with
    an adapter that differs by that tensor."""
    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    faulty_reference = reference_of(
        PeftModel.from_pretrained(network, faulty_adapter), base, tmp_path / "faulty-reference"
    )
    config = MergeConfig.model_validate({"quantize": "int8"})
    model = merge(config, base, adapter, tmp_path / "model")
    stating = ["--weights", str(model.path)]
    with running_server(
        ServingConfig(**serving_settings), resolve_model(str(model.path)), name="quantized",
        log_path=tmp_path / "vllm.log",
    ) as server:  # fmt: skip
        stated, stated_faulty, plain_faulty = (
            tuneline_here(
                "prove", "--reference", str(reference.path), "--candidate", server.endpoint.url,
                "--model", server.endpoint.model, "--json", "--out", str(tmp_path / out), *more,
            )
            for out, reference, more in (
                ("stated", adapter_reference, stating),
                ("stated-faulty", faulty_reference, stating),
                ("plain-faulty", faulty_reference, []),
            )
        )  # fmt: skip
    for out, reference in (("stated", adapter_reference), ("stated-faulty", faulty_reference)):
        proof = open_artifact(tmp_path / out, kind="parity")
        figures = json.loads((proof.path / "parity.json").read_text())
        assert figures["stated_weights"] == "int8"
        assert "has weights in int8." in (proof.path / "parity.md").read_text()
        assert {entry.role: entry.digest for entry in proof.manifest.inputs} == {
            "reference": reference.digest, "weights": model.digest,
        }  # fmt: skip
        allowed = proof.manifest.config["tolerances"]["max_logprob_difference"]
        assert allowed == pytest.approx(0.151)
    assert stated.returncode == 0, stated.stderr
    assert stated_faulty.returncode == 6, stated_faulty.stderr
    assert "--weights DIR" not in stated_faulty.stderr
    assert plain_faulty.returncode == 6 and "--weights DIR" in plain_faulty.stderr
