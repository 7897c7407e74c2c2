"""Named keys reach the server of the cluster from a Secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from serving import add_key
from serving.middleware import keys as keys_module
from serving.middleware.keys import Keys

Objects: TypeAlias = list[dict[str, Any]]


def test_the_secret_is_mounted_where_the_server_looks_for_named_keys(
    tmp_path: Path,
    render_run: Callable[..., Path],
    objects_of: Callable[..., Objects],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deployment(**options: Any) -> dict[str, Any]:
        objects = objects_of(render_run(tmp_path / f"out{len(options)}", **options))
        (found,) = (item for item in objects if item["kind"] == "Deployment")
        return found

    plain, keyed = deployment(), deployment(keys_secret_name="team-keys")
    pod = keyed["spec"]["template"]["spec"]
    (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
    assert volume["secret"] == {"secretName": "team-keys"}
    (container,) = pod["containers"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == volume["name"])
    assert mount["readOnly"] is True
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    path = Path(env["TUNELINE_KEYS_FILE"])
    assert path == Path(mount["mountPath"]) / "keys.toml"
    assert env["VLLM_API_KEY"] is None, "its value comes from the other Secret"
    # Nothing else changes.
    pod["volumes"].remove(volume)
    container["volumeMounts"].remove(mount)
    container["env"] = [e for e in container["env"] if e["name"] != "TUNELINE_KEYS_FILE"]
    assert keyed == plain

    # The kubelet writes a Secret into a new folder and turns the link `..data` to it.
    monkeypatch.setattr(keys_module, "RELOAD_INTERVAL_S", 0.0)
    folder = tmp_path / "keys"
    for number in (1, 2):
        (folder / f"..{number}").mkdir(parents=True)
    first = add_key(folder / "..1" / "keys.toml", "a", {"requests_per_minute": 5})
    second = add_key(folder / "..2" / "keys.toml", "b", {"admin": True})
    (folder / "..data").symlink_to("..1")
    (folder / path.name).symlink_to(f"..data/{path.name}")
    keys = Keys(
        {**env, "VLLM_API_KEY": "default-key", "TUNELINE_KEYS_FILE": f"{folder}/{path.name}"}
    )

    def name_of(key: str) -> str | None:
        found = keys.find({"headers": [(b"authorization", f"Bearer {key}".encode())]})
        return None if found is None else found.name

    assert [name_of(key) for key in (first, second, "default-key")] == ["a", None, "default"]
    (folder / "..turned").symlink_to("..2")
    (folder / "..turned").replace(folder / "..data")
    assert [name_of(key) for key in (first, second, "default-key")] == [None, "b", "default"]
