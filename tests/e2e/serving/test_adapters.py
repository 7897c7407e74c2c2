"""Adapters on a live vLLM: proven, named, rolled back, restored; and those that would do nothing.

The server has an adapter of its own from its start, next to its base. It applies adapters to all
linear layers except for down_proj (`--lora-target-modules`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serving import (
    add_adapter,
    add_key,
    describe_adapter,
    list_adapters,
    remove_adapter,
    roll_back_adapter,
    running_server,
)
from serving.config import AdaptersConfig, ServedParityConfig, ServingConfig
from serving.parity import prove_served
from serving.supervisor.group import group_members
from serving.supervisor.process import RunningServer
from tests.commands import tuneline_here
from tests.e2e.serving.adapter_variants import (
    SERVED_MODULES,
    forged_reference,
    only,
    variant,
    with_reference,
)
from training.config import DataConfig, ReferenceConfig, TrainingConfig
from tuneline.core.artifact import Artifact, Input
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    ServerError,
    TunelineError,
    VerdictError,
)
from tuneline.core.reference import read_reference
from tuneline.models.source import ModelSource

QUESTION: Any = {"role": "user", "content": "I want a refund."}


@dataclass(frozen=True)
class Scene:
    """A folder of artifacts, two good adapters with references, and the keys."""

    root: Path
    config: ServingConfig
    keys: dict[str, str]
    first: tuple[Artifact, Artifact]
    second: tuple[Artifact, Artifact]


@pytest.fixture(scope="module")
def scene(
    base: ModelSource,
    adapter: Artifact,
    serving_settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:
    root = tmp_path_factory.mktemp("artifacts")
    file = root.parent / f"{root.name}-keys.toml"
    keys = {
        "ops": add_key(file, "ops", {"admin": True}),
        "app": add_key(file, "app", {"models": ["replies"]}),
    }
    pairs = []
    for name, scale in (("one", 1.0), ("two", 0.97)):
        made = variant(adapter, root / name / "adapter", only(SERVED_MODULES, scale))
        pairs.append((made, with_reference(made, base, root / name / "reference-1")))
    config = ServingConfig(
        **serving_settings, mode="adapter", keys_file=str(file), log_format="json",
        adapters=AdaptersConfig(root=str(root), max_adapters=2, max_lora_rank=32),
        extra_args={"lora_target_modules": list(SERVED_MODULES)},
    )  # fmt: skip
    return Scene(root, config, keys, pairs[0], pairs[1])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def server(scene: Scene, base: ModelSource, run_dir: Path) -> Iterator[RunningServer]:
    with start(scene, base, run_dir) as running:
        yield running


def start(scene: Scene, base: ModelSource, run_dir: Path) -> AbstractContextManager[RunningServer]:
    return running_server(
        scene.config, base, name="tickets", adapter=scene.first[0], log_path=run_dir / "vllm.log"
    )


@pytest.fixture
def admin(server: RunningServer, scene: Scene) -> Endpoint:
    return Endpoint(server.endpoint.url, "adapters", scene.keys["ops"])


@pytest.fixture
def app(server: RunningServer, scene: Scene) -> Iterator[openai.OpenAI]:
    url, key = server.endpoint.url, scene.keys["app"]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


def answer(client: openai.OpenAI, model: str = "replies") -> Any:
    return client.chat.completions.with_raw_response.create(
        model=model, messages=[QUESTION], temperature=0, max_tokens=24
    )


def text_of(reference: Artifact) -> str:
    found = {entry.messages[-1]["content"]: entry.text for entry in read_reference(reference)}
    return found[QUESTION["content"]]


def test_base_and_adapter_are_served_side_by_side(
    server: RunningServer, scene: Scene, reference: Artifact, tmp_path: Path
) -> None:
    assert server.pid in group_members(server.pid)
    assert len(group_members(server.pid)) >= 2  # the HTTP server and its engine
    for name, expected in [
        *((name, scene.first[1]) for name in server.served_names),
        ("tickets-base", reference),
    ]:
        endpoint = Endpoint(server.endpoint.url, name, scene.keys["ops"])
        parity = prove_served(ServedParityConfig(), expected, endpoint, tmp_path / name)
        assert parity.manifest.metrics["problems"] == []
        assert parity.manifest.metrics["num_equal_answers"] == 8
    assert 'kind="adapter",name="tickets"' in httpx.get(server.metrics_url).text


def test_an_adapter_trained_on_preferences_is_proven(
    admin: Endpoint, scene: Scene, base: ModelSource, questions: dict[str, str], tmp_path: Path
) -> None:
    from training import build_reference, prepare_dataset, train_adapter

    answers = list(questions.values())
    rows = [
        {"prompt": question, "chosen": better, "rejected": learnt}
        for (question, learnt), better in zip(
            questions.items(), [*answers[1:], answers[0]], strict=True
        )
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path="pairs.jsonl", heldout_fraction=0.25)
    dataset = prepare_dataset(data, relative_to=tmp_path, out=tmp_path / "dataset")
    training = TrainingConfig.model_validate(
        {"method": {"type": "dpo"}, "r": 8, "target_modules": SERVED_MODULES, "max_steps": 12,
         "learning_rate": 5e-3, "per_device_train_batch_size": 6, "max_length": 256,
         "gradient_accumulation_steps": 1, "report_to": []}
    )  # fmt: skip
    folder = scene.root / "pairs"
    adapter = train_adapter(training, dataset, base, folder / "adapter")
    assert adapter.manifest.metrics["train_loss"] < 0.6  # of ln 2 at the first step
    expected = ReferenceConfig(num_prompts=2, max_new_tokens=24)
    build_reference(expected, dataset, base, adapter, folder / "reference-1")
    entry = add_adapter(admin, "pairs", adapter.path)
    assert entry["digest"] == adapter.digest
    assert entry["proof"]["num_equal_answers"] == entry["proof"]["num_prompts"] == 2
    assert entry["proof"]["max_logprob_difference"] < 1e-3
    remove_adapter(admin, "pairs")


def test_an_adapter_is_proven_and_then_named(
    admin: Endpoint, app: openai.OpenAI, scene: Scene, server: RunningServer
) -> None:
    with pytest.raises(openai.NotFoundError):
        answer(app)
    adapter, reference = scene.first
    entry = add_adapter(admin, "replies", adapter.path)
    assert entry["digest"] == adapter.digest
    assert entry["proof"]["num_equal_answers"] == entry["proof"]["num_prompts"] == 8
    assert entry["proof"]["max_logprob_difference"] < 1e-3
    raw = answer(app)
    completion = raw.parse()
    assert completion.choices[0].message.content == text_of(reference)
    fixed = f"replies@{adapter.short_digest}"
    assert completion.model == fixed
    assert raw.headers["x-tuneline-artifact"] == adapter.digest
    assert answer(app, fixed).parse().choices[0].message.content == text_of(reference)
    with pytest.raises(openai.PermissionDeniedError):
        answer(app, "tickets")
    models = [model.model_dump() for model in app.models.list()]
    names = [model["id"] for model in models]
    assert names == ["tickets-base", *server.served_names, "replies", fixed]
    assert {model["id"]: model["root"] for model in models}["replies"] == "replies"
    assert app.models.retrieve("replies").id == "replies"
    metrics = httpx.get(server.metrics_url).text
    assert f'tuneline_adapter_info{{adapter="replies",digest="{adapter.digest}"}} 1.0' in metrics
    assert 'tuneline_adapter_requests_total{adapter="replies",status="200"} 2.0' in metrics
    assert '"adapter": "replies"' in server.log_path.read_text()


def test_a_new_version_replaces_the_old_and_a_roll_back_brings_it_again(
    admin: Endpoint, app: openai.OpenAI, scene: Scene
) -> None:
    (first, _), (second, reference) = scene.first, scene.second
    entry = add_adapter(admin, "replies", second.path, reference.path)
    assert (entry["digest"], entry["previous"]) == (second.digest, first.digest)
    assert answer(app).headers["x-tuneline-artifact"] == second.digest
    assert answer(app, f"replies@{first.short_digest}").parse().model.endswith(first.short_digest)
    back = roll_back_adapter(admin, "replies")
    assert (back["digest"], back["previous"]) == (first.digest, second.digest)
    assert answer(app).headers["x-tuneline-artifact"] == first.digest
    with pytest.raises(ConfigError, match="is served already"):
        add_adapter(admin, "replies", first.path)


Build = Callable[[Scene, ModelSource, Artifact, Path], tuple[Artifact, Artifact]]


def renamed(scene: Scene, base: ModelSource, adapter: Artifact, out: Path) -> Any:
    """Return an adapter of a model that has its layers below `language_model`."""

    def change(name: str, tensor: Any) -> tuple[str, Any]:
        return name.replace("model.layers", "language_model.model.layers"), tensor

    made = variant(scene.first[0], out / "adapter", change)
    return made, forged_reference(scene.first[1], made, out / "reference")


def of_zeros(scene: Scene, base: ModelSource, adapter: Artifact, out: Path) -> Any:
    made = variant(scene.first[0], out / "adapter", only(SERVED_MODULES, 0.0))
    return made, forged_reference(scene.first[1], made, out / "reference")


def of_another_base(scene: Scene, base: ModelSource, adapter: Artifact, out: Path) -> Any:
    other = [Input(role="base", kind="base-model", digest="sha256:" + "0" * 64)]
    made = variant(scene.first[0], out / "adapter", only(SERVED_MODULES, 0.95), inputs=other)
    return made, forged_reference(scene.first[1], made, out / "reference")


def of_a_high_rank(scene: Scene, base: ModelSource, adapter: Artifact, out: Path) -> Any:
    made = variant(scene.first[0], out / "adapter", config={"r": 64})
    return made, forged_reference(scene.first[1], made, out / "reference")


def with_another_reference(scene: Scene, base: ModelSource, adapter: Artifact, out: Path) -> Any:
    made = variant(scene.first[0], out / "adapter", only(SERVED_MODULES, 0.9))
    return made, scene.first[1]


def too_weak(scene: Scene, base: ModelSource, adapter: Artifact, out: Path) -> Any:
    """Return an adapter that changes nothing, with a reference in which it does."""
    made = variant(scene.first[0], out / "adapter", only(SERVED_MODULES, 1e-7))
    return made, forged_reference(scene.first[1], made, out / "reference")


def of_modules_that_the_server_leaves_out(
    scene: Scene, base: ModelSource, adapter: Artifact, out: Path
) -> Any:
    """Return a true adapter of down_proj, which vLLM loads and does not apply."""
    made = variant(
        adapter, out / "adapter", only(["down_proj"]), config={"target_modules": ["down_proj"]}
    )
    return made, with_reference(made, base, out / "reference")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (renamed, ArtifactError, "the base model has no module language_model.model.layers.0"),
        (of_zeros, ArtifactError, "all A or all B are zero, so the adapter changes nothing"),
        (of_another_base, ArtifactError, "names the base 000000000000; expected"),
        (of_a_high_rank, ArtifactError, "the rank is 64; expected at most 32"),
        (with_another_reference, ArtifactError, "its manifest names the adapter"),
        (too_weak, VerdictError, "the adapter is loaded and not applied"),
        (of_modules_that_the_server_leaves_out, VerdictError, "the proof of replies@"),
    ],
)
def test_an_adapter_that_would_do_nothing_is_refused_and_the_old_one_stays(
    admin: Endpoint,
    app: openai.OpenAI,
    scene: Scene,
    base: ModelSource,
    adapter: Artifact,
    build: Build,
    error: type[TunelineError],
    message: str,
) -> None:
    made, reference = build(scene, base, adapter, scene.root / build.__name__)
    with pytest.raises(error) as caught:
        add_adapter(admin, "replies", made.path, reference.path)
    assert message in caught.value.message
    assert caught.value.exit_code == (6 if error is VerdictError else 3)
    assert answer(app).headers["x-tuneline-artifact"] == scene.first[0].digest
    hidden = f"replies@{made.short_digest}"
    assert hidden not in [model.id for model in app.models.list()]
    with pytest.raises(openai.NotFoundError):
        answer(app, hidden)


def test_only_an_admin_changes_adapters_and_only_below_the_root(
    admin: Endpoint, scene: Scene, server: RunningServer, tmp_path: Path
) -> None:
    adapter, reference = scene.second
    url, app_key = server.endpoint.url, scene.keys["app"]
    with pytest.raises(ServerError, match="is not an admin key"):
        add_adapter(Endpoint(url, "adapters", app_key), "x", adapter.path, reference.path)
    with pytest.raises(ServerError, match="needs a key; none was sent"):
        list_adapters(Endpoint(url, "adapters"))
    outside = shutil.copytree(adapter.path, tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"below serving\.adapters\.root"):
        add_adapter(admin, "x", outside, reference.path)
    (scene.root / "link").symlink_to(outside)
    with pytest.raises(ConfigError, match=r"below serving\.adapters\.root"):
        add_adapter(admin, "x", scene.root / "link", reference.path)
    with pytest.raises(ConfigError, match="is a name of the server's own model"):
        add_adapter(admin, "tickets-base", adapter.path, reference.path)
    # vLLM's own routes load any folder; nobody reaches them.
    body = {"lora_name": "x", "lora_path": str(outside)}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"):
        posted = httpx.post(
            url.removesuffix("/v1") + path, json=body,
            headers={"authorization": f"Bearer {scene.keys['ops']}"},
        )  # fmt: skip
        assert posted.status_code == 404


def test_files_that_change_after_the_manifest_are_refused(admin: Endpoint, scene: Scene) -> None:
    adapter = shutil.copytree(scene.second[0].path, scene.root / "changed")
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="differs from its manifest"):
        add_adapter(admin, "other", adapter, scene.second[1].path)
    assert [entry["name"] for entry in list_adapters(admin)] == ["replies"]


def test_the_commands_say_what_happened(
    server: RunningServer, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", scene.keys["ops"])
    url, adapter = server.endpoint.url, scene.second[0]
    listed = tuneline_here("adapters", "list", url)
    assert listed.stdout.startswith(f"replies  {scene.first[0].short_digest}  serving\n")
    added = tuneline_here("adapters", "add", url, str(adapter.path), "--name", "by-hand")
    assert added.returncode == 0, added.stderr
    assert added.stdout.startswith(f"by-hand: {adapter.short_digest} is served; 8 of 8 answers")
    weak = scene.root / "too_weak"
    failed = tuneline_here(
        "adapters", "add", url, str(weak / "adapter"), "--name", "by-hand", "--reference",
        str(weak / "reference"),
    )  # fmt: skip
    assert failed.returncode == 6
    assert "error: the proof of by-hand@" in failed.stderr
    none = tuneline_here("adapters", "roll-back", url, "by-hand")
    assert none.returncode == 2
    assert "has no earlier version" in none.stderr
    assert tuneline_here("adapters", "remove", url, "by-hand").stdout == "removed by-hand\n"


def test_a_new_version_takes_over_the_name_of_the_run_until_it_is_removed(
    admin: Endpoint, server: RunningServer, scene: Scene
) -> None:
    (first, _), (second, reference) = scene.first, scene.second
    with openai.OpenAI(
        base_url=server.endpoint.url, api_key=scene.keys["ops"], max_retries=0
    ) as ops:
        add_adapter(admin, "tickets", second.path, reference.path)
        assert answer(ops, "tickets").headers["x-tuneline-artifact"] == second.digest
        fixed = f"tickets@{first.short_digest}"
        assert answer(ops, fixed).headers["x-tuneline-artifact"] == first.digest
        names = [model.id for model in ops.models.list()]
        assert names.count("tickets") == 1
        remove_adapter(admin, "tickets")
        assert answer(ops, "tickets").headers["x-tuneline-artifact"] == first.digest
        assert answer(ops, "tickets").parse().model == "tickets"


def test_a_list_is_brought_to_the_server(
    server: RunningServer,
    admin: Endpoint,
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", scene.keys["ops"])
    file = tmp_path / "desired.json"

    def applied(**wanted: Artifact) -> dict[str, str]:
        entries = {
            name: describe_adapter(adapter.path, scene.root, str(scene.root)).model_dump()
            for name, adapter in wanted.items()
        }
        file.write_text(json.dumps(entries))
        done = tuneline_here("adapters", "apply", server.endpoint.url, str(file), "--json")
        assert done.returncode == 0, done.stderr
        return {one["name"]: one["action"] for one in json.loads(done.stdout)["adapters"]}

    (first, _), (second, _) = scene.first, scene.second
    assert applied(replies=second, listed=first) == {"replies": "rolled back", "listed": "added"}
    found = {entry["name"]: entry["digest"] for entry in list_adapters(admin)}
    assert found == {"replies": second.digest, "listed": first.digest}
    assert applied(replies=first) == {"replies": "rolled back", "listed": "removed"}


def test_a_removed_adapter_is_gone(admin: Endpoint, server: RunningServer, scene: Scene) -> None:
    adapter, reference = scene.second
    add_adapter(admin, "short-lived", adapter.path, reference.path)
    remove_adapter(admin, "short-lived")
    ops = openai.OpenAI(base_url=server.endpoint.url, api_key=scene.keys["ops"], max_retries=0)
    with pytest.raises(openai.NotFoundError):
        answer(ops, "short-lived")
    with pytest.raises(ConfigError, match="there is no adapter 'short-lived'"):
        remove_adapter(admin, "short-lived")
    add_adapter(admin, "kept", adapter.path, reference.path)


def test_adapters_survive_a_restart_and_a_kill_is_the_reason_of_an_error(
    server: RunningServer, scene: Scene, base: ModelSource, run_dir: Path, tmp_path: Path
) -> None:
    """The last test of the module: a second server takes over the folder of the first."""
    os.kill(server.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + 30
    while group_members(server.pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    # The current version of "kept" is the version before of "replies"; both have one copy.
    copy = next((run_dir / "adapters" / "versions").glob(f"{scene.second[0].short_digest}-*"))
    weights = copy / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    out = tmp_path / "killed"
    with pytest.raises(ServerError, match="vLLM died while it was in use") as caught:  # noqa: SIM117
        with start(scene, base, run_dir) as again:
            assert_the_changed_copy_is_named(again, scene)
            os.kill(again.pid, signal.SIGKILL)
            prove_served(ServedParityConfig(), scene.first[1], again.endpoint, out)
    assert "SIGKILL" in str(caught.value)
    assert isinstance(caught.value.__cause__, ServerError), "the client's error is kept"
    assert group_members(again.pid) == []
    assert not out.exists()


def assert_the_changed_copy_is_named(server: RunningServer, scene: Scene) -> None:
    (first, _), (second, reference) = scene.first, scene.second
    ready = httpx.get(server.endpoint.url.removesuffix("/v1") + "/ready").json()
    assert ready["failed_adapters"] == ["kept"]
    admin = Endpoint(server.endpoint.url, "adapters", scene.keys["ops"])
    deadline_s = time.monotonic() + 30
    # The versions before are proven after the server is ready.
    while True:
        entries = {entry["name"]: entry for entry in list_adapters(admin)}
        if entries["replies"]["previous"] is None or time.monotonic() > deadline_s:
            break
        time.sleep(0.1)
    assert {name: entry["state"] for name, entry in entries.items()} == {
        "replies": "serving", "kept": "failed",
    }  # fmt: skip
    assert "differs from its manifest" in entries["kept"]["reason"]
    assert entries["replies"]["digest"] == first.digest
    assert entries["replies"]["previous"] is None
    with openai.OpenAI(
        base_url=server.endpoint.url, api_key=scene.keys["ops"], max_retries=0
    ) as client:
        assert answer(client).headers["x-tuneline-artifact"] == first.digest
        with pytest.raises(openai.InternalServerError) as caught:
            answer(client, "kept")
        assert caught.value.code == "adapter_failed"
        add_adapter(admin, "kept", second.path, reference.path)
        assert answer(client, "kept").parse().model == f"kept@{second.short_digest}"
