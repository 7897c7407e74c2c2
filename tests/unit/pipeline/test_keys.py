"""Every field of run.yaml and the stages that its change makes stale, by the keys themselves."""

import datetime
import json
import shutil
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from k8s.config import (
    Autoscaling,
    Canary,
    CanaryJudge,
    ClusterAdapters,
    EndpointPicker,
    FetchedModel,
    Gateway,
    HubModel,
    ReleaseKey,
)
from k8s.placement_config import Placement, Toleration
from k8s.training_config import TrainingJob
from loadtest.config import SLO, AnswersConfig, CancellationsConfig
from loadtest.workload.build import build_workload
from loadtest.workload_config import (
    Delay,
    ImagesConfig,
    Length,
    SessionsConfig,
    WorkloadConfig,
)
from tests.unit.pipeline.fake_line import fake_made
from training.config import JudgeConfig
from training.config.data import SourceConfig
from training.config.launch import LaunchConfig
from training.config.method import GrpoConfig
from training.config.search import ChoicesConfig
from tuneline.core.config import validate_config
from tuneline.core.errors import DataError
from tuneline.core.tolerances import Tolerances
from tuneline.pipeline.keys import stage_keys
from tuneline.pipeline.plan import plan_stage
from tuneline.pipeline.run_config import Run, RunConfig, resolve_base
from tuneline.pipeline.served_stages import loadtest_config
from tuneline.pipeline.server import serving_config
from tuneline.pipeline.stage_inputs import data_inputs, workload_inputs
from tuneline.pipeline.stages import stages
from tuneline.pipeline.tune.run import Options, _file_digests

EVALUATIONS = (
    "evaluation-base", "evaluation-report", "evaluation-served", "evaluation-tuned",
)  # fmt: skip
SERVED = ("evaluation-served", "loadtest", "parity-served")
FORMS = ("gptq-w4a16", "onnx-float32", "pruned", "quantized-w4a16")
ALL_BUT_DATASET = (
    "adapter", *EVALUATIONS, *FORMS, "loadtest", "model", "parity-merged", "parity-served",
    "reference", *(f"parity-{form}" for form in FORMS),
)  # fmt: skip
TOLERANCES = """min_greedy_agreement min_token_agreement max_logprob_difference
    mean_logprob_difference mean_kl max_accuracy_drop"""
SLO_FIELDS = """session_s session_wait_s max_session_error_rate
    ttft_s tpot_s worst_gap_s e2e_s max_error_rate min_request_throughput_rps
    min_output_throughput_tps goodput_ttft_s goodput_tpot_s goodput_e2e_s min_goodput_rps
    min_goodput_share max_kv_cache_growth_per_hour max_latency_drift_per_hour
    max_server_memory_growth_mib_per_hour"""
LENGTH = "distribution mean stddev min max"

