"""Each sabotage of the line is refused by the command that a user types.

These tests run before those of test_line.py, whose last test ends the server.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.commands import tuneline_here
from tests.e2e.line.conftest import EXAMPLES, QUICK, RUN, Serving
from tests.e2e.line.damages import Scene, write_prompts, write_short_reference
from tests.e2e.line.sabotages import SABOTAGES
from tests.integration.loadtest.conftest import Known, known_server
from tests.integration.release.keys import write_key
from tests.integration.release.line import forgetting_files
from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.errors import InconclusiveError, InvalidError

Answer = Callable[[tuple[str, ...]], CompletedProcess[str]]

pytestmark = pytest.mark.timeout(1800)  # the first test's set-up is the whole line


@pytest.fixture(scope="module")
def known() -> Iterator[Known]:
    with known_server("--ttft-s", "0.03", "--itl-s", "0.004", "--num-tokens", "8") as server:
        yield server


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    """The options with which the line was made."""
    return QUICK


@pytest.fixture(scope="module")
def pristine(
    stages: dict[str, dict[str, Any]], settings: tuple[str, ...], known: Known, serving: Serving,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:  # fmt: skip
    """A copy of the line's own run with its data, its base model, a key and two releases."""
    folder = tmp_path_factory.mktemp("sabotages")
    scene = Scene(folder, known.endpoint.url, serving.url, settings)
    left_out = shutil.ignore_patterns("*.py", "phrases")
    shutil.copytree(RUN.parent, scene.run.parent, ignore=left_out)
    shutil.copytree(EXAMPLES / "tiny-base", folder / "base", ignore=left_out)
    for stage in stages.values():
        path = Path(stage["path"])
        shutil.copytree(path, scene.runs / path.name)
    write_prompts(folder / "prompts.jsonl")
    write_short_reference(scene)
    key = write_key(folder, "release")
    typed = [str(scene.run), "--runs-dir", str(scene.runs.parent), *settings]
    asked = ["--set", "evaluation.forgetting=true"]
    planned = json.loads(tuneline_here("plan", "--json", *typed, *asked).stdout)
    (out,) = (entry["path"] for entry in planned if entry["stage"] == "forgetting")
    adapter = open_artifact(scene.artifact("adapter")).as_input("adapter")
    with new_artifact(Path(out), "forgetting", config={}, inputs=[adapter]) as draft:
        for name, text in forgetting_files(None).items():
            (draft.dir / name).write_text(text, encoding="utf-8")
    assert tuneline_here("release", *typed).returncode == 0
    shutil.move(scene.artifact("release"), folder / "previous")
    assert tuneline_here("release", *typed, "--sign-key", str(key)).returncode == 0
    return scene


@pytest.fixture(scope="module")
def undamaged(pristine: Scene, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """Run a command on an undamaged copy, once for all rows that type it."""

    @functools.cache
    def answer(command: tuple[str, ...]) -> CompletedProcess[str]:
        for _ in range(3):
            scene = pristine.copy_to(tmp_path_factory.mktemp("undamaged") / "scene")
            done = tuneline_here(*scene.typed(command))
            # A burst of other work makes a load test inconclusive or invalid.
            if done.returncode not in (InconclusiveError.exit_code, InvalidError.exit_code):
                break
        return done

    return answer


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_is_refused_by_the_command_that_a_user_types(
    name: str, pristine: Scene, undamaged: Answer, tmp_path: Path
) -> None:
    sabotage = SABOTAGES[name]
    done = undamaged(sabotage.command)
    assert done.returncode == 0, done.stderr
    scene = pristine.copy_to(tmp_path / "scene")
    words = scene.typed(sabotage.command)
    sabotage.damage(scene)
    with sabotage.meanwhile():
        done = tuneline_here(*words)
    assert done.returncode == sabotage.code, done.stderr
    assert sabotage.words in done.stderr
