"""`prove_model`: a right merge passes, and models broken on purpose are each caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from export.config import MergeConfig, ParityConfig
from export.merge.merge import merge
from export.parity import prove_model
from tests.integration.export import families
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.parity import Parity
from tuneline.core.reference import read_reference
from tuneline.core.tolerances import Tolerances
from tuneline.models.source import resolve_model

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@dataclass
class Line:
    base: Path
    adapter: Path
    reference: Artifact
    merged: Path


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    line = make_line(tmp_path_factory.mktemp("line"), "llama")
    reasons = [continuation.finish_reason for continuation in read_reference(line.reference)]
    assert set(reasons) == {"stop", "length"}
    return line


def make_line(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Line:
    """Base, adapter, reference and merge; the stop token is one that the model does produce."""
    base = families.make_base(folder / "base", family, dtype)
    adapter = families.make_adapter(folder / "adapter", base)
    free = families.make_reference(folder / "free", base, adapter, stop_ids=())
    answers = [continuation.token_ids for continuation in read_reference(free)]
    first_seen = [(ids.index(token), token) for ids in answers for token in ids[:8]]
    position, stop = max(first_seen)
    stop = stop if position >= 3 else 2
    config = {"eos_token_id": stop, "pad_token_id": 0}
    (adapter / "generation_config.json").write_text(json.dumps(config))
    reference = families.make_reference(folder / "reference", base, adapter, stop_ids=(stop,))
    merge(MergeConfig(), resolve_model(str(base)), adapter, folder / "merged")
    return Line(base, adapter, reference, folder / "merged")


def prove(
    line: Line, model: Path, out: Path, tolerances: Tolerances | None = None
) -> tuple[Artifact, Parity]:
    config = ParityConfig(tolerances=tolerances)
    artifact = prove_model(config, line.reference, resolve_model(str(model)), out)
    parity = Parity.model_validate_json((artifact.path / "parity.json").read_text())
    return artifact, parity


def largest(parity: Parity) -> float:
    assert parity.max_logprob_difference is not None
    return parity.max_logprob_difference


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_merge_is_the_trained_model(family: str, tmp_path: Path) -> None:
    line = make_line(tmp_path, family)
    artifact, parity = prove(line, line.merged, tmp_path / "parity")
    assert parity.verdict == "PASS", parity.problems
    assert parity.num_prompts == len(families.PROMPTS) > 3
    assert parity.num_agreeing_tokens == parity.num_tokens > 20
    assert parity.greedy_agreement == 1.0
    assert largest(parity) < 1e-4
    assert artifact.kind == "parity"
    assert artifact.manifest.metrics["verdict"] == "PASS"
    assert [entry.role for entry in artifact.manifest.inputs] == ["reference", "model"]


def test_a_bfloat16_merge_differs_by_its_rounding_alone(tmp_path: Path) -> None:
    line = make_line(tmp_path, "llama", torch.bfloat16)
    tolerances = Tolerances(
        min_greedy_agreement=0, max_logprob_difference=1, mean_logprob_difference=1
    )
    _, parity = prove(line, line.merged, tmp_path / "parity", tolerances)
    assert 1e-5 < largest(parity) < 0.2


def copy_of(line: Line, out: Path) -> Path:
    shutil.copytree(line.merged, out)
    (out / "manifest.json").unlink()  # altered below, it is a plain folder and no artifact of ours
    return out


def edit_weights(model: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    values = {name: value.clone() for name, value in load_file(model / "model.safetensors").items()}
    edit(values)
    save_file(values, model / "model.safetensors", metadata={"format": "pt"})


def test_an_adapter_next_to_the_model_is_refused(line: Line, tmp_path: Path) -> None:
    """transformers would add it: the proof would pass on the base, which a server answers with."""
    model = Path(shutil.copytree(line.base, tmp_path / "model"))
    for file in line.adapter.glob("adapter_*"):
        shutil.copy(file, model)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json next to a model") as caught:
        prove(line, model, tmp_path / "parity")
    assert "tuneline export merge --base DIR --adapter DIR" in str(caught.value.hint)


def test_weights_without_tolerances_are_refused_first(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    group = {"weights": {"num_bits": 4, "type": "float"}, "targets": ["Linear"]}
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(ArtifactError, match="the weights are fp4, which has no tolerances"):
        prove(line, model, tmp_path / "parity")


def test_a_wrong_scale_is_caught(line: Line, tmp_path: Path) -> None:
    """alpha/r taken as alpha/√r: what an exporter does that overlooks use_rslora, the other way."""
    adapter = Path(shutil.copytree(line.adapter, tmp_path / "adapter"))
    options = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**options, "use_rslora": True}))
    merge(MergeConfig(), resolve_model(str(line.base)), adapter, tmp_path / "model")
    _, parity = prove(line, tmp_path / "model", tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_prompts_with_equal_ids == parity.num_prompts
    assert parity.first_divergences


def test_one_delta_that_is_dropped_is_caught(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    original = load_file(line.base / "model.safetensors")[Q_PROJ]
    edit_weights(model, lambda values: values.update({Q_PROJ: original}))
    _, parity = prove(line, model, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert any("max_logprob_difference" in problem for problem in parity.problems)


def test_a_delta_that_is_added_twice_is_caught(line: Line, tmp_path: Path) -> None:
    """The adapter is merged into a model that has it already."""
    model = copy_of(line, tmp_path / "model")
    base, merged = (load_file(path / "model.safetensors") for path in (line.base, line.merged))
    changed = [name for name in merged if not torch.equal(merged[name], base[name])]
    assert changed
    edit_weights(model, lambda values: values.update({n: 2 * merged[n] - base[n] for n in changed}))
    _, parity = prove(line, model, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert any("max_logprob_difference" in problem for problem in parity.problems)


def test_the_base_itself_is_caught(line: Line, tmp_path: Path) -> None:
    _, parity = prove(line, line.base, tmp_path / "parity")
    assert parity.verdict == "FAIL"


def test_another_chat_template_is_caught(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    assert "{{ message['role'] }}\n" in template
    (model / "chat_template.jinja").write_text(template.replace("}}\n{{", "}} {{"))
    _, parity = prove(line, model, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_prompts_with_equal_ids == 0
    assert "the chat template or the tokenizer differs" in parity.problems[0]


def test_the_tools_of_a_prompt_are_shown_to_the_form(line: Line, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "print", "parameters": {"type": "object"}}}
    template = "{% if tools %}{{ tools[0].function.name }}{% endif %}" + families.TEMPLATE
    adapter, model = (
        Path(shutil.copytree(folder, tmp_path / name))
        for folder, name in ((line.adapter, "adapter"), (copy_of(line, tmp_path / "m"), "model"))
    )
    for folder in (adapter, model):
        (folder / "chat_template.jinja").write_text(template)
    shown = families.make_reference(tmp_path / "r", line.base, adapter, tools=(tool,))
    _, parity = prove(replace(line, reference=shown), model, tmp_path / "parity")
    assert parity.num_prompts_with_equal_ids == parity.num_prompts > 3
    assert parity.verdict == "PASS", parity.problems
    plain = families.make_reference(tmp_path / "s", line.base, line.adapter)
    ids = [[one.prompt_token_ids for one in read_reference(found)] for found in (shown, plain)]
    assert all(more != less for more, less in zip(*ids, strict=True))


def test_another_tokenizer_is_caught(line: Line, tmp_path: Path) -> None:
    """Two entries of the vocabulary change places: the same size, nearly the same file."""
    model = copy_of(line, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = "\u0120printer", "\u0120floor"  # U+0120 stands for a space in a byte-level BPE
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    _, parity = prove(line, model, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_prompts_with_equal_ids < parity.num_prompts


def test_another_way_to_decode_is_caught(line: Line, tmp_path: Path) -> None:
    """The same tokens, and other words: prompts do not show it."""
    broken = copy_of(line, tmp_path / "broken")
    path = broken / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**tokenizer, "decoder": None}), "utf-8")
    _, parity = prove(line, broken, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert parity.num_equal_answers == parity.num_prompts
    assert parity.num_other_texts > 0
    assert any("decodes differently" in problem for problem in parity.problems)


def test_the_format_of_most_weights_is_the_models(line: Line, tmp_path: Path) -> None:
    """One norm in bfloat16 makes no bfloat16 model, whose differences may be larger."""
    broken = copy_of(line, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = "model.norm.weight"
    weights[name] = (weights[name] * 1.003).to(torch.bfloat16)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    artifact, parity = prove(line, broken, tmp_path / "parity")
    assert artifact.manifest.config["tolerances"]["mean_logprob_difference"] == 0.0001
    assert parity.verdict == "FAIL"


def test_a_missing_stop_token_is_caught(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    (model / "generation_config.json").write_text('{"pad_token_id": 0}')
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    _, parity = prove(line, model, tmp_path / "parity")
    assert parity.verdict == "FAIL"
    assert largest(parity) < 1e-4  # the weights are right
    stopped = [c for c in read_reference(line.reference) if c.finish_reason == "stop"]
    assert len(parity.first_divergences) == len(stopped) > 0
    assert parity.first_divergences[0].position == len(stopped[0].token_ids)


def test_a_stop_token_too_many_is_caught(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    first = read_reference(line.reference)[0].token_ids
    stops = [first[-1], first[1]]
    assert len(set(stops)) == 2
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    _, parity = prove(line, model, tmp_path / "parity")
    assert parity.verdict == "FAIL"


def test_a_tensor_that_is_not_there_is_an_error(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    edit_weights(model, lambda values: values.__delitem__(Q_PROJ))
    with pytest.raises(ArtifactError, match=f"missing keys: {Q_PROJ}"):
        prove(line, model, tmp_path / "parity")
    assert not (tmp_path / "parity").exists()


@pytest.mark.parametrize(
    ("name", "has_index"),
    [
        ("consolidated.safetensors", False),
        ("model-00001.safetensors", True),
        ("old.safetensors", False),
    ],
    ids=["mistral", "index", "left-over"],
)
def test_a_folder_of_which_a_server_loads_other_files_is_not_proven(
    name: str, has_index: bool, line: Line, tmp_path: Path
) -> None:
    """The base's weights next to the merged ones, of which transformers reads the latter."""
    model = copy_of(line, tmp_path / "model")
    base = line.base / "model.safetensors"
    shutil.copy(base, model / name)
    if has_index:
        weight_map = dict.fromkeys(load_file(base), name)
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ArtifactError, match=rf"reads model\.safetensors and vLLM reads .*{name}"):
        prove(line, model, tmp_path / "parity")


