"""The workflow for GitHub Actions: its commands are commands of this repository."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import tuneline_here

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / "examples" / "ci" / "release.yml"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["release"][
        "steps"
    ]
    return found


def test_every_command_and_option_exists(steps: list[dict[str, Any]]) -> None:
    scripts = "\n".join(step["run"] for step in steps if "run" in step).replace("\\\n", " ")
    lines = [line for line in scripts.splitlines() if "/tuneline " in line]
    assert [shlex.split(line)[1] for line in lines] == ["up", "release", "report"]
    for line in lines:
        _, verb, *words = shlex.split(line)
        shown = tuneline_here(verb, "--help")
        assert shown.returncode == 0
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.stdout, (verb, option)
    assert "make setup" in scripts
    assert re.search(r"(?m)^setup:", (ROOT / "Makefile").read_text("utf-8"))


def test_the_report_is_made_and_kept_after_a_failure(steps: list[dict[str, Any]]) -> None:
    by_name = {step.get("name"): step for step in steps}
    for name in ("Report", "Keep the report"):
        assert by_name[name]["if"] == "${{ !cancelled() }}"
    folder = by_name["Keep the report"]["with"]["path"]
    script = by_name["Report"]["run"]
    assert all(f"{folder}/{name}" in script for name in ("report.html", "report.md", "junit.xml"))
    assert '>> "$GITHUB_STEP_SUMMARY"' in script


def test_the_scripts_are_valid_shell(steps: list[dict[str, Any]]) -> None:
    scripts = [step["run"] for step in steps if "run" in step]
    assert len(scripts) == 4
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_workflow_names_a_run_that_exists() -> None:
    document = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    assert (ROOT / document["env"]["RUN"]).is_file()
    # YAML 1.1 reads the key `on` as true.
    assert {"pull_request", "push"} <= document[True].keys()
    assert document["permissions"] == {"contents": "read"}
