from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from serving import add_key
from serving.command.arguments import (
    served_names,
    server_args,
    server_flags,
    vllm_command,
)
from serving.command.environment import artifact_facts, engine_settings, inherited
from serving.config import ServingConfig
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.source import ModelSource

DIGEST = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
NAMES = ["tickets", "tickets@0123456789ab"]


def model(tmp_path: Path) -> ModelSource:
    return ModelSource("tiny", tmp_path / "model", DIGEST, "model")


def adapter_folder(tmp_path: Path, **settings: Any) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 12, **settings})
    )
    return folder


def args_of(tmp_path: Path, **settings: Any) -> list[str]:
    return server_args(
        ServingConfig(**settings), model="/m", adapter=None, served_names=NAMES, host="127.0.0.1",
        port=8000,
    )  # fmt: skip


def test_names_are_the_run_and_the_run_at_its_digest() -> None:
    assert served_names("tickets", DIGEST) == NAMES


def test_aliases_are_between_the_name_and_the_digest() -> None:
    assert served_names("next", DIGEST, ["tickets", "next"]) == [
        "next", "tickets", f"next@{DIGEST[7:19]}",
    ]  # fmt: skip
    with pytest.raises(ValidationError, match="aliases"):
        ServingConfig(aliases=["tickets@0123456789ab"])


def test_merged_arguments(tmp_path: Path) -> None:
    args = args_of(tmp_path, dtype="float32", enforce_eager=True, max_model_len=512)
    assert args == [
        "/m", "--host", "127.0.0.1", "--port", "8000", "--served-model-name", *NAMES,
        "--dtype=float32", "--max-model-len=512", "--enforce-eager", "--shutdown-timeout", "30",
        "--runner", "generate", "--disable-fastapi-docs",
        "--middleware", "serving.middleware.TunelineMiddleware",
        "--disable-uvicorn-access-log", "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip


def test_gpu_options_are_flags_only_where_set(tmp_path: Path) -> None:
    assert not any("gpu" in arg or "tensor" in arg for arg in args_of(tmp_path))
    args = args_of(tmp_path, gpu_memory_utilization=0.8, tensor_parallel_size=2)
    assert {"--gpu-memory-utilization=0.8", "--tensor-parallel-size=2"} <= set(args)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("enable_prefix_caching", True, ["--enable-prefix-caching"]),
        ("enable-prefix-caching", False, ["--no-enable-prefix-caching"]),
        ("aggregate_engine_logging", False, []),
        ("aggregate_engine_logging", True, ["--aggregate-engine-logging"]),
        ("max_num_queued_reqs", 64, ["--max-num-queued-reqs=64"]),
        ("swap", None, []),
        ("seed", -1, ["--seed=-1"]),
        ("cudagraph_capture_sizes", [1, 2, 4], ["--cudagraph-capture-sizes", "1", "2", "4"]),
        ("hf_overrides", {"a": [1]}, ["--hf-overrides", '{"a": [1]}']),
        ("--quantization", "fp8", ["--quantization=fp8"]),
    ],
)
def test_extra_args(tmp_path: Path, name: str, value: Any, expected: list[str]) -> None:
    plain = args_of(tmp_path)
    assert args_of(tmp_path, extra_args={name: value}) == plain + expected


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        ({}, {"max_new_tokens": 100}),
        ({"override-generation-config": {"top_p": 0.5}}, {"top_p": 0.5, "max_new_tokens": 100}),
        ({"override_generation_config": '{"max_new_tokens": 7}'}, {"max_new_tokens": 7}),
        ({"override_generation_config": {"max_new_tokens": 101}}, {"max_new_tokens": 100}),
        ({"override_generation_config": None}, {"max_new_tokens": 100}),
        ({"override_generation_config.top_p": 0.5}, {"top_p": 0.5, "max_new_tokens": 100}),
        ({"override-generation-config.max_new_tokens": 7}, {"max_new_tokens": 7}),
    ],
)
def test_the_limit_of_an_answer_holds_without_a_number_in_the_request(
    tmp_path: Path, extra_args: dict[str, Any], expected: dict[str, Any]
) -> None:
    args = args_of(tmp_path, limits={"max_tokens": 100}, extra_args=extra_args)
    flag = "--override-generation-config"
    assert args.count(flag) == 1
    assert json.loads(args[args.index(flag) + 1]) == expected
    assert not any(word.startswith(f"{flag}.") for word in args)
    assert flag not in args_of(tmp_path)


