"""Names, keys and failures of adapters at run time. The app around it plays vLLM's LoRA routes;
tests/e2e/serving/test_adapters.py has the same with vLLM itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from serving.adapters.settings import VARIABLE
from serving.adapters.store import STATE_FILE, read_state
from serving.middleware import keys as keys_module
from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Receive, Scope, Send, answer, error_body
from serving.middleware.settings import Settings
from serving.middleware.watch import watch_engine
from tests.unit.serving.adapters.made import (
    make_adapter,
    make_base,
    make_reference,
    settings_of,
)
from tests.unit.serving.adapters.test_proof import completion
from tests.unit.serving.middleware.harness import CHAT, Answer, send_request
from tuneline.core.artifact import Artifact, new_artifact
from tuneline.core.reference import REFERENCE_FILE

ADAPTERS = "/v1/adapters"


class Vllm:
    """The routes that adapters need. The base answers with token 3, an adapter with token 7."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.asked: list[str] = []
        self.refuses_loading = False
        self.raises: dict[str, Exception] = {}
        """By path, what the next request there raises, after it has had its effect."""
        self.broken: set[str] = set()
        """Digests, in names, of adapters that answer as the base does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        fields: dict[str, Any] = {}
        if scope["method"] == "POST":
            fields = json.loads((await receive())["body"])
        if path == "/v1/models":
            names = ["tickets", *self.loaded]
            await answer(send, 200, {"data": [{"id": name, "root": "/x"} for name in names]})
        elif path == "/v1/load_lora_adapter" and self.refuses_loading:
            await refuse(send, 500, "InternalServerError", "expected target modules in {...}")
        elif path == "/v1/load_lora_adapter":
            if fields["lora_name"] in self.loaded:
                await refuse(send, 400, "InvalidUserInput", "has already been loaded")
                return
            self.loaded[fields["lora_name"]] = fields["lora_path"]
            if error := self.raises.pop(path, None):
                raise error
            await answer(send, 200, {})
        elif path == "/v1/unload_lora_adapter":
            if self.loaded.pop(fields["lora_name"], None) is None:
                await refuse(send, 404, "NotFoundError", "cannot be found")
                return
            await answer(send, 200, {})
        else:
            model = fields["model"]
            self.asked.append(model)
            if (error := self.raises.get(path)) and "@" in model:
                raise error
            if model != "tickets" and model not in self.loaded:
                await refuse(send, 404, "NotFoundError", "no such model")
                return
            is_base = model == "tickets" or model.partition("@")[2] in self.broken
            await answer(send, 200, completion(3 if is_base else 7, -0.5) | {"model": model})


async def refuse(send: Send, status: int, kind: str, message: str) -> None:
    await answer(send, status, error_body(kind, message, status))


class Scene:
    """A middleware with keys, and artifacts below its root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vllm = Vllm()
        self.middleware = TunelineMiddleware(self.vllm)

    def artifact(self, name: str, scale: float = 1.0) -> Artifact:
        made = make_adapter(self.root / name, scale=scale)
        make_reference(self.root / f"{name}-reference", made)
        return made

    async def add(self, name: str, artifact: Artifact, key: str | None = "admin") -> Answer:
        at = str(artifact.path)
        fields = {"name": name, "adapter": at, "reference": f"{at}-reference"}
        return await send_request(self.middleware, ADAPTERS, fields, key=key)

    async def send(self, path: str, method: str = "GET", key: str = "admin") -> Answer:
        fields: dict[str, Any] | None = {} if method == "POST" else None
        return await send_request(self.middleware, path, fields, method=method, key=key)

    async def ask(self, model: str, key: str = "admin") -> Answer:
        return await send_request(self.middleware, CHAT, {"model": model}, key=key)

    async def models(self) -> list[str]:
        page = json.loads((await self.send("/v1/models")).body)
        return [entry["id"] for entry in page["data"]]


@pytest.fixture
def new_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Scene]:
    root = tmp_path / "root"
    make_base(root / "base")
    monkeypatch.setenv(VARIABLE, settings_of(root).model_dump_json())
    keys = tmp_path / "keys.toml"
    lines = []
    for name, more in (("admin", "admin = true"), ("app", 'models = ["replies"]')):
        digest = hashlib.sha256(name.encode()).hexdigest()
        lines += [f"[{name}]", f'sha256 = "{digest}"', more]
    keys.write_text("\n".join(lines))
    monkeypatch.setenv("TUNELINE_KEYS_FILE", str(keys))
    monkeypatch.setattr(keys_module, "RELOAD_INTERVAL_S", 0.0)

    def start() -> Scene:
        scene = Scene(root)
        assert scene.middleware.adapters is not None
        return scene

    return start