def test_a_tokenizer_beyond_the_embedding_is_an_error(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([*(f"filler-{index}" for index in range(100)), "printer"])
    tokenizer.save_pretrained(model)
    with pytest.raises(ArtifactError, match="a tokenizer of another model"):
        prove(line, model, tmp_path / "parity")


def test_a_model_without_a_template_is_an_error(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="no chat template"):
        prove(line, model, tmp_path / "parity")


def test_a_folder_that_transformers_cannot_load_is_an_error(line: Line, tmp_path: Path) -> None:
    model = copy_of(line, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 7}))
    with pytest.raises(ArtifactError, match="transformers cannot load it"):
        prove(line, model, tmp_path / "parity")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: truncated"):
        prove(line, model, tmp_path / "parity")


def test_what_a_server_does_unasked_is_listed(line: Line, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(line.merged, model, ignore=shutil.ignore_patterns("manifest.json"))
    _, plain = prove(line, model, tmp_path / "plain")
    assert plain.sampling_defaults == {}
    said = json.loads((model / "generation_config.json").read_text())
    more = {"temperature": 0.6, "top_p": 1.0, "top_k": 20, "repetition_penalty": 1.05}
    (model / "generation_config.json").write_text(json.dumps({**said, **more}))
    artifact, parity = prove(line, model, tmp_path / "proof")
    assert parity.verdict == "PASS"
    assert parity.sampling_defaults == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    text = (artifact.path / "parity.md").read_text()
    assert "with temperature=0.6, top_k=20, repetition_penalty=1.05 by default" in text
    (model / "generation_config.json").write_text('{"temperature": "warm"}')
    with pytest.raises(ArtifactError, match="temperature"):
        prove(line, model, tmp_path / "broken")