def test_adapter_arguments(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path, rank_pattern={"v_proj": 20})
    (folder / "tokenizer_config.json").write_text("{}")
    args = server_args(
        ServingConfig(mode="adapter"), model="/m", adapter=folder, served_names=NAMES,
        host="10.0.0.7", port=8000, adapter_at="/adapter",
    )  # fmt: skip
    assert args[5:] == [
        "--served-model-name", "tickets-base", "--enable-lora", "--max-lora-rank", "32",
        "--max-loras", "2", "--lora-modules",
        '{"name": "tickets", "path": "/adapter"}',
        '{"name": "tickets@0123456789ab", "path": "/adapter"}',
        "--tokenizer", "/adapter", "--dtype=auto", "--shutdown-timeout", "30",
        "--runner", "generate", "--disable-fastapi-docs",
        "--middleware", "serving.middleware.TunelineMiddleware",
        "--disable-uvicorn-access-log", "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"lora_bias": True}],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = adapter_folder(tmp_path, **settings)
    with pytest.raises(ArtifactError, match=next(iter(settings))) as caught:
        server_args(
            ServingConfig(mode="adapter"), model="/m", adapter=folder, served_names=NAMES,
            host="127.0.0.1", port=8000,
        )  # fmt: skip
    assert "serving.mode=merged" in str(caught.value)


def test_mode_and_adapter_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter is given"):
        args_of(tmp_path, mode="adapter")
    with pytest.raises(ConfigError, match="mode is merged"):
        server_args(
            ServingConfig(), model="/m", adapter=adapter_folder(tmp_path), served_names=NAMES,
            host="127.0.0.1", port=8000,
        )  # fmt: skip


def command_env(tmp_path: Path, environ: dict[str, str], host: str = "127.0.0.1") -> dict[str, str]:
    command = vllm_command(
        ServingConfig(api_key_env="MY_KEY"), model=model(tmp_path), adapter=None,
        served_names=NAMES, host=host, port=8000, environ=environ,
    )  # fmt: skip
    assert not any("s3cret" in arg for arg in command.argv)
    assert "s3cret" not in repr(command)
    return command.env


def test_the_key_travels_only_in_the_environment(tmp_path: Path) -> None:
    assert command_env(tmp_path, {"MY_KEY": "s3cret"})["VLLM_API_KEY"] == "s3cret"
    # A key meant for another server is not taken over.
    assert "VLLM_API_KEY" not in command_env(tmp_path, {"VLLM_API_KEY": "s3cret"})


@pytest.mark.parametrize("host", ["::", "10.0.0.7", "a.example.org"])
def test_beyond_loopback_a_key_is_required(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="a key is required") as caught:
        command_env(tmp_path, {"MY_KEY": ""}, host)
    assert "export MY_KEY=" in str(caught.value)
    assert command_env(tmp_path, {"MY_KEY": "s3cret"}, host)["VLLM_API_KEY"] == "s3cret"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_on_loopback_no_key_is_required(tmp_path: Path, host: str) -> None:
    assert "VLLM_API_KEY" not in command_env(tmp_path, {}, host)


def test_the_environment_is_scrubbed(tmp_path: Path) -> None:
    kept = {
        "PATH": "/bin", "HOME": "/home/a", "CUDA_VISIBLE_DEVICES": "0", "KEYBOARD": "us",
        "TOKENIZERS_PARALLELISM": "false", "VLLM_CACHE_ROOT": "/cache",
    }  # fmt: skip
    dropped = {
        "AWS_SECRET_ACCESS_KEY": "s3cret", "AWS_ACCESS_KEY_ID": "s3cret", "HF_TOKEN": "s3cret",
        "OPENAI_API_KEY": "s3cret", "DB_PASSWORD": "s3cret", "VLLM_PORT": "tcp://10.0.0.1:80",
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_USE_RUST_FRONTEND": "1",
    }  # fmt: skip
    env = command_env(tmp_path, kept | dropped)
    assert kept.items() <= env.items()
    assert not dropped.keys() & env.keys()
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert env["VLLM_ENGINE_READY_TIMEOUT_S"] == "600"
    assert env["VLLM_NO_USAGE_STATS"] == env["HF_HUB_OFFLINE"] == "1"
    assert (Path(env["PYTHONPATH"].split(":")[0]) / "serving/supervisor/launch.py").is_file()


@pytest.mark.parametrize(
    ("limits", "extra_args", "expected"),
    [
        ({"priority": 3}, {}, ["--scheduling-policy", "priority"]),
        ({}, {}, []),
        ({"priority": 3}, {"scheduling_policy": "fcfs"}, ["--scheduling-policy=fcfs"]),
    ],
)
def test_keys_with_priorities_choose_the_scheduling_policy(
    tmp_path: Path, limits: dict[str, int], extra_args: dict[str, Any], expected: list[str]
) -> None:
    keys_file = tmp_path / "keys.toml"
    add_key(keys_file, "later", limits)
    command = vllm_command(
        ServingConfig(keys_file=str(keys_file), extra_args=extra_args), model=model(tmp_path),
        adapter=None, served_names=NAMES, host="127.0.0.1", port=8000, environ={},
    )  # fmt: skip
    start = next((n for n, word in enumerate(command.argv) if "scheduling" in word), None)
    found = [] if start is None else command.argv[start : start + len(expected)]
    assert found == expected


def test_the_server_knows_the_base_model_next_to_an_adapter(tmp_path: Path) -> None:
    given: dict[str, Any] = {"served_names": NAMES, "host": "127.0.0.1", "port": 8000}
    names = ("TUNELINE_BASE_NAME", "TUNELINE_BASE_DIGEST")
    config, adapter = ServingConfig(mode="adapter"), adapter_folder(tmp_path)
    command = vllm_command(config, model=model(tmp_path), adapter=adapter, environ={}, **given)
    assert [command.env[name] for name in names] == ["tickets-base", DIGEST]
    merged = vllm_command(ServingConfig(), model=model(tmp_path), adapter=None, environ={}, **given)
    assert not set(names) & set(merged.env)


def test_the_facts_are_those_of_what_was_trained(tmp_path: Path) -> None:
    assert artifact_facts(model(tmp_path), None, "tickets") == {
        "TUNELINE_ARTIFACT_NAME": "tickets",
        "TUNELINE_ARTIFACT_KIND": "model",
        "TUNELINE_ARTIFACT_DIGEST": DIGEST,
    }
    assert artifact_facts(model(tmp_path), tmp_path, "tickets")["TUNELINE_ARTIFACT_KIND"] == (
        "adapter"
    )


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"max_num_seqs": 8}, True), ({"extra_args": {"enable_prefix_caching": False}}, True),
        ({"port": 8001, "aliases": ["t"], "limits": {"max_n": 1}}, False),
        ({"extra_args": {"chat-template": "/here/t.jinja", "seed": None}}, False),
    ],
)  # fmt: skip
def test_equal_settings_of_the_engine_have_one_digest(
    tmp_path: Path, change: dict[str, Any], is_other: bool
) -> None:
    one, other = ServingConfig(), ServingConfig.model_validate(change)
    assert (engine_settings(one) != engine_settings(other)) is is_other
    given: Any = {"served_names": NAMES, "host": "127.0.0.1", "port": 8000, "adapter": None}
    command = vllm_command(other, model=model(tmp_path), environ={}, **given)
    assert command.env["TUNELINE_ENGINE"] == engine_settings(other)