@pytest.fixture
def scene(new_scene: Callable[[], Scene]) -> Scene:
    found = new_scene()
    assert found.middleware.adapters is not None
    asyncio.run(found.middleware.adapters.restore())
    return found


def close(scene: Scene) -> None:
    """Free the folder as the end of the process does."""
    assert scene.middleware.adapters is not None
    scene.middleware.adapters._state_lock.close()


def test_a_name_reaches_the_proven_version(scene: Scene) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)

    async def play() -> None:
        assert (await scene.ask("replies", "app")).status == 404
        added = await scene.add("replies", one)
        assert added.status == 200, added.body
        first = await scene.ask("replies", "app")
        assert json.loads(first.body)["model"] == f"replies@{one.short_digest}"
        assert first.headers["x-tuneline-artifact"] == one.digest
        assert (await scene.add("replies", two)).status == 200
        assert (await scene.ask("replies")).headers["x-tuneline-artifact"] == two.digest
        earlier = await scene.ask(f"replies@{one.short_digest}", "app")
        assert earlier.headers["x-tuneline-artifact"] == one.digest
        assert await scene.models() == [
            "tickets", "replies", f"replies@{two.short_digest}", f"replies@{one.short_digest}",
        ]  # fmt: skip
        back = await scene.send(f"{ADAPTERS}/replies/roll-back", "POST")
        assert json.loads(back.body)["digest"] == one.digest
        assert (await scene.ask("replies")).headers["x-tuneline-artifact"] == one.digest
        assert (await scene.ask("tickets")).headers["x-tuneline-artifact"] == ""

    asyncio.run(play())


def test_a_third_version_unloads_the_first(scene: Scene) -> None:
    artifacts = [scene.artifact(str(number), 1.0 + number) for number in range(3)]

    async def play() -> None:
        for made in artifacts:
            assert (await scene.add("replies", made)).status == 200
        kept = {f"replies@{made.short_digest}" for made in artifacts[1:]}
        assert set(scene.vllm.loaded) == kept
        assert (await scene.ask(f"replies@{artifacts[0].short_digest}")).status == 404
        assert (await scene.send(f"{ADAPTERS}/replies", "DELETE")).status == 200
        assert scene.vllm.loaded == {}
        assert await scene.models() == ["tickets"]

    asyncio.run(play())


def test_a_failed_proof_unloads_and_leaves_the_old_version(scene: Scene) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    scene.vllm.broken.add(two.short_digest)

    async def play() -> None:
        await scene.add("replies", one)
        failed = await scene.add("replies", two)
        assert (failed.status, failed.error["code"]) == (422, "adapter_proof_failed")
        assert "the adapter is loaded and not applied" in failed.error["message"]
        assert list(scene.vllm.loaded) == [f"replies@{one.short_digest}"]
        assert (await scene.ask("replies")).headers["x-tuneline-artifact"] == one.digest

    before = sample("tuneline_adapter_proofs_total", adapter="replies", verdict="FAIL")
    asyncio.run(play())
    after = sample("tuneline_adapter_proofs_total", adapter="replies", verdict="FAIL")
    assert after - before == 1


def test_a_drain_ends_a_proof_and_the_version_gets_no_name(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.middleware.app.hand_on", lambda **_: None)
    one = scene.artifact("one")

    async def play() -> None:
        vllm = scene.vllm

        async def ends(scope: Scope, receive: Receive, send: Send) -> None:
            await vllm(scope, receive, send)
            if vllm.asked:
                scene.middleware.drain()

        scene.middleware.app = ends
        failed = await scene.add("replies", one)
        assert (failed.status, failed.error["code"]) == (502, "adapter_not_answered")
        assert "is shutting down" in failed.error["message"]

    asyncio.run(play())
    assert read_state(scene.root / "state") == {}


def test_vllm_s_own_refusal_is_passed_on(scene: Scene) -> None:
    scene.vllm.refuses_loading = True
    answered = asyncio.run(scene.add("replies", scene.artifact("one")))
    assert (answered.status, answered.error["code"]) == (422, "adapter_refused")
    assert "vLLM refuses the adapter: expected target modules" in answered.error["message"]


def test_a_version_has_no_name_before_its_proof_ends(scene: Scene) -> None:
    one = scene.artifact("one")
    hidden = f"replies@{one.short_digest}"
    seen: list[tuple[int, int, list[str]]] = []

    async def play() -> None:
        vllm = scene.vllm

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if hidden in vllm.loaded and not seen:
                seen.append((0, 0, []))
                by_name, by_hidden = await scene.ask("replies"), await scene.ask(hidden)
                seen[0] = (by_name.status, by_hidden.status, await scene.models())
            await vllm(scope, receive, send)

        scene.middleware.app = slow
        assert (await scene.add("replies", one)).status == 200

    asyncio.run(play())
    assert seen == [(404, 404, ["tickets"])]


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [("app", 403, "admin_key_required"), (None, 401, "invalid_api_key")],
)
def test_only_an_admin_key_changes_adapters(
    scene: Scene, key: str | None, status: int, code: str
) -> None:
    refused = asyncio.run(scene.add("replies", scene.artifact("one"), key))
    assert (refused.status, refused.error["code"]) == (status, code)
    assert scene.vllm.loaded == {}


