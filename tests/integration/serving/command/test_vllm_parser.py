"""The arguments that we write are read by vLLM's own parser as they are meant."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from serving.command.arguments import server_args
from serving.command.flags import FLAGS_WITHOUT_NEGATION, MIDDLEWARE
from serving.config import OWN_FLAGS, ServingConfig
from tuneline.core.vllm_limits import LORA_RANKS
from tuneline.models.folder import served_weight_files

OPEN = {"/health", "/metrics", "/version"}
NAMES = ["tickets", "tickets@0123456789ab"]


@pytest.fixture(scope="module")
def parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        ("model a b", {}, "a b model"),
        ("model a b", {"model": "a b"}, "a b"),
        ("model consolidated.00 consolidated.01", {}, "consolidated.00 consolidated.01"),
        ("model consolidated", {"model": "model"}, "consolidated"),
        ("consolidated.00 consolidated.01", {"consolidated": "consolidated.01"}, "consolidated.01"),
    ],
)
def test_the_files_that_vllm_reads_of_a_folder(
    names: str, index: dict[str, str], expected: str, tmp_path: Path
) -> None:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    for name in names.split():
        (tmp_path / f"{name}.safetensors").touch()
    for name, shards in index.items():
        weight_map = {shard: f"{shard}.safetensors" for shard in shards.split()}
        path = tmp_path / f"{name}.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": weight_map}))
    loader = DefaultModelLoader(LoadConfig())
    _, read, _, _ = loader._prepare_weights(str(tmp_path), None, None, False, None)
    assert sorted(Path(path).name for path in read) == [
        f"{name}.safetensors" for name in expected.split()
    ]
    assert served_weight_files(tmp_path) == sorted(map(Path, read))


def parse(parser: Any, adapter: Path | None = None, **settings: Any) -> Any:
    args = server_args(
        ServingConfig(**settings), model="/models/tickets", adapter=adapter, served_names=NAMES,
        host="127.0.0.1", port=8123,
    )  # fmt: skip
    return parser.parse_args(args)


def test_merged(parser: Any) -> None:
    args = parse(
        parser, dtype="float32", max_model_len=512, max_num_seqs=4, max_num_batched_tokens=1024,
        enforce_eager=True, shutdown_timeout=7,
    )  # fmt: skip
    assert (args.model_tag, args.host, args.port) == ("/models/tickets", "127.0.0.1", 8123)
    assert args.served_model_name == NAMES
    assert (args.dtype, args.max_model_len, args.max_num_seqs) == ("float32", 512, 4)
    assert args.max_num_batched_tokens == 1024
    assert (args.enforce_eager, args.shutdown_timeout) == (True, 7)
    assert args.middleware == [MIDDLEWARE]
    assert args.disable_fastapi_docs is True
    assert args.disable_uvicorn_access_log is True
    assert args.structured_outputs_config.backend == "xgrammar"
    assert args.structured_outputs_config.disable_any_whitespace is True
    assert args.generation_config == "auto"
    assert not args.trust_remote_code
    assert not args.enable_lora


def test_a_gpu_host(parser: Any) -> None:
    args = parse(parser, gpu_memory_utilization=0.85, tensor_parallel_size=2, dtype="bfloat16")
    assert (args.gpu_memory_utilization, args.tensor_parallel_size) == (0.85, 2)


def test_adapter(parser: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 48}))
    for name in ("tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text("{}")
    args = parse(parser, adapter=tmp_path, mode="adapter")
    assert args.served_model_name == ["tickets-base"]
    assert [(lora.name, lora.path) for lora in args.lora_modules] == [
        (name, str(tmp_path)) for name in NAMES
    ]
    assert (args.enable_lora, args.max_lora_rank, args.max_loras) == (True, 64, 2)
    assert args.tokenizer == args.generation_config == str(tmp_path)


def test_extra_args_reach_flags_of_every_kind(parser: Any) -> None:
    args = parse(
        parser,
        extra_args={
            "enable_prefix_caching": False,
            "max-num-queued-reqs": 64,
            "kv_cache_memory_bytes": "512M",
            "hf_overrides": {"rope_scaling": None},
            "aggregate_engine_logging": True,
            "allowed_origins": ["https://a.example"],
            "seed": -1,
            "quantization": None,
        },
    )
    assert args.enable_prefix_caching is False
    assert args.max_num_queued_reqs == 64
    assert args.kv_cache_memory_bytes == 512 * 2**20
    assert args.hf_overrides == {"rope_scaling": None}
    assert args.aggregate_engine_logging is True
    assert args.allowed_origins == ["https://a.example"]
    assert args.seed == -1
    assert args.quantization is None


def test_a_key_of_a_mapping_leaves_the_limit_of_an_answer(parser: Any) -> None:
    args = parse(
        parser, limits={"max_tokens": 100},
        extra_args={
            "override_generation_config.top_p": 0.5, "structured_outputs_config.backend": "guidance"
        },
    )  # fmt: skip
    assert args.runner == "generate"
    assert args.override_generation_config == {"top_p": 0.5, "max_new_tokens": 100}
    assert args.structured_outputs_config.backend == "guidance"


def test_every_boolean_flag_can_be_given_as_true_and_false(parser: Any) -> None:
    names = [
        action.option_strings[0].removeprefix("--")
        for action in parser._actions
        if action.nargs == 0 and action.dest != "help"
    ]
    assert len(names) > 80
    for name in names:
        key = name.replace("-", "_")
        if key in OWN_FLAGS or key in ServingConfig.model_fields:
            continue
        parse(parser, extra_args={name: True})
        assert getattr(parse(parser, extra_args={name: False}), key) is False
    without = {name for name in names if f"--no-{name}" not in parser._option_string_actions}
    assert without - {"log-config-file"} == FLAGS_WITHOUT_NEGATION


@pytest.mark.parametrize(
    ("routes", "guarded"),
    [
        (["responses", "messages", "tokenize", "page"], ["/v1/chat/completions", "/tokenize"]),
        (
            ["embeddings", "pooling", "classify", "score"],
            ["/v1/embeddings", "/pooling", "/classify", "/score", "/rerank", "/v2/rerank"],
        ),
    ],
)
def test_no_route_that_vllm_lists_answers_without_a_key(
    parser: Any, monkeypatch: pytest.MonkeyPatch, routes: list[str], guarded: list[str]
) -> None:
    """Every route of every task, of LoRA at run time and of the development mode."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.tasks import SupportedTask

    for name in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_API_KEY", "key")
    settings = json.dumps({"routes": routes})
    monkeypatch.setenv("TUNELINE_SETTINGS", settings)
    app = build_app(parse(parser, routes=routes), get_args(SupportedTask))
    asked = {
        (method, re.sub(r"{\w+(:\w+)?}", "x", route.path))
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if route.path not in OPEN
    }
    assert len(asked) > 50
    asked |= {("POST", path) for path in guarded}
    assert {("POST", "/invocations"), ("POST", "/v1/load_lora_adapter")} <= asked

    async def statuses() -> dict[tuple[str, str], int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as client:
            return {
                (method, path): (await client.request(method, path)).status_code
                for method, path in sorted(asked)
            }

    found = asyncio.run(statuses())
    assert {one: status for one, status in found.items() if status not in (401, 404)} == {}
    assert {found["POST", path] for path in guarded} == {401}
    assert found["POST", "/invocations"] == 404


def test_the_flags_and_ranks_we_name_exist(parser: Any) -> None:
    flags = parser._option_string_actions
    assert tuple(flags["--max-lora-rank"].choices) == LORA_RANKS
    missing = [key for key in OWN_FLAGS if "--" + key.replace("_", "-") not in flags]
    assert missing == ["model_tag"]  # the positional argument


def test_the_function_that_launch_replaces_is_vllms() -> None:
    from vllm.utils import system_utils

    assert inspect.signature(system_utils.get_mp_context).parameters == {}