@pytest.mark.parametrize(
    ("level", "trains", "kept"),
    [("ERROR", True, False), ("ERROR", False, True), ("DEBUG", True, True)],
)
def test_the_log_level_that_trl_sets_does_not_reach_vllm(
    monkeypatch: pytest.MonkeyPatch, level: str, trains: bool, kept: bool
) -> None:
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    if trains:
        monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))
    assert ("VLLM_LOGGING_LEVEL" in inherited({"VLLM_LOGGING_LEVEL": level})) is kept


@pytest.mark.parametrize(
    ("enforce_eager", "is_cpu", "is_eager"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
def test_lora_on_a_cpu_is_eager_unless_told_otherwise(
    tmp_path: Path, enforce_eager: bool | None, is_cpu: bool, is_eager: bool
) -> None:
    flags = server_flags(
        ServingConfig(mode="adapter", enforce_eager=enforce_eager), model="/m",
        adapter=adapter_folder(tmp_path), served_names=NAMES, host="127.0.0.1", port=8000,
        is_cpu=is_cpu,
    )  # fmt: skip
    found = [flag.reason for flag in flags if flag.words == ("--enforce-eager",)]
    assert len(found) == is_eager
    if enforce_eager is None and is_eager:
        assert found[0].startswith("LoRA on a CPU: vLLM compiles nothing")


def test_a_merged_model_is_compiled_unless_told_otherwise(tmp_path: Path) -> None:
    assert "--enforce-eager" not in args_of(tmp_path)
    assert "--enforce-eager" in args_of(tmp_path, enforce_eager=True)