STALE: dict[tuple[str, ...], dict[str, str]] = {
    ALL_BUT_DATASET: {"": "base_model"},
    ("dataset",): {
        "data": """shape columns heldout_fraction system_prompt bad_rows seed group_by
            stratify_by chat_template chat_template_kwargs chat_template_date""",
        "data.checks.contradictions": "action",
        "data.checks.duplicates": "action",
        "data.checks.empty_answers": "action",
        "data.checks.languages": "action expected",
        "data.checks.leakage": "action",
        "data.checks.near_duplicates": "action similarity",
        "data.checks.near_leakage": "action similarity",
        "data.checks.personal_data": "action regions",
        "data.checks.refusals": "action",
        "data.checks.repetition": "action",
        "data.checks.tool_calls": "action",
        "data.checks.truncation": "action",
        "data.checks.words": "action words",
        "data.checks.labels": "action max_ratio",
        "data.checks.length": "action by",
        "data.sources.0": "shape columns weight",
    },
    ("adapter",): {
        "training": """r lora_alpha lora_dropout target_modules use_rslora eos_token learning_rate
            train_on
            num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_length
            warmup_steps lr_scheduler_type lr_scheduler_kwargs weight_decay max_grad_norm seed
            dtype packing
            gradient_checkpointing eval_steps train_sampling_strategy optim attn_implementation
            use_liger_kernel finetuning_type
            exclude_modules target_parameters layers_to_transform use_dora bias rank_pattern
            alpha_pattern modules_to_save trainable_token_indices ensure_weight_tying lora_config
            load_in_4bit router_aux_loss_coef load_best_model_at_end metric_for_best_model
            num_eval_prompts early_stopping_patience early_stopping_threshold adam_beta1 adam_beta2
            adam_epsilon max_steps""",
        "training.method": "type",
    },
    EVALUATIONS: {
        "evaluation": "max_new_tokens batch_size num_rows fields metrics python",
        "evaluation.judge": "url model criteria num_rows max_new_tokens",
    },
    ("evaluation-base", "evaluation-served", "evaluation-tuned"): {"evaluation": "json_schema"},
    ("reference",): {"reference": "num_prompts max_new_tokens top_logprobs"},
    ("model",): {"export.merge": "dtype merge_base quantize"},
    ("gptq-w4a16", "model", "quantized-w4a16"): {"export.merge": "group_size"},
    ("gptq-w4a16",): {"export.calibration": "num_calibration_samples max_seq_length"},
    ("pruned",): {"export.prune": "sparsity pattern"},
    ("parity-merged",): {"export.parity.tolerances": TOLERANCES},
    ("parity-pruned",): {"export.parity": "forms"},
    SERVED: {
        "serving": """mode dtype max_model_len max_num_seqs max_num_batched_tokens
            gpu_memory_utilization tensor_parallel_size enforce_eager cpu_kvcache_space_gib
            extra_args"""
    },
    ("parity-served",): {"serving.parity.tolerances": TOLERANCES, "serving.parity": "concurrency"},
    ("loadtest",): {
        "loadtest": """max_tokens ignore_eos num_warmup_requests timeout_s seed num_workers
            max_client_lag_s calibrate headers extra_body""",
        "loadtest.slo": SLO_FIELDS,
        "loadtest.scenarios.0": """name rate_rps arrival burstiness rate_end_rps trace_speed
            concurrency num_requests duration_s""",
        "loadtest.scenarios.0.slo": SLO_FIELDS,
        "loadtest.workload": """source max_token_id shared_prefix_tokens num_prefix_groups
            unique_prompts prefix_hit_rate min_repeat_ttft_share multi_turn models route tools""",
        "loadtest.workload.input_tokens": LENGTH,
        "loadtest.workload.output_tokens": LENGTH,
        "loadtest.workload.sessions": "history max_delay_s max_turns",
        "loadtest.workload.images": "width height count",
        "loadtest.workload.sessions.think_s": "distribution mean stddev",
        "loadtest.workload.sessions.tool_delay_s": "distribution mean stddev",
        "loadtest.answers": "share dtype max_length_drift",
        "loadtest.answers.tolerances": TOLERANCES,
        "loadtest.cancellations": "share after_s after_tokens",
    },
}
NOT_KEYED: dict[str, str] = {
    # The run's directory has its name; the revision only says where the base model is found.
    "": "name base_revision",
    # The content of a file is an input; its path is not.
    "data": "path heldout_path heldout_split revision config split",
    "data.sources.0": "path revision config split",
    "loadtest": "check_models",
    "loadtest.answers": "reference",
    "loadtest.workload": "path",
    "training": """logging_steps save_steps save_minutes save_total_limit dataloader_num_workers
        report_to prometheus_port""",
    "training.launch": """processes strategy nodes rendezvous timeout_s
        reshard_after_forward""",
    "search": "space metric direction sampler pruner num_trials seed study",
    # A further stage.
    "evaluation": "forgetting",
    "evaluation.judge": "api_key_env concurrency timeout_s",
    # A further form is a further stage.
    "export": "forms",
    "serving": """host port api_key_env compile_cache ready_timeout_s shutdown_timeout max_restarts
        keys_file routes aliases log_format stall_after_s""",
    "serving.limits": """max_body_bytes header_timeout_s body_timeout_s send_timeout_s max_n
        max_tokens max_in_flight""",
    "serving.adapters": "root max_adapters max_lora_rank",
    "serving.recording": "folder share max_gib keep_days",
    "serving.parity": "request_timeout_s",
    "k8s": """namespace overlay image loadtest_image load_pods results_claim replicas model_claim
        image_pull_secrets keys_secret_name model_path model_image secret_name
        monitoring_namespace cache_claim loadtest_prompts model_claim_mode monitoring_labels
        queue_name recording_claim run_as_user scheduling_s surge verify_model workload hosts""",
    "k8s.adapters": "claim secret_name desired",
    "k8s.autoscaling": """by headroom max_replicas min_replicas prometheus_url ready_s
        wake_query""",
    "k8s.endpoint_picker": "failure_mode name port",
    "k8s.gateway": "hostnames name namespace pods_namespace route",
    "k8s.gateway.canary": "run weight",
    "k8s.judge": "stable by",
    "k8s.loadtest_resources": "cpu memory",
    "k8s.model_fetch": "command image port secret_name size",
    "k8s.model_hub": "repo revision secret_name size",
    "k8s.placement": "gpu_product node_selector priority_class runtime_class",
    "k8s.release_key": "config_map secret_name file",
    "k8s.placement.tolerations.0": "effect key operator value",
    "k8s.resources": "cpu memory gpus gpu_resource cpu_limit ephemeral_storage",
    "k8s.training": """image kind work_claim data_url push_to storage_secret hub_secret ports
        workers hosts checkpoint_s retries deadline_s""",
    "k8s.training.placement": "gpu_product node_selector priority_class runtime_class",
    "k8s.training.placement.tolerations.0": "effect key operator value",
    "k8s.training.resources": "cpu memory gpus gpu_resource shared_memory disk",
    # The gates read artifacts, and make none.
    "release": """metric threshold max_regression max_slowdown previous load_comparison base_license
        teacher_license data_license""",
}

