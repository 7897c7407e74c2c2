"""`deploy render` refuses a run that the manifests cannot serve before it looks for artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneline.core.errors import ConfigError, NotAnArtifactError
from tuneline.pipeline.deploy import render_run
from tuneline.pipeline.run_config import load_run

RUN = Path(__file__).parents[3] / "examples" / "support-tickets" / "run.yaml"


def test_a_run_that_serves_an_adapter_is_refused(tmp_path: Path) -> None:
    run = load_run(RUN, ["serving.mode=adapter"], runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="the manifests run the merged model") as caught:
        render_run(run, tmp_path / "out")
    assert "serving.mode=merged" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_a_judge_of_scores_is_refused(tmp_path: Path) -> None:
    overrides = ["training.method={type: reward}", "serving.routes=[pooling]"]
    more = ["k8s.monitoring_namespace=monitoring", "k8s.results_claim=results",
            "k8s.loadtest_image=registry.example.com/loadtest:1"]  # fmt: skip
    pairs = RUN.parents[1] / "preferences" / "run.yaml"
    run = load_run(pairs, [*overrides, *more, "k8s.judge={stable: first}"], runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="this model gives no text"):
        render_run(run, tmp_path / "out")


def test_named_keys_without_a_secret_are_refused(tmp_path: Path) -> None:
    overrides = ["serving.keys_file=team keys.toml", "k8s.namespace=team"]
    run = load_run(RUN, overrides, runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="the pods read named keys from a Secret") as caught:
        render_run(run, tmp_path / "out")
    assert caught.value.exit_code == 2
    hint = caught.value.hint or ""
    file = RUN.parent / "team keys.toml"
    assert f"create secret generic tuneline-keys -n team --from-file=keys.toml='{file}'" in hint
    assert "--set k8s.keys_secret_name=tuneline-keys" in hint
    assert not (tmp_path / "out").exists()
    # With the Secret, the next problem is that nothing has been trained.
    run = load_run(RUN, [*overrides, "k8s.keys_secret_name=tuneline-keys"], runs_dir=tmp_path)
    with pytest.raises(NotAnArtifactError):
        render_run(run, tmp_path / "out")


def test_a_file_of_the_server_is_not_in_a_pod(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    run = load_run(RUN, [f"serving.extra_args.chat_template={template}"], runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="is a file of this machine, which the pods do not have"):
        render_run(run, tmp_path / "out")


def test_a_drafter_is_not_in_a_pod(tmp_path: Path) -> None:
    override = f"serving.extra_args.speculative_config.model={tmp_path}"
    run = load_run(RUN, [override], runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="is a folder of this machine, which the pods do not"):
        render_run(run, tmp_path / "out")
