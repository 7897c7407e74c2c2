"""The Job's command against the command line that it calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from tuneline.cli import app
from tuneline.commands.option_values import DEFAULT_KEY_ENV


def _parse(command: list[str], args: list[str]) -> dict[str, Any]:
    found: Any = typer.main.get_command(app)
    assert command[0] == "tuneline"
    for name in command[1:]:
        found = found.commands[name]
    with found.make_context(command[-1], list(args)) as context:
        return dict(context.params)


def _container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (job,) = (item for item in objects if item["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_the_command_line_takes_the_jobs_arguments(deployed: list[dict[str, Any]]) -> None:
    container = _container(deployed)
    params = _parse(container["command"], container["args"])
    assert params["run_file"] == Path("/config/run.yaml")
    assert params["url"] == "http://support-tickets-model-server:8000/v1"
    assert params["model"] == "support-tickets@0123456789ab"
    assert params["prompts"] == Path("/config/prompts.jsonl")
    assert params["as_json"] is True
    # Unless told otherwise, the key is read from the variable that the Job sets.
    assert (params["api_key_env"] or DEFAULT_KEY_ENV) in {
        entry["name"] for entry in container["env"]
    }
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert [str(path.parent) in mounts for path in (params["run_file"], params["out"])] == [
        True
    ] * 2


def test_load_pods_share_a_schedule_by_their_index(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Any]
) -> None:
    out = render_run(
        tmp_path / "out", loadtest_image="tests:1", load_pods=4, results_claim="results"
    )
    objects = objects_of(out / "load-test")
    (job,) = (item for item in objects if item["kind"] == "Job")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    # A pod that starts again would find the other pods under way.
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    assert "DisruptionTarget" in str(spec["podFailurePolicy"]["rules"][0])
    assert len(spec["podFailurePolicy"]["rules"]) == 4
    container = _container(objects)
    params = _parse(container["command"], container["args"])
    assert params["shard"] == "$(SHARD)/4"
    assert params["out"] is None
    assert params["gather"] == Path("/results/support-tickets-$(JOB_UID)")
    paths = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container["env"]
        if "fieldRef" in entry.get("valueFrom", {})
    }
    assert paths == {
        "JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "SHARD": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    }
    (volume,) = (
        volume for volume in spec["template"]["spec"]["volumes"] if volume["name"] == "results"
    )
    assert volume == {"name": "results", "persistentVolumeClaim": {"claimName": "results"}}


def test_the_command_line_takes_the_arguments_that_verify_a_model(
    deployed: list[dict[str, Any]],
) -> None:
    (deployment,) = (item for item in deployed if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["initContainers"]
    params = _parse(container["command"], container["args"])
    assert params["target"] == Path("/model/support-tickets-0123456789ab")
    assert params["digest"] == deployment["metadata"]["annotations"]["tuneline/model-digest"]


def test_an_option_that_the_command_line_has_not_is_an_error(
    deployed: list[dict[str, Any]],
) -> None:
    container = _container(deployed)
    command = [*container["command"][1:], *container["args"], "--request-rate=1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "--request-rate" in result.output
