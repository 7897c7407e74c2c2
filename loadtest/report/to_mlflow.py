"""A load report as a run of MLflow. The package, the server and the experiment are the user's."""

from __future__ import annotations

import importlib.util
import json
from urllib.parse import urlsplit

from loadtest.report.files import report_of
from loadtest.report.metric_points import MetricPoint, metric_points
from loadtest.report.page import load_document
from loadtest.report.schema import REPORT_FILE, LoadReport
from tuneline.core.artifact import Artifact
from tuneline.core.errors import MissingError, ServerError
from tuneline.core.server_words import printable

BATCH = 1000
"""Metrics in one call; MLflow takes no more."""
MAX_PARAM = 6000
"""Characters of a parameter; MLflow takes no more."""


def mlflow_text(artifact: Artifact) -> str:
    """Log a report as a new run of MLflow; return the run's id.

    `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where. Figures of the run are metrics of
    step 0. Figures of the blocks are metrics with a step per block and the block's own time.

    Raises:
        MissingError: The package mlflow is not installed.
        ServerError: MLflow does not take the run, such as into a folder of files; or takes the
            figures and not the files.
        ArtifactError: The report is damaged or of another schema version.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise MissingError(
            "--format mlflow needs the package mlflow, which is not installed",
            hint="Try: pip install mlflow",
        )
    from mlflow.exceptions import MlflowException

    report = report_of(artifact)
    try:
        return f"logged as MLflow run {_log(report, artifact)}\n"
    except (MlflowException, OSError) as error:
        raise ServerError(
            f"MLflow does not take the report: {printable(str(error).strip())}", hint=_hint()
        ) from None


def _hint() -> str | None:
    """Return a hint for a store of files, which newer versions of MLflow refuse."""
    import mlflow

    if urlsplit(mlflow.get_tracking_uri()).scheme not in ("", "file"):
        return None
    return "Try: MLFLOW_TRACKING_URI=sqlite:///mlflow.db, or the URL of a server of MLflow"


def _log(report: LoadReport, artifact: Artifact) -> str:
    """Log a report; return the id of its run."""
    import mlflow
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    from tuneline.core.page.to_html import html_page

    steps: dict[str, int] = {}
    metrics = []
    for point in metric_points(report):
        name = _name(point)
        step = steps.get(name, 0)
        steps[name] = step + 1
        metrics.append(Metric(name, point.value, round(point.at_unix_s * 1e3), step))
    with mlflow.start_run(run_name=f"load test of {report.endpoint.model}") as run:
        client, run_id = MlflowClient(), run.info.run_id
        params = {
            "url": report.endpoint.url,
            "model": report.endpoint.model,
            "workload": json.dumps(report.workload.model_dump(mode="json"), sort_keys=True),
        }
        tags = {"tuneline.verdict": report.verdict.value, "tuneline.digest": artifact.digest}
        for first in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[first : first + BATCH])
        client.log_batch(
            run_id,
            params=[Param(key, value[:MAX_PARAM]) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        page = html_page(load_document(artifact))
        try:
            mlflow.log_artifact(str(artifact.path / REPORT_FILE))
            mlflow.log_text(page, "report.html")
        except _upload_errors() as error:
            raise ServerError(
                f"MLflow run {run_id}: the metrics are stored, the files are not: "
                f"{printable(str(error).strip())}",
                hint="Check that this machine may write to the run's store of artifacts.",
            ) from None
    return str(run_id)


def _upload_errors() -> tuple[type[Exception], ...]:
    """Return the errors of MLflow's stores of artifacts: folders, servers and S3."""
    from mlflow.exceptions import MlflowException

    if importlib.util.find_spec("boto3") is None:
        return MlflowException, OSError
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return MlflowException, OSError, Boto3Error, BotoCoreError, ClientError


def _name(point: MetricPoint) -> str:
    """Return a name that is the point's own, such as `open/ttft/p99`."""
    parts = [str(point.labels["scenario"]), point.name]
    if (quantile := point.labels.get("quantile")) is not None:
        parts.append(f"p{100 * float(quantile):g}")
    parts += [str(point.labels[key]) for key in ("state", "verdict") if key in point.labels]
    return "/".join(parts)