def test_a_server_without_keys_has_no_admin(
    scene: Scene, new_scene: Callable[[], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    close(scene)
    monkeypatch.delenv("TUNELINE_KEYS_FILE")
    open_scene = new_scene()
    refused = asyncio.run(open_scene.add("replies", scene.artifact("one"), None))
    assert (refused.status, refused.error["code"]) == (403, "admin_key_required")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tickets", "a name of the server's own model"),
        ("a@b", "expected a letter or digit"),
        ("a" * 64, "at most 62 letters"),
        ("", "name is"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(scene: Scene, name: str, message: str) -> None:
    refused = asyncio.run(scene.add(name, scene.artifact("one")))
    assert refused.status == 400
    assert message in refused.error["message"]


def test_more_adapters_than_the_server_has_room_for(scene: Scene) -> None:
    artifacts = [scene.artifact(str(number), 1.0 + number) for number in range(3)]

    async def play() -> list[int]:
        return [(await scene.add(f"a{n}", made)).status for n, made in enumerate(artifacts)]

    assert asyncio.run(play()) == [200, 200, 400]


def test_a_key_without_the_name_may_not_use_the_adapter(scene: Scene) -> None:
    one = scene.artifact("one")

    async def play() -> list[int]:
        await scene.add("other", one)
        names = ("other", f"other@{one.short_digest}", "tickets")
        return [(await scene.ask(name, "app")).status for name in names]

    assert asyncio.run(play()) == [403, 403, 403]


def test_adapters_are_proven_again_before_the_server_is_ready(
    scene: Scene, new_scene: Callable[[], Scene]
) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    asyncio.run(scene.add("good", one))
    asyncio.run(scene.add("bad", two))
    close(scene)
    again = new_scene()
    again.vllm.broken.add(two.short_digest)

    async def play() -> None:
        assert (await again.send("/ready")).status == 503
        early = await again.ask("good")
        assert (early.status, early.headers["retry-after"]) == (503, "5")
        assert again.middleware.adapters is not None
        await again.middleware.adapters.restore()
        ready = json.loads((await again.send("/ready")).body)
        assert ready["failed_adapters"] == ["bad"]
        assert (await again.ask("good")).headers["x-tuneline-artifact"] == one.digest
        failed = await again.ask("bad")
        assert (failed.status, failed.error["code"]) == (503, "adapter_failed")
        assert failed.error["message"] == "The adapter 'bad' is not served: it failed its proof."
        listed = json.loads((await again.send(ADAPTERS)).body)["adapters"]
        assert [(e["name"], e["state"]) for e in listed] == [("good", "serving"), ("bad", "failed")]
        assert "not applied" in listed[1]["reason"]
        rolled = await again.send(f"{ADAPTERS}/bad/roll-back", "POST")
        assert (rolled.status, rolled.error["code"]) == (400, "adapter_request_refused")
        mended = json.loads((await again.add("bad", again.artifact("three", 3.0))).body)
        assert (mended["state"], mended["previous"]) == ("serving", None)

    asyncio.run(play())


def test_a_list_that_cannot_be_written_leaves_what_is_served(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    asyncio.run(scene.add("replies", one))

    def full(descriptor: int) -> None:
        if STATE_FILE in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        failed = asyncio.run(scene.add("replies", two))
    assert (failed.status, failed.error["code"]) == (507, "adapter_not_stored")
    assert list(scene.vllm.loaded) == [f"replies@{one.short_digest}"]
    state = scene.root / "state"
    assert read_state(state)["replies"].current.digest == one.digest
    assert (state / STATE_FILE).is_file()
    assert len(list((state / "versions").iterdir())) == 1


def test_the_version_before_may_be_added_again(scene: Scene) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)

    async def play() -> None:
        for made in (one, two, one):
            assert (await scene.add("replies", made)).status == 200
        names = {f"replies@{made.short_digest}" for made in (one, two)}
        assert set(scene.vllm.loaded) == names
        assert (await scene.ask("replies")).headers["x-tuneline-artifact"] == one.digest
        assert set(await scene.models()) == {"tickets", "replies", *names}

    asyncio.run(play())


def test_requests_are_counted_by_adapter(scene: Scene) -> None:
    labels = {"adapter": "counted", "status": "200"}
    asyncio.run(scene.add("counted", scene.artifact("one")))
    before = sample("tuneline_adapter_requests_total", **labels)
    asyncio.run(scene.ask("counted"))
    assert sample("tuneline_adapter_requests_total", **labels) - before == 1


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"])
def test_vllm_s_own_routes_stay_closed(scene: Scene, path: str) -> None:
    assert asyncio.run(scene.send(path, "POST")).status == 404


def test_without_the_setting_the_route_does_not_exist() -> None:
    middleware = TunelineMiddleware(Vllm())
    assert asyncio.run(send_request(middleware, ADAPTERS)).status == 404


def restore(scene: Scene) -> None:
    assert scene.middleware.adapters is not None
    asyncio.run(scene.middleware.adapters.restore())


@pytest.mark.parametrize("name", ["/any/dir", "unknown", "replies@000000000000", "tickets@0"])
def test_vllm_never_sees_an_unknown_name(scene: Scene, name: str) -> None:
    asyncio.run(scene.add("replies", scene.artifact("one")))
    scene.vllm.asked.clear()
    refused = asyncio.run(scene.ask(name))
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    assert refused.error["param"] == "model"
    assert scene.vllm.asked == []
    assert asyncio.run(scene.ask("")).status == 404  # vLLM's own answer
    assert scene.vllm.asked == [""]


@pytest.mark.parametrize("has_effect", [True, False])
def test_an_adapter_can_be_added_after_a_call_that_raised(scene: Scene, has_effect: bool) -> None:
    one = scene.artifact("one")

    async def play() -> None:
        vllm = scene.vllm

        async def raises(scope: Scope, receive: Receive, send: Send) -> None:
            is_loading = scope["path"] == "/v1/load_lora_adapter"
            if has_effect or not is_loading:
                await vllm(scope, receive, send)
            if is_loading:
                raise RuntimeError("engine dead")

        scene.middleware.app = raises
        failed = await scene.add("replies", one)
        assert (failed.status, failed.error["code"]) == (502, "adapter_not_answered")
        assert "RuntimeError: engine dead" in failed.error["message"]
        assert vllm.loaded == {}
        scene.middleware.app = vllm
        assert (await scene.add("replies", one)).status == 200

    asyncio.run(play())


@pytest.mark.parametrize("has_effect", [True, False])
def test_an_adapter_can_be_added_after_a_stall(scene: Scene, has_effect: bool) -> None:
    one = scene.artifact("one")

    async def play() -> None:
        vllm = scene.vllm

        async def stalls(scope: Scope, receive: Receive, send: Send) -> None:
            scene.middleware.state = "silent"
            if not has_effect:
                raise RuntimeError("no answer")
            await vllm(scope, receive, send)

        scene.middleware.app = stalls
        assert (await scene.add("replies", one)).status == 502
        assert list(vllm.loaded) == ([f"replies@{one.short_digest}"] if has_effect else [])
        scene.middleware.app, scene.middleware.state = vllm, "moving"
        assert (await scene.add("replies", one)).status == 200

    asyncio.run(play())


@pytest.mark.parametrize(
    "error", [RuntimeError("engine dead"), PermissionError(13, "Permission denied")]
)
def test_an_error_of_any_kind_fails_a_single_adapter(
    scene: Scene,
    new_scene: Callable[[], Scene],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    asyncio.run(scene.add("bad", one))
    asyncio.run(scene.add("good", two))
    close(scene)
    again = new_scene()
    again.vllm.raises["/v1/load_lora_adapter"] = error
    restore(again)
    ready = asyncio.run(again.send("/ready"))
    assert (ready.status, json.loads(ready.body)["failed_adapters"]) == (200, ["bad"])
    log = capsys.readouterr().err
    assert f"adapter bad@{one.short_digest}: is not served: " in log
    assert f"adapter good@{two.short_digest}: is proven again and served" in log
    assert list(again.vllm.loaded) == [f"good@{two.short_digest}"]


def test_an_unreadable_copy_fails_a_single_adapter(
    scene: Scene, new_scene: Callable[[], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(scene.add("bad", scene.artifact("one")))
    close(scene)
    again = new_scene()

    def unreadable(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("serving.middleware.adapters.open_version", unreadable)
    restore(again)
    listed = json.loads(asyncio.run(again.send(ADAPTERS)).body)["adapters"]
    assert listed[0]["reason"] == "OSError: [Errno 5] Input/output error"


@pytest.mark.parametrize("lines", [None, '{"a field of a newer version": 1}\n'])
def test_a_reference_that_cannot_be_read_is_a_refusal(scene: Scene, lines: str | None) -> None:
    one = make_adapter(scene.root / "one")
    with new_artifact(
        scene.root / "one-reference", "reference", config={}, inputs=[one.as_input("adapter")]
    ) as draft:
        (draft.dir / (REFERENCE_FILE if lines else "other.txt")).write_text(lines or "x")
    refused = asyncio.run(scene.add("replies", one))
    assert (refused.status, refused.error["code"]) == (422, "adapter_refused")
    assert refused.error["message"].startswith("the adapter cannot be used: ")
    assert scene.vllm.loaded == {}
    assert list((scene.root / "state" / "versions").iterdir()) == []


def test_a_path_with_nul_is_a_refusal(scene: Scene) -> None:
    fields = {"name": "replies", "adapter": "/a\0b", "reference": "/a"}
    refused = asyncio.run(send_request(scene.middleware, ADAPTERS, fields, key="admin"))
    assert (refused.status, refused.error["code"]) == (400, "adapter_request_refused")


def test_the_version_before_serves_on_where_the_current_version_fails(
    scene: Scene, new_scene: Callable[[], Scene]
) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    for made in (one, two):
        asyncio.run(scene.add("replies", made))
    close(scene)
    again = new_scene()
    again.vllm.broken.add(two.short_digest)
    restore(again)

    async def play() -> None:
        assert (await again.ask("replies")).error["code"] == "adapter_failed"
        earlier = await again.ask(f"replies@{one.short_digest}")
        assert earlier.headers["x-tuneline-artifact"] == one.digest
        rolled = json.loads((await again.send(f"{ADAPTERS}/replies/roll-back", "POST")).body)
        assert (rolled["state"], rolled["digest"], rolled["previous"]) == (
            "serving", one.digest, None,
        )  # fmt: skip
        assert (await again.ask("replies")).headers["x-tuneline-artifact"] == one.digest
        three = json.loads((await again.add("replies", again.artifact("three", 3.0))).body)
        assert three["previous"] == one.digest

    asyncio.run(play())


def test_a_new_version_of_a_failed_name_keeps_the_good_version(
    scene: Scene, new_scene: Callable[[], Scene]
) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    for made in (one, two):
        asyncio.run(scene.add("replies", made))
    close(scene)
    again = new_scene()
    again.vllm.broken.add(two.short_digest)
    restore(again)
    added = json.loads(asyncio.run(again.add("replies", again.artifact("three", 3.0))).body)
    assert (added["state"], added["previous"]) == ("serving", one.digest)


def test_the_server_is_ready_before_the_versions_before_are_proven(
    scene: Scene, new_scene: Callable[[], Scene]
) -> None:
    one, two = scene.artifact("one"), scene.artifact("two", 2.0)
    for made in (one, two):
        asyncio.run(scene.add("replies", made))
    close(scene)
    again = new_scene()
    seen: list[tuple[int, int]] = []

    async def play() -> None:
        vllm = again.vllm

        async def looks(scope: Scope, receive: Receive, send: Send) -> None:
            await vllm(scope, receive, send)
            if f"replies@{one.short_digest}" in vllm.loaded and not seen:
                seen.append((0, 0))
                early = await again.ask(f"replies@{one.short_digest}")
                seen[0] = ((await again.send("/ready")).status, early.status)

        again.middleware.app = looks
        assert again.middleware.adapters is not None
        await again.middleware.adapters.restore()
        assert (await again.ask(f"replies@{one.short_digest}")).status == 200

    asyncio.run(play())
    assert seen == [(200, 503)]


@pytest.mark.parametrize(
    ("own_names", "reserved_names", "why"),
    [
        (("tickets", "replies"), ("tickets", "replies"), "the server's own model has this name"),
        (("tickets", "replies"), ("tickets",), "it was added over another adapter"),
    ],
)
def test_an_entry_never_hides_the_server_s_own_model(
    scene: Scene,
    new_scene: Callable[[], Scene],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_names: tuple[str, ...],
    reserved_names: tuple[str, ...],
    why: str,
) -> None:
    asyncio.run(scene.add("replies", scene.artifact("one")))
    asyncio.run(scene.add("other", scene.artifact("two", 2.0)))
    close(scene)
    settings = settings_of(
        scene.root, own_names=own_names, reserved_names=reserved_names, run_digest="sha256:new"
    )
    monkeypatch.setenv(VARIABLE, settings.model_dump_json())
    again = new_scene()
    again.vllm.loaded["replies"] = "/the/run's/own"
    restore(again)
    assert f"adapter replies: is dropped: {why}" in capsys.readouterr().err
    answered = asyncio.run(again.ask("replies"))
    assert (answered.status, answered.headers["x-tuneline-artifact"]) == (200, "")
    assert asyncio.run(again.models())[:3] == ["tickets", "replies", "other"]


def test_the_run_s_own_name_goes_to_a_version_and_back(
    scene: Scene, new_scene: Callable[[], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = scene.artifact("own")
    later = scene.artifact("later", 2.0)
    close(scene)
    settings = settings_of(
        scene.root, own_names=("tickets", "replies", "stable"),
        reserved_names=("tickets", "stable"), aliases={"stable": "replies"}, run_digest=own.digest,
    )  # fmt: skip
    monkeypatch.setenv(VARIABLE, settings.model_dump_json())
    first = new_scene()
    first.vllm.loaded |= {"replies": "/the/run's/own", "stable": "/the/run's/own"}
    restore(first)
    assert asyncio.run(first.ask("stable")).status == 200
    assert asyncio.run(first.add("replies", later)).status == 200
    refused = asyncio.run(first.add("replies", own))
    assert "is the run's own adapter" in refused.error["message"]
    assert "tuneline adapters remove URL replies" in refused.error["message"]
    close(first)
    again = new_scene()
    again.vllm.loaded |= {"replies": "/the/run's/own", "stable": "/the/run's/own"}
    restore(again)
    for name in ("replies", "stable"):
        assert asyncio.run(again.ask(name)).headers["x-tuneline-artifact"] == later.digest
        assert again.vllm.asked[-1] == f"replies@{later.short_digest}"
    names = ["tickets", "stable", "replies", f"replies@{later.short_digest}"]
    assert asyncio.run(again.models()) == names
    assert asyncio.run(again.send(f"{ADAPTERS}/replies", "DELETE")).status == 200
    for name in ("replies", "stable"):
        assert asyncio.run(again.ask(name)).status == 200
        assert again.vllm.asked[-1] == name


def test_a_stuck_engine_ends_a_proof(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.middleware.watch.INTERVAL_S", 0.01)
    monkeypatch.setattr("serving.middleware.watch.engine_progress", lambda: lambda: 0.0)
    monkeypatch.setattr("serving.middleware.watch.process_age_s", lambda: 0.05)
    monkeypatch.setattr(scene.middleware, "settings", Settings(stall_after_s=0.05))
    one = scene.artifact("one")

    async def play() -> None:
        vllm = scene.vllm

        async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"].endswith("completions"):
                await asyncio.Event().wait()
            await vllm(scope, receive, send)

        scene.middleware.app = hangs
        watch = asyncio.create_task(watch_engine(scene.middleware))
        async with asyncio.timeout(20):
            failed = await scene.add("replies", one)
        watch.cancel()
        assert (failed.status, failed.error["code"]) == (502, "adapter_not_answered")
        assert "makes no progress" in failed.error["message"]

    asyncio.run(play())


@pytest.mark.parametrize("broken", ["proof", "load", "fit"])
def test_a_refused_adapter_leaves_no_copy(scene: Scene, broken: str) -> None:
    one = scene.artifact("one", 0.0 if broken == "fit" else 1.0)
    scene.vllm.refuses_loading = broken == "load"
    if broken == "proof":
        scene.vllm.broken.add(one.short_digest)
    assert asyncio.run(scene.add("replies", one)).status == 422
    assert list((scene.root / "state" / "versions").iterdir()) == []


def sample(name: str, **labels: Any) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
