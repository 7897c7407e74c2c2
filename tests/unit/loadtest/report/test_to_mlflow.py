"""A report in MLflow: what a user reads when its stores refuse the figures or the files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import NoCredentialsError

from loadtest.report import to_mlflow
from tuneline.core.errors import ServerError


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

    @contextlib.contextmanager
    def start_run(self, **_run: str) -> Iterator[Any]:
        yield SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def log_batch(self, _run_id: str, **batch: Any) -> None:
        if self.figures_fail is not None:
            raise self.figures_fail
        self.batches.append(batch)

    def log_artifact(self, _path: str) -> None:
        if self.files_fail is not None:
            raise self.files_fail

    def log_text(self, text: str, _name: str) -> None:
        assert text == "the page"


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
    workload = SimpleNamespace(model_dump=lambda **_options: {})
    report = SimpleNamespace(
        scenarios=[], workload=workload, verdict=SimpleNamespace(value="PASS"),
        endpoint=SimpleNamespace(url="http://x/v1", model="m"),
    )  # fmt: skip
    monkeypatch.setattr(to_mlflow, "report_of", lambda _artifact: report)
    monkeypatch.setattr(to_mlflow, "load_document", lambda _artifact: None)
    monkeypatch.setattr("tuneline.core.page.to_html.html_page", lambda _document: "the page")
    return store


def text() -> str:
    artifact: Any = SimpleNamespace(path=Path("load"), digest="sha256:1")
    return to_mlflow.mlflow_text(artifact)


def test_a_run_that_is_stored_is_named(store: Store) -> None:
    assert text() == "logged as MLflow run run-1\n"
    assert len(store.batches) == 1


@pytest.mark.parametrize(
    "error",
    [
        MlflowError("quota\x1b[0m"), HTTPError("413 Client Error"), PermissionError(13, "denied"),
        S3UploadFailedError("no bucket"), NoCredentialsError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_files_that_are_not_stored_are_told_from_the_metrics(
    store: Store, error: Exception
) -> None:
    store.files_fail = error
    with pytest.raises(ServerError) as caught:
        text()
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
    store: Store, uri: str, is_hinted: bool, make: Callable[[str], Exception]
) -> None:
    store.uri, store.figures_fail = uri, make("the store is refused")
    with pytest.raises(ServerError, match="does not take the report: the store is ref") as caught:
        text()
    assert ("sqlite:///mlflow.db" in str(caught.value.hint)) == is_hinted