CHANGED: dict[str, Any] = {
    "base_model": "other-base",
    "data.path": "copy",
    "data.heldout_path": "copy",
    "data.split": "train",
    "data.shape": "alpaca",
    "data.columns": {"prompt": "question"},
    "data.heldout_split": "train",
    "data.chat_template": "alpaca",
    "data.chat_template_kwargs": {"enable_thinking": False},
    "data.chat_template_date": datetime.date(2026, 11, 28),
    "training.train_on": "last_turn",
    "data.group_by": "user",
    "data.stratify_by": "topic",
    "data.checks.languages.expected": ("ko",),
    "data.checks.words.words": ("word",),
    "data.checks.personal_data.regions": ("JP",),
    "data.checks.length.action": "fix",
    "loadtest.workload.path": Path("copy.jsonl"),
    "evaluation.json_schema": "rows.jsonl",
    "evaluation.python": "rows.jsonl:score",
    "export.merge.group_size": 64,
    "export.parity.forms": {"pruned": Tolerances()},
    "export.prune.sparsity": 0.25,
    "export.prune.pattern": "2:4",
    "export.forms": (*FORMS, "torchscript"),
    "serving.mode": "adapter",
    "serving.extra_args": {"seed": 1},
    "training.report_to": [],
    "search.space": {"training.r": ChoicesConfig(choices=[8])},
}
"""For fields whose value the stages read; any other value will do for the rest."""
TOGETHER: dict[str, dict[str, Any]] = {"export.prune.pattern": {"export.prune.sparsity": None}}
"""Fields that must change too."""


def names(table: dict[str, str]) -> list[str]:
    return [
        f"{section}.{name}".removeprefix(".")
        for section, fields in table.items()
        for name in fields.split()
    ]


