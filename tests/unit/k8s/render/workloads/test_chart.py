"""The Helm chart: with its own values, its templates are the objects of the tree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import pytest
import yaml

from k8s.render.kustomize import LOADER
from k8s.render.workloads.chart import FILLED
from tests.unit.k8s.conftest import EVERYTHING, JUDGES, WORKLOADS

Objects: TypeAlias = list[dict[str, Any]]
TREES: dict[str, dict[str, Any]] = {
    "everything": {
        **EVERYTHING,
        "gateway": {"name": "g", "namespace": "e", "hostnames": ["a.example"]},
    },
    "several hosts": WORKLOADS["several hosts"],
    "KServe": WORKLOADS["KServe"],
}


@pytest.fixture(scope="module", params=TREES)
def rendered(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    render_run: Callable[..., Path],
    objects_of: Callable[..., Objects],
) -> tuple[Path, Objects]:
    """Return a chart, and the objects of the same run's kustomization."""
    options = TREES[request.param]
    folder = tmp_path_factory.mktemp("chart")
    plain = objects_of(render_run(folder / "plain", **options))
    return render_run(folder / "chart", helm=True, **options), plain


def evaluated(text: str, values: dict[str, Any]) -> str:
    """Return a template with values put in; its actions are those that the chart writes."""

    def value(match: re.Match[str]) -> str:
        action = match[1].strip()
        if action == '"{{"':
            return "{{"
        name = action.partition(" ")[0].removeprefix(".Values.")
        assert match[0] == FILLED[name]
        found = values[name]
        return str(found) if action.endswith(".replicas") else json.dumps(found)

    return re.sub(r"\{\{(.*?)\}\}(?!\})", value, text)


def objects_in(chart: Path, values: dict[str, Any]) -> Objects:
    texts = [path.read_text() for path in sorted((chart / "templates").glob("*.yaml"))]
    assert texts
    return [yaml.load(evaluated(text, values), Loader=LOADER) for text in texts]  # noqa: S506 (a SafeLoader)


def key(item: dict[str, Any]) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def test_the_charts_own_values_give_the_objects_of_the_tree(
    rendered: tuple[Path, Objects],
) -> None:
    chart, plain = rendered
    values = yaml.safe_load((chart / "values.yaml").read_text())
    assert sorted(objects_in(chart, values), key=key) == sorted(plain, key=key)


def test_other_values_reach_every_place(rendered: tuple[Path, Objects]) -> None:
    chart, _ = rendered
    values = yaml.safe_load((chart / "values.yaml").read_text())
    other = {
        "image": "registry.example.com/other:2",
        "replicas": 7,
        "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
        "hostnames": ["b.example"],
    }
    before = json.dumps(objects_in(chart, values))
    after = json.dumps(objects_in(chart, {name: other[name] for name in values}))
    assert values["image"] in before
    assert values["image"] not in after
    for name in values:
        assert json.dumps(other[name]) in after


def test_values_that_cannot_run_are_refused(rendered: tuple[Path, Objects]) -> None:
    chart, _ = rendered
    values = yaml.safe_load((chart / "values.yaml").read_text())
    schema = json.loads((chart / "values.schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(values)
    wrong = [{"image": "server"}, {"image": "server:latest"}, {"replica": 2}, {"resources": {}}]
    wrong += [{"replicas": 0}] if "replicas" in values else []
    for change in wrong:
        assert not validator.is_valid(values | change), change
    assert not validator.is_valid({})


def test_the_chart_names_the_model(rendered: tuple[Path, Objects]) -> None:
    chart, _ = rendered
    found = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert found["name"] == "support-tickets"
    assert found["appVersion"] == "0123456789ab"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\+0123456789ab", found["version"])
    assert (chart / "load-test" / "kustomization.yaml").exists()
    assert not (chart / "kustomization.yaml").exists()


def test_braces_of_alerts_and_dashboards_reach_prometheus(
    tmp_path: Path, render_run: Callable[..., Path]
) -> None:
    chart = render_run(tmp_path / "chart", helm=True, monitoring_namespace="observability")
    text = "".join(path.read_text() for path in (chart / "templates").iterdir())
    assert '{{ "{{" }}' in text
    assert not re.search(r"\{\{ ?\$", text.replace('{{ "{{" }}', ""))


def test_helm_keeps_no_prompts_of_a_load_test_or_a_judge(
    tmp_path: Path, render_run: Callable[..., Path]
) -> None:
    """Helm stores the files of a chart in a Secret for each release."""
    chart = render_run(tmp_path / "chart", helm=True, **JUDGES["judged"])
    folders = {f"{path.name}/" for path in chart.iterdir() if path.is_dir()}
    assert {"judge/", "load-test/"} < folders
    assert folders - set((chart / ".helmignore").read_text().split()) == {"templates/"}
