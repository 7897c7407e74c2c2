"""Combinations of sections that cannot work end before training, with the change to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuneline.core.config import validate_config
from tuneline.core.environment import hardware_facts
from tuneline.core.errors import ConfigError
from tuneline.pipeline.load_route import require_route
from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.pipeline.server import require_served_weights
from tuneline.pipeline.stage import EVALUATION_TUNED
from tuneline.pipeline.stages import stages


def run_of(**sections: Any) -> Run:
    values = {"name": "refused", "data": {"path": "rows.jsonl"}, **sections}
    return Run(Path("run.yaml"), validate_config(RunConfig, values, "run.yaml"), Path("runs"))


def test_int8_in_float32_on_a_cpu_is_refused() -> None:
    if hardware_facts()["gpus"]:
        pytest.skip("needs a machine without a GPU")
    int8 = {"merge": {"quantize": "int8"}}
    with pytest.raises(ConfigError, match="takes bfloat16 or float16, and fails at the") as error:
        require_served_weights(run_of(export=int8, serving={"dtype": "float32"}))
    assert error.value.exit_code == 2
    assert "--set serving.dtype=bfloat16" in str(error.value.hint)
    require_served_weights(run_of(export=int8, serving={"dtype": "bfloat16"}))
    require_served_weights(run_of(serving={"dtype": "float32"}))


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"finetuning_type": "full"}, "finetuning_type: full"),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"bias": "all"}, "bias: all"),
        ({"r": 513}, "rank above 512"),
        ({"rank_pattern": {"q_proj": 600}}, "rank above 512"),
        ({"lora_config": {"lora_bias": True}}, "lora_config.lora_bias"),
    ],
)
def test_an_adapter_that_vllm_cannot_load_is_not_served(
    training: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match="cannot serve what training makes") as error:
        run_of(training=training, serving={"mode": "adapter"})
    assert reason in str(error.value)
    run_of(training=training)


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"finetuning_type": "full", "r": 8}, "trains every parameter; r has no effect"),
        ({"finetuning_type": "full", "load_in_4bit": True}, "load_in_4bit has no effect"),
        ({"lora_config": {"r": 8}}, "set training.r"),
        ({"lora_config": {"task_type": "SEQ_CLS"}}, "task_type is set by the training method"),
        ({"method": {"type": "reward"}, "load_in_4bit": True}, "with LoRA on the plain base"),
        ({"layers_to_transform": []}, "layers_to_transform"),
    ],
)
def test_options_that_contradict_are_refused(training: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run_of(training=training)


def test_full_fine_tuning_has_a_lower_learning_rate_of_its_own() -> None:
    assert run_of(training={"finetuning_type": "full"}).config.training.learning_rate == 2e-5
    given = {"finetuning_type": "full", "learning_rate": 1e-4}
    assert run_of(training=given).config.training.learning_rate == 1e-4


@pytest.mark.parametrize("key", ["sk-proj-abcdefghijklmnop", "hf_abcdefghijklmnopqrstuvwxyz"])
@pytest.mark.parametrize("section", ["serving", "judge"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(section: str, key: str) -> None:
    judge = {"judge": {"url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": key}}
    sections: dict[str, Any] = {
        "serving": {"serving": {"api_key_env": key}},
        "judge": {"evaluation": judge},
    }
    with pytest.raises(ConfigError, match="api_key_env: is not the name of a variable") as error:
        run_of(**sections[section])
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("method", "routes", "problem"),
    [
        ("dpo", ["embeddings"], "the proofs of this line ask for text"),
        ("reward", ["score"], "expected pooling or classify, by which its scores are proven"),
        ("reward", ["pooling", "embeddings"], "and no embeddings"),
        ("reranker", ["classify"], "of a reranker: expected score, by which its scores are"),
        ("reranker", ["score", "pooling"], "and no embeddings, pooling or classify"),
    ],
)
def test_routes_that_the_line_cannot_prove_are_refused(
    method: str, routes: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        run_of(training={"method": {"type": method}}, serving={"routes": routes})


def test_the_line_of_a_reward_model_goes_on_if_it_serves_scores() -> None:
    def names(**sections: Any) -> list[str]:
        return [stage.name for stage in stages(run_of(**sections))]

    reward = {"method": {"type": "reward"}}
    line = ["dataset", "adapter", "evaluation-preferences"]
    assert names(training=reward) == line
    served = names(training=reward, serving={"routes": ["classify"]})
    assert sorted(served) == sorted([*line, "model", "parity-served", "loadtest"])


@pytest.mark.parametrize(
    ("routes", "given", "asked"),
    [
        ([], {}, "chat"),
        (["responses"], {"route": "responses"}, "responses"),
        (["classify"], {}, "classify"),
        (["classify", "pooling"], {}, "pooling"),
        (["pooling", "classify"], {"route": "classify"}, "classify"),
        (["score", "classify"], {"route": "rerank"}, "rerank"),
    ],
)
def test_the_load_test_asks_a_route_that_is_served(
    routes: list[str], given: dict[str, Any], asked: str
) -> None:
    method = "sft" if routes in ([], ["responses"]) else "reward"
    sections = {"serving": {"routes": routes}, "loadtest": {"workload": given}}
    run = run_of(training={"method": {"type": method}}, **sections)
    assert run.config.loadtest.workload.route == asked
    require_route(run)
    # The Job of a cluster reads the whole configuration, with every default.
    again = run_of(**run.config.model_dump(mode="json", exclude={"name", "data"}))
    assert again.config.loadtest == run.config.loadtest


@pytest.mark.parametrize(
    ("method", "routes", "load", "problem"),
    [
        ("sft", ["messages"], {"workload": {"route": "responses"}},
         "loadtest.workload.route is responses, which serving.routes does not open; expected chat "
         "or messages"),
        ("reward", ["classify"], {"workload": {"route": "chat"}}, "is chat, .* expected classify"),
        ("reward", ["score", "pooling"], {"workload": {"route": "classify"}},
         "is classify, .* expected pooling or score or rerank"),
        ("reward", ["pooling"], {"max_tokens": 32}, "answers without tokens: remove max_tokens"),
        ("reward", ["pooling"], {"slo": {"ttft_s": {"p90": 1.0}}}, "remove slo.ttft_s"),
        ("reward", ["pooling"], {"answers": {}}, "answers are compared over route: chat"),
        ("reward", ["pooling"], {"workload": {"sessions": {}}}, "sessions is not for route"),
        ("reward", ["pooling"], {"workload": None}, "loadtest.workload"),
    ],
)  # fmt: skip
def test_a_load_test_that_the_server_cannot_answer_is_refused(
    method: str, routes: list[str], load: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        require_route(
            run_of(training={"method": {"type": method}}, serving={"routes": routes}, loadtest=load)
        )


def test_a_judge_of_a_model_without_answers_is_refused() -> None:
    judge = {"judge": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    with pytest.raises(ConfigError, match="this method's model gives none") as error:
        run_of(training={"method": {"type": "reward"}}, evaluation=judge)
    assert error.value.exit_code == 2 and "method: {type: dpo}" in str(error.value)
    run_of(training={"method": {"type": "kto"}}, evaluation=judge)


@pytest.mark.parametrize(
    ("training", "label"),
    [({}, "base + adapter"), ({"finetuning_type": "full"}, "the whole model")],
)
def test_the_tuned_model_is_called_what_it_is(training: dict[str, Any], label: str) -> None:
    (found,) = [one for one in stages(run_of(training=training)) if one.name == EVALUATION_TUNED]
    assert (found.title, found.label) == (f"Evaluate {label}", label)