EXPECTED = {field: stale for stale, table in STALE.items() for field in names(table)}
EXPECTED |= dict.fromkeys(names(NOT_KEYED), ())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose every section is there, with files of its own."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("rows.jsonl", "copy.jsonl"):
        (folder / name).write_text("{}\n")
        (folder / name).with_suffix("").mkdir()
        (folder / name).with_suffix("").joinpath("train.jsonl").write_text("{}\n")
    for name in ("base", "other-base"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(f'{{"_name": "{name}"}}')
        (folder / name / "model.safetensors").write_bytes(b"weights")
    values = {
        "name": "keys",
        "base_model": "base",
        "data": {"path": "rows", "heldout_path": "rows"},
        "export": {
            "forms": list(FORMS),
            "prune": {"sparsity": 0.5},
            "parity": {"tolerances": {}},
        },
        "serving": {
            "parity": {"tolerances": {}},
            "keys_file": "keys.toml",
            "adapters": {"root": "runs"},
            "recording": {"folder": "recorded"},
        },
    }
    config = validate_config(RunConfig, values, "test")
    for path, value in {
        "data.sources": [SourceConfig(path="rows")],
        "evaluation.judge": JudgeConfig(url="http://127.0.0.1:1/v1", model="judge"),
        "loadtest.scenarios.0.slo": SLO(),
        "loadtest.workload.input_tokens": Length(mean=8),
        "loadtest.workload.output_tokens": Length(mean=8),
        "loadtest.workload.path": Path("rows.jsonl"),
        "loadtest.workload.sessions": SessionsConfig(tool_delay_s=Delay(mean=1.0)),
        "loadtest.workload.images": ImagesConfig(width=8, height=8),
        "loadtest.answers": AnswersConfig(tolerances=Tolerances()),
        "loadtest.cancellations": CancellationsConfig(after_s=1.0),
        "training.launch": LaunchConfig(processes=1),
        "k8s.adapters": ClusterAdapters(claim="adapters"),
        "k8s.autoscaling": Autoscaling(by="hpa", max_replicas=2),
        "k8s.judge": CanaryJudge(stable="first"),
        "k8s.endpoint_picker": EndpointPicker(name="picker"),
        "k8s.gateway": Gateway(
            name="gateway", namespace="edge", canary=Canary(run="next", weight=5)
        ),
        "k8s.model_fetch": FetchedModel(image="fetch:1", command=("fetch", "/model")),
        "k8s.model_hub": HubModel(repo="owner/name", revision="0" * 40),
        "k8s.placement.tolerations": (Toleration(key="gpu"),),
        "k8s.release_key": ReleaseKey(config_map="team-key"),
        "k8s.training": TrainingJob(
            image="training:1",
            work_claim="work",
            placement=Placement(tolerations=(Toleration(key="gpu"),)),
        ),
    }.items():
        config = replaced(config, path.split("."), value)
    return Run(folder / "run.yaml", config, folder / "runs")


def test_every_field_is_in_one_list() -> None:
    fields = list(leaves(RunConfig))
    assert len(fields) > 100
    assert sorted(fields) == sorted(EXPECTED)
    assert len(EXPECTED) == len(names(NOT_KEYED)) + sum(len(names(t)) for t in STALE.values())


@pytest.fixture(scope="module")
def keys_before(run: Run) -> dict[str, str]:
    return keys(run)


@pytest.mark.parametrize("field", EXPECTED)
def test_a_changed_field_makes_its_stages_stale(
    run: Run, keys_before: dict[str, str], field: str
) -> None:
    value = CHANGED[field] if field in CHANGED else other(at(run.config, field.split(".")))
    config = replaced(run.config, field.split("."), value)
    for path, also in TOGETHER.get(field, {}).items():
        config = replaced(config, path.split("."), also)
    changed = Run(run.path, config, run.dir)
    assert at(changed.config, field.split(".")) != at(run.config, field.split("."))
    before, after = keys_before, keys(changed)
    assert before.keys() <= after.keys()
    stale = tuple(sorted(name for name in before if before[name] != after[name]))
    assert stale == tuple(sorted(EXPECTED[field]))


def test_changed_data_makes_the_dataset_stale(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.path.parent, tmp_path / "run")
    (folder / "rows.jsonl").write_text("{} \n")
    (folder / "rows" / "train.jsonl").write_text("{} \n")
    changed = Run(folder / "run.yaml", run.config, run.dir)
    before, after = keys(run), keys(changed)
    assert {name for name in before if before[name] != after[name]} == {"dataset", "loadtest"}


@pytest.mark.parametrize("flag", ["chat_template", "--tool-parser-plugin"])
def test_a_changed_file_of_the_server_makes_its_stages_stale(
    run: Run, tmp_path: Path, flag: str
) -> None:
    folder = shutil.copytree(run.path.parent, tmp_path / "run")
    config = replaced(run.config, ["serving", "extra_args"], {flag: "server.txt"})
    there = Run(folder / "run.yaml", config, run.dir)
    found = []
    for text in ("first", "second"):
        (folder / "server.txt").write_text(text)
        found.append(keys(there))
    before, after = found
    assert sorted(name for name in before if before[name] != after[name]) == sorted(SERVED)
    assert serving_config(there).extra_args == {flag: str(folder / "server.txt")}
    text = replaced(config, ["serving", "extra_args"], {flag: "{{ messages }}" * 1000})
    assert serving_config(Run(there.path, text, run.dir)).extra_args == text.serving.extra_args


@pytest.mark.parametrize("changed", ["code.py", "tl_helper.py"])
@pytest.mark.parametrize(
    ("path", "value", "stale"),
    [
        (["evaluation", "python"], "code.py:f", {*EVALUATIONS} - {"evaluation-report"}),
        (
            ["training", "method"], GrpoConfig(type="grpo", reward_funcs=["code.py:f"]),
            {"adapter", "evaluation-preferences"},
        ),
    ],
    ids=["metric", "reward"],
)  # fmt: skip
def test_a_changed_module_next_to_a_file_of_code_makes_its_stages_stale(
    run: Run, tmp_path: Path, changed: str, path: list[str], value: Any, stale: set[str]
) -> None:
    folder = shutil.copytree(run.path.parent, tmp_path / "run")
    (folder / "code.py").write_text("import tl_helper\n")
    (folder / "tl_helper.py").write_text("")
    there = Run(folder / "run.yaml", replaced(run.config, path, value), run.dir)
    before = keys(there)
    (folder / changed).write_text("import tl_helper  # changed\n")
    after = keys(there)
    assert {name for name in before if before[name] != after[name]} == stale


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("speculative_config", {"model": "drafter", "num_speculative_tokens": 3}),
        ("--speculative-config", '{"model": "drafter", "num_speculative_tokens": 3}'),
        ("speculative_config.model", "drafter"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "pytorch_model.bin"])
