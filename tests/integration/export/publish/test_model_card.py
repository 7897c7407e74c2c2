"""The card holds the figures of the manifests, and finds them only by digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from export.publish.model_card import connected, write_model_card
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.parity import compare
from tuneline.core.parity_report import write_parity
from tuneline.core.reference import Continuation
from tuneline.core.tolerances import Tolerances


def write(folder: Path, name: str, kind: str, inputs: list[Input], **metrics: object) -> Artifact:
    with new_artifact(folder / name, kind, config={"r": 8}, inputs=inputs) as draft:
        (draft.dir / "payload.txt").write_text(name)
        draft.metrics.update(metrics)
    return open_artifact(folder / name)


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Artifact]:
    """A run's directory, with artifacts of another run next to them."""
    dataset = write(tmp_path, "d", "dataset", [], num_train=1794, num_heldout=273)
    adapter = write(
        tmp_path, "a", "adapter", [dataset.as_input("dataset")], num_steps=336, eval_loss=0.138
    )
    model = write(tmp_path, "m", "model", [adapter.as_input("adapter")], size_bytes=123456)
    evaluation = write(
        tmp_path, "e", "evaluation", [dataset.as_input("dataset"), adapter.as_input("adapter")],
        exact_match=0.934, num_rows=273,
    )  # fmt: skip
    of_base = write(
        tmp_path, "b", "evaluation", [dataset.as_input("dataset")], exact_match=0.5, num_rows=273
    )
    other = write(tmp_path, "o", "adapter", [], num_steps=2, eval_loss=9.0)
    write(tmp_path, "p", "evaluation", [other.as_input("adapter")], exact_match=0.1, num_rows=7)
    answer = Continuation(
        messages=[], prompt_token_ids=[1], token_ids=[5], logprobs=[-0.1], top_logprobs=[{}],
        text="yes", finish_reason="stop", expected="yes",
    )  # fmt: skip
    parity = compare("merged", [answer], [answer], Tolerances())
    inputs = [model.as_input("model")]
    proof = write_parity(tmp_path / "q", parity, Tolerances(), config={}, inputs=inputs)
    return {"dataset": dataset, "adapter": adapter, "model": model, "evaluation": evaluation,
            "proof": proof, "of_base": of_base}  # fmt: skip


def test_manifests_are_found_by_digest(run: dict[str, Artifact]) -> None:
    made_from, measured = connected(run["model"])
    assert [a.digest for a in made_from] == [run["adapter"].digest, run["dataset"].digest]
    assert {a.digest for a in measured} == {run["evaluation"].digest, run["proof"].digest}


def test_the_card_gives_the_manifests_figures(run: dict[str, Artifact]) -> None:
    card = write_model_card(run["model"])
    assert card.startswith("---\nlibrary_name: transformers\n")
    for expected in (
        run["model"].digest, run["adapter"].digest, run["dataset"].digest, "1,794", "0.138",
        "93.4% | 273", "| merged | PASS | 1/1 | 1/1 |", "- r: 8",
    ):  # fmt: skip
        assert expected in card, expected
    assert "10.0%" not in card  # the other run's


def test_the_card_of_a_preference_model_has_its_method_and_preferences(
    run: dict[str, Artifact], tmp_path: Path
) -> None:
    dataset, config = run["dataset"].as_input("dataset"), {"method": {"type": "dpo"}}
    with new_artifact(tmp_path / "t", "adapter", config=config, inputs=[dataset]) as draft:
        (draft.dir / "payload.txt").write_text("trained on pairs")
        draft.metrics.update(num_steps=15)
    adapter = open_artifact(tmp_path / "t").as_input("adapter")
    model = write(tmp_path, "n", "model", [adapter])
    write(
        tmp_path, "c", "preferences", [dataset, adapter], num_pairs=40, accuracy=0.975,
        accuracy_interval=[0.87, 0.996], margin=0.516,
    )  # fmt: skip
    card = write_model_card(model)
    assert "- method: dpo" in card
    assert "- prefers the better answer in 97.5% of 40 pairs (87.0% to 99.6%), margin 0.516" in card
    assert "Preferences" not in write_model_card(run["model"])


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), ("Qwen/Qwen3-0.6B@v1", "Qwen/Qwen3-0.6B"),
        ("tiny-base", None), ("./models/base", None), ("../base", None), (None, None),
    ],
)  # fmt: skip
def test_a_card_names_a_base_model_that_the_hub_has(
    tmp_path: Path, named: str | None, shown: str | None
) -> None:
    with new_artifact(tmp_path / "a", "adapter", config={}) as draft:
        text = json.dumps({"base_model_name_or_path": named})
        (draft.dir / "adapter_config.json").write_text(text)
    adapter = open_artifact(tmp_path / "a")
    card = write_model_card(write(tmp_path, "m", "model", [adapter.as_input("adapter")]))
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata.get("base_model") == shown
    assert metadata.get("base_model_relation") == ("finetune" if shown else None)


@pytest.mark.parametrize(
    ("kind", "config", "shown"),
    [
        ("model", {"dtype": "auto", "group_size": 128}, False),
        ("model", {"quantize": "w4a16", "group_size": 128}, True),
        ("onnx", {"scheme": "int8", "group_size": 128}, False),
    ],
)
def test_a_card_has_no_option_and_no_library_of_another_form(
    kind: str, config: dict[str, object], shown: bool, tmp_path: Path
) -> None:
    with new_artifact(tmp_path / "m", kind, config=config) as draft:
        (draft.dir / "payload.txt").write_text("x")
    card = write_model_card(open_artifact(tmp_path / "m"))
    assert ("| group_size | 128 |" in card) is shown
    assert ("library_name: transformers" in card) is (kind == "model")


def test_only_models_have_a_card(run: dict[str, Artifact]) -> None:
    with pytest.raises(ArtifactError, match="kind 'dataset'"):
        write_model_card(run["dataset"])
