"""A load report for monitoring systems: OpenTelemetry's schema reads it, MLflow stores it."""

import contextlib
import importlib.util
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import NoCredentialsError
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from loadtest import report_text, run_loadtest
from loadtest.report.files import report_of as read_report_of
from loadtest.report.metric_points import metric_points
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import MissingError, ServerError

pytestmark = pytest.mark.usefixtures("shared_host")


@pytest.fixture(scope="module")
def measured(known: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("exports") / "load"
    settings = config(scenarios=[{"name": "open", "rate_rps": 60.0, "num_requests": 60}])
    return run_loadtest(settings, known.endpoint, out, prompts=PROMPTS)


def test_opentelemetrys_schema_reads_every_figure(measured: Artifact) -> None:
    text = report_text(measured, "otlp")
    assert text.count("\n") == 1  # a line per document, as the file exporter writes
    request = json_format.Parse(text, ExportMetricsServiceRequest(), ignore_unknown_fields=False)
    (resource,) = request.resource_metrics
    attributes = {
        one.key: one.value.string_value or one.value.int_value
        for one in resource.resource.attributes
    }
    assert attributes["tuneline.report.digest"] == measured.digest
    host, port = attributes["server.address"], attributes["server.port"]
    assert attributes["url.full"] == report_of(measured)["endpoint"]["url"]
    assert attributes["url.full"] == f"http://{host}:{port}/v1"
    (scope,) = resource.scope_metrics
    metrics = {one.name: one for one in scope.metrics}
    report = report_of(measured)["scenarios"][0]
    found = {}
    for point in metrics["tuneline.loadtest.ttft"].gauge.data_points:
        labels = {
            one.key: one.value.string_value or one.value.double_value for one in point.attributes
        }
        assert labels["scenario"] == "open"
        assert point.time_unix_nano / 1e9 == pytest.approx(report["start_unix_s"], abs=5)
        found[f"p{100 * labels['quantile']:g}"] = point.as_double
    expected = report["latency"]["ttft_s"]["percentiles"]
    assert found == {name: value for name, value in expected.items() if value is not None}
    assert len(found) >= 2
    (rate,) = metrics["tuneline.loadtest.output_token_rate"].gauge.data_points
    assert rate.as_double == report["throughput"]["output_tokens_per_s"]
    blocks = metrics["tuneline.loadtest.block.ttft"].gauge.data_points
    assert len(blocks) == len(report["over_time"]["time_s"])
    states = {
        one.value.string_value: point.as_double
        for point in metrics["tuneline.loadtest.requests"].gauge.data_points
        for one in point.attributes
        if one.key == "state"
    }
    assert states == {"succeeded": 60.0, "failed": 0.0, "unfinished": 0.0, "cancelled": 0.0}


def test_every_point_has_a_name_of_its_own_per_time(measured: Artifact) -> None:
    points = list(metric_points(read_report_of(measured)))
    keys = {
        (one.name, tuple(sorted(map(str, one.labels.items()))), one.at_unix_s) for one in points
    }
    assert len(keys) == len(points) > 30


def test_a_run_that_reached_no_server_has_every_form(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    settings = config(check_models=False, slo={"max_error_rate": None})
    artifact = run_loadtest(settings, Endpoint(url, "m"), tmp_path / "a", prompts=PROMPTS)
    assert report_of(artifact)["verdict"] == "FAIL"
    for form in ("table", "html", "markdown", "csv", "vllm", "prometheus", "otlp"):
        text = report_text(artifact, form)
        assert text and not re.search(r"\bnan\b", text, re.IGNORECASE), form
    (found,) = json.loads(report_text(artifact, "vllm"))
    assert (found["completed"], found["failed"], found["request_throughput"]) == (0, 60, 0.0)


NO_MLFLOW = "the package mlflow is not installed"


@pytest.mark.filterwarnings("ignore")  # of MLflow's own libraries
def test_mlflow_stores_every_figure(
    measured: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason=NO_MLFLOW)
    monkeypatch.chdir(tmp_path)  # the artifacts of runs go below the current directory
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "loads")
    run_id = report_text(measured, "mlflow").removeprefix("logged as MLflow run ").strip()
    client = mlflow.tracking.MlflowClient()
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "loads"
    report = report_of(measured)["scenarios"][0]
    percentiles = report["latency"]["ttft_s"]["percentiles"]
    found = {name: run.data.metrics.get(f"open/ttft/{name}") for name in percentiles}
    assert found == percentiles
    history = client.get_metric_history(run_id, "open/block.ttft")
    known = [value for value in report["over_time"]["ttft_p50_s"] if value is not None]
    assert [one.value for one in history] == known
    assert [one.step for one in history] == list(range(len(known)))
    assert run.data.params["model"] == "known"
    assert run.data.tags["tuneline.digest"] == measured.digest
    assert {one.path for one in client.list_artifacts(run_id)} == {"report.json", "report.html"}


@pytest.mark.filterwarnings("ignore")  # of MLflow's own libraries
def test_a_store_that_mlflow_refuses_is_an_error_with_its_words(
    measured: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason=NO_MLFLOW)
    mlflow.set_tracking_uri(str(tmp_path / "mlruns"))
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ServerError, match="MLflow does not take the report") as caught:
        report_text(measured, "mlflow")
    assert "MLFLOW_TRACKING_URI=sqlite:///mlflow.db" in str(caught.value.hint)