def test_a_changed_drafter_makes_the_stages_of_the_server_stale(
    run: Run, tmp_path: Path, flag: str, value: Any, file: str
) -> None:
    folder = shutil.copytree(run.path.parent, tmp_path / "run")
    drafter = folder / "drafter"
    drafter.mkdir()
    there = Run(
        folder / "run.yaml", replaced(run.config, ["serving", "extra_args"], {flag: value}), run.dir
    )
    found = []
    for text in ("{}", '{"a": 1}'):
        (drafter / file).write_text(text)
        found.append(keys(there))
    before, after = found
    assert sorted(name for name in before if before[name] != after[name]) == sorted(SERVED)
    (given,) = serving_config(there).extra_args.values()
    path = given["model"] if isinstance(given, dict) else given
    assert path == str(drafter)


def test_a_changed_drafter_begins_a_tuning_anew(run: Run, tmp_path: Path) -> None:
    found = []
    for text in ("{}", '{"a": 1}', "{}"):
        (tmp_path / "config.json").write_text(text)
        found.append(_file_digests(run, Options(60.0, drafter=tmp_path)))
    assert found[0] != found[1]
    assert found[0] == found[2]
    assert _file_digests(run, Options(60.0)) == []


@pytest.mark.parametrize("value", [{"method": "ngram"}, {"model": "a/hub-id"}, "not JSON"])
def test_speculation_without_a_folder_is_left_as_it_is(run: Run, value: Any) -> None:
    extra_args = {"speculative_config": value}
    there = Run(run.path, replaced(run.config, ["serving", "extra_args"], extra_args), run.dir)
    assert serving_config(there).extra_args == extra_args
    assert keys(there)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_length", 64), ("train_on", "last_turn"), ("eos_token", "</s>"), ("seed", 1)],
)
def test_the_length_of_rows_is_part_of_the_key_if_rows_are_dropped_for_it(
    run: Run, field: str, value: Any
) -> None:
    config = replaced(run.config, ["data", "checks", "length", "action"], "fix")
    changed = replaced(config, ["training", field], value)
    base = resolve_base(run, download=False)
    before, after = (
        data_inputs(Run(run.path, config, run.dir), base) for config in (config, changed)
    )
    assert (before != after) == (field != "seed")


