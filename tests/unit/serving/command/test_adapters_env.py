"""The flags and the environment of a server that takes adapters at run time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving import add_key, check_flags, plan_container
from serving.command import parser_check
from serving.command.arguments import served_names, server_args, vllm_command
from serving.command.environment import inherited
from serving.config import AdaptersConfig, ServingConfig
from tests.unit.serving.adapters.made import make_adapter
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource

DIGEST = "sha256:" + "1" * 64
NAMES = ["tickets", "tickets@111111111111"]


@pytest.fixture
def model(tmp_path: Path) -> ModelSource:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "dtype": "float16"}')
    return ModelSource("tiny", folder, DIGEST, "model")


def config_of(tmp_path: Path, *, admin: bool = True, **settings: Any) -> ServingConfig:
    file = tmp_path / "keys.toml"
    add_key(file, "ops", {"admin": admin})
    (tmp_path / "root").mkdir()
    adapters = AdaptersConfig(root=str(tmp_path / "root"), max_adapters=3, max_lora_rank=16)
    return ServingConfig(**{"keys_file": str(file), "adapters": adapters, **settings})


def environment(
    config: ServingConfig, model: ModelSource, adapter: Any = None, names: Sequence[str] = NAMES
) -> dict[str, str]:
    return vllm_command(
        config, model=model, adapter=adapter, served_names=names, host="127.0.0.1", port=8000,
        environ={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, state_dir=Path("state"),
    ).env  # fmt: skip


def test_the_server_knows_its_base_and_its_limits(tmp_path: Path, model: ModelSource) -> None:
    env = environment(config_of(tmp_path), model)
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    settings = json.loads(env["TUNELINE_ADAPTERS"])
    tolerances = settings.pop("tolerances")
    assert settings == {
        "root": str(tmp_path / "root"), "state_dir": str(Path("state").resolve()),
        "base_dir": str(model.path), "base_digest": DIGEST, "base_name": "tickets",
        "own_names": NAMES, "reserved_names": NAMES, "run_digest": None, "aliases": {},
        "max_adapters": 3, "max_lora_rank": 16,
    }  # fmt: skip
    assert tolerances["max_logprob_difference"] == 0.03  # of float16


def test_without_the_setting_vllm_has_no_route_that_loads(model: ModelSource) -> None:
    env = environment(ServingConfig(), model)
    assert not {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "TUNELINE_ADAPTERS"} & env.keys()


def test_a_later_version_may_take_over_the_name_of_the_run_s_adapter(
    tmp_path: Path, model: ModelSource
) -> None:
    config = config_of(tmp_path, mode="adapter")
    adapter = make_adapter(tmp_path / "adapter")
    env = environment(config, model, adapter)
    settings = json.loads(env["TUNELINE_ADAPTERS"])
    assert settings["base_name"] == "tickets-base"
    assert settings["reserved_names"] == ["tickets-base", "tickets@111111111111"]
    assert settings["own_names"] == ["tickets-base", *NAMES]
    assert settings["run_digest"] == adapter.digest
    assert settings["aliases"] == {}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("merged", {}), ("adapter", {"stable": "tickets", "latest": "tickets"})],
)
def test_aliases_of_the_run_s_adapter_mean_its_name(
    tmp_path: Path, model: ModelSource, mode: str, expected: dict[str, str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter") if mode == "adapter" else None
    names = served_names("tickets", DIGEST, ["stable", "latest"])
    env = environment(config_of(tmp_path, mode=mode), model, adapter, names)
    settings = json.loads(env["TUNELINE_ADAPTERS"])
    assert settings["aliases"] == expected
    assert {"stable", "latest"} < set(settings["reserved_names"])


def test_variables_that_load_adapters_from_other_places_are_not_inherited() -> None:
    names = {"VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_LORA_RESOLVER_HF_REPO_LIST"}
    assert inherited({**dict.fromkeys(names, "/any"), "LANG": "C"}) == {"LANG": "C"}


@pytest.mark.parametrize(
    ("r", "mode", "expected"),
    [
        (0, "merged", ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "3",
                       "--max-cpu-loras", "7"]),
        (2, "adapter", ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "5",
                        "--max-cpu-loras", "9", "--lora-modules"]),
        (30, "adapter", ["--enable-lora", "--max-lora-rank", "32", "--max-loras", "5",
                         "--max-cpu-loras", "9", "--lora-modules"]),
    ],
)  # fmt: skip
def test_vllm_has_room_for_all_adapters_and_the_versions_before(
    tmp_path: Path, r: int, mode: str, expected: list[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", r=r).path if r else None
    args = server_args(
        config_of(tmp_path, mode=mode), model="/m", adapter=adapter, served_names=NAMES,
        host="127.0.0.1", port=8000,
    )  # fmt: skip
    start = args.index("--enable-lora")
    assert args[start : start + len(expected)] == expected
    names = args[args.index("--served-model-name") + 1 :]
    assert names[:2] == (NAMES if adapter is None else ["tickets-base", "--enable-lora"])


def test_an_admin_key_and_the_folder_are_required(tmp_path: Path, model: ModelSource) -> None:
    config = config_of(tmp_path, admin=False)
    with pytest.raises(ConfigError, match="has no admin key") as caught:
        environment(config, model)
    assert "tuneline keys add ops --file" in str(caught.value.hint)
    add_key(tmp_path / "keys.toml", "root", {"admin": True})
    (tmp_path / "root").rmdir()
    with pytest.raises(ConfigError, match=r"serving\.adapters\.root: no such folder"):
        environment(config, model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapters": {"root": "."}}, "needs keys_file, with an admin key"),
        (
            {"adapters": {"root": "."}, "keys_file": "k", "extra_args": {"--api-server-count": 2}},
            r"extra_args\.--api-server-count is 2; expected 1, because vLLM takes adapters at run "
            r"time with one front end only\. Start several servers",
        ),
        (
            {"adapters": {"root": "."}, "keys_file": "k", "extra_args": {"data_parallel_size": 4}},
            "expected 1, because the proof of an adapter would reach one engine only",
        ),
        ({"adapters": {"root": ".", "max_lora_rank": 20}}, "max_lora_rank"),
        ({"extra_args": {"max_loras": 3}}, r"set serving\.adapters\.max_adapters"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(ServingConfig, settings, "serving")


def test_one_front_end_may_be_written_down() -> None:
    given = {"api_server_count": 1, "data_parallel_size": 1}
    settings = {"adapters": {"root": "."}, "keys_file": "k", "extra_args": given}
    assert validate_config(ServingConfig, settings, "serving").extra_args == given


def test_a_container_has_its_adapters_in_the_folder_of_the_pod(
    tmp_path: Path, model: ModelSource
) -> None:
    config = config_of(tmp_path)
    args, env = plan_container(
        config, model, model_dir="/model", host="0.0.0.0", port=8000,  # noqa: S104
        adapters_dir="/adapters",
    )  # fmt: skip
    assert "--enable-lora" in args
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    settings = json.loads(env["TUNELINE_ADAPTERS"])
    here = json.loads(environment(config, model)["TUNELINE_ADAPTERS"])
    places = {
        "root": "/adapters", "state_dir": f"/adapters/state-{model.name}", "base_dir": "/model",
    }  # fmt: skip
    assert settings.items() >= places.items()
    assert settings["base_digest"] == here["base_digest"] == model.digest
    assert settings["tolerances"] == here["tolerances"]


@pytest.mark.parametrize("has_adapters", [True, False])
def test_adapters_of_a_container_need_the_server_and_the_claim(
    tmp_path: Path, model: ModelSource, has_adapters: bool
) -> None:
    config = config_of(tmp_path) if has_adapters else ServingConfig()
    with pytest.raises(ConfigError, match=r"serving\.adapters and k8s\.adapters go together"):
        plan_container(
            config, model, model_dir="/model", host="0.0.0.0", port=8000,  # noqa: S104
            adapters_dir=None if has_adapters else "/adapters",
        )  # fmt: skip


def test_a_machine_without_vllm_says_that_flags_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parser_check, "vllm_version", lambda: None)
    assert check_flags(ServingConfig()) == "not checked: vLLM is not installed here"