def test_mlflow_is_asked_for_by_name_where_it_is_missing(
    measured: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name)
    )
    with pytest.raises(MissingError, match="needs the package mlflow") as error:
        report_text(measured, "mlflow")
    assert error.value.hint == "Try: pip install mlflow"


class MlflowError(Exception):
    """The package's own error."""


class HTTPError(OSError):
    """An error of requests, which has OSError as its base."""


class Store:
    """The parts of MLflow that are asked, with errors that it raises."""

    def __init__(self) -> None:
        self.uri = "http://mlflow:5000"
        self.batches: list[dict[str, Any]] = []
        self.figures_fail: Exception | None = None
        self.files_fail: Exception | None = None
        self.files: dict[str, str] = {}

    @contextlib.contextmanager
    def start_run(self, **_run: str) -> Iterator[Any]:
        yield SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def log_batch(self, _run_id: str, **batch: Any) -> None:
        if self.figures_fail is not None:
            raise self.figures_fail
        self.batches.append(batch)

    def log_artifact(self, path: str) -> None:
        if self.files_fail is not None:
            raise self.files_fail
        self.files[Path(path).name] = Path(path).read_text("utf-8")

    def log_text(self, text: str, name: str) -> None:
        self.files[name] = text


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def row(*values: object) -> tuple[object, ...]:
        return values

    module(
        "mlflow", start_run=store.start_run, log_artifact=store.log_artifact,
        log_text=store.log_text, get_tracking_uri=lambda: store.uri,
    )  # fmt: skip
    module("mlflow.exceptions", MlflowException=MlflowError)
    module("mlflow.entities", Metric=row, Param=row, RunTag=row)
    module("mlflow.tracking", MlflowClient=lambda: store)
    return store


def test_a_store_gets_the_figures_and_the_files_of_the_report(
    store: Store, measured: Artifact
) -> None:
    assert report_text(measured, "mlflow") == "logged as MLflow run run-1\n"
    points = list(metric_points(read_report_of(measured)))
    logged = [row for batch in store.batches for row in batch.get("metrics", [])]
    assert [value for _, value, _, _ in logged] == [point.value for point in points]
    assert dict(store.batches[-1]["params"])["model"] == "known"
    assert dict(store.batches[-1]["tags"])["tuneline.digest"] == measured.digest
    assert store.files == {
        "report.json": (measured.path / "report.json").read_text("utf-8"),
        "report.html": report_text(measured, "html"),
    }


@pytest.mark.parametrize(
    "error",
    [
        MlflowError("quota\x1b[0m"), HTTPError("413 Client Error"), PermissionError(13, "denied"),
        S3UploadFailedError("no bucket"), NoCredentialsError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_files_that_are_not_stored_are_told_from_the_metrics(
    store: Store, measured: Artifact, error: Exception
) -> None:
    store.files_fail = error
    with pytest.raises(ServerError) as caught:
        report_text(measured, "mlflow")
    message = str(caught.value)
    assert message.startswith("MLflow run run-1: the metrics are stored, the files are not: ")
    assert str(error).replace("\x1b", "")[:5] in message
    assert "\x1b" not in message
    assert "sqlite" not in str(caught.value.hint)
    assert caught.value.exit_code == 5
    assert store.batches


@pytest.mark.parametrize(
    ("uri", "is_hinted"),
    [("mlruns", True), ("file:///tmp/mlruns", True), ("http://x", False), ("sqlite:///a", False)],
)
@pytest.mark.parametrize("make", [MlflowError, PermissionError])
def test_the_hint_of_a_database_is_for_a_store_of_files(
    store: Store, measured: Artifact, uri: str, is_hinted: bool, make: Callable[[str], Exception]
) -> None:
    store.uri, store.figures_fail = uri, make("the store is refused")
    with pytest.raises(ServerError, match="does not take the report: the store is ref") as caught:
        report_text(measured, "mlflow")
    assert ("sqlite:///mlflow.db" in str(caught.value.hint)) == is_hinted