def test_a_raised_version_makes_a_stage_stale(run: Run) -> None:
    all_stages = stages(run)
    assert all_stages
    base, made = resolve_base(run, download=False), fake_made(all_stages)
    for stage in all_stages:
        later = replace(stage, version=stage.version + 1)
        assert stage_keys(later, run, base, made)[0] != stage_keys(stage, run, base, made)[0]


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        (1, "its configuration or an input changed"),
        (-1, "an earlier Tuneline made it otherwise"),
    ],
)
def test_a_stage_that_an_earlier_version_made_is_not_said_to_be_changed(
    run: Run, tmp_path: Path, later: int, reason: str
) -> None:
    run = replace(run, dir=tmp_path)
    base = resolve_base(run, download=False)
    dataset = stages(run)[0]
    assert dataset.name == "dataset" and dataset.version > 1
    assert plan_stage(run, dataset, base, {}).reason == "not made yet"
    key = stage_keys(replace(dataset, version=dataset.version + later), run, base, {})[0]
    (tmp_path / f"dataset-{key}").mkdir()
    (tmp_path / f"dataset-{key}" / "manifest.json").write_text("{}")
    assert plan_stage(run, dataset, base, {}).reason == reason


def test_a_changed_input_makes_a_stage_stale(run: Run) -> None:
    base, made = resolve_base(run, download=False), fake_made(stages(run))
    dependent = [stage for stage in stages(run) if stage.needs]
    assert len(dependent) > 5
    for stage in dependent:
        for need in stage.needs:
            other_made = {**made, need: fake_made([stage])[stage.name]}
            assert (
                stage_keys(stage, run, base, made)[0] != stage_keys(stage, run, base, other_made)[0]
            )


def keys(run: Run) -> dict[str, str]:
    all_stages = stages(run)
    base, made = resolve_base(run, download=False), fake_made(all_stages)
    return {stage.name: stage_keys(stage, run, base, made)[0] for stage in all_stages}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted path of every field that holds no further section; lists by their first entry."""
    for name, field in model.model_fields.items():
        inner, in_list = section_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from leaves(inner, f"{prefix}{name}.{'0.' if in_list else ''}")


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return (annotation if issubclass(annotation, BaseModel) else None), False
    origin = typing.get_origin(annotation)
    if origin is dict:
        return None, False
    for argument in typing.get_args(annotation):
        inner, in_list = section_of(argument)
        if inner is not None:
            return inner, in_list or origin in (list, tuple)
    return None, False


def at(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value[int(name)] if name.isdecimal() else getattr(value, name)
    return value


def replaced(value: Any, path: list[str], new: Any) -> Any:
    """A copy with another value at `path`; nothing is validated."""
    if not path:
        return new
    name, *rest = path
    if name.isdecimal():
        return [replaced(v, rest, new) if i == int(name) else v for i, v in enumerate(value)]
    return value.model_copy(update={name: replaced(getattr(value, name), rest, new)})


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}-changed"


def test_a_run_reads_recorded_requests_from_one_file(run: Run) -> None:
    config = replaced(run.config, ["loadtest", "workload", "path"], Path("rows"))
    with pytest.raises(DataError, match=r"rows is a folder; a run reads one file") as raised:
        workload_inputs(Run(run.path, config, run.dir))
    assert raised.value.hint == "Try: cat rows/recorded-*.jsonl > recorded.jsonl"


def test_a_run_reads_the_file_of_its_workload_from_its_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (run.path.parent / "talk.json").write_text(json.dumps([{"conversations": talk}]))
    workload = WorkloadConfig(source="sharegpt", path=Path("talk.json"))
    config = replaced(run.config, ["loadtest", "workload"], workload)
    chosen = loadtest_config(Run(run.path, config, run.dir))
    found = build_workload(chosen, "m", [], seed=0, num_requests=1)
    assert json.loads(found.bodies[0])["messages"] == [{"role": "user", "content": "q"}]
