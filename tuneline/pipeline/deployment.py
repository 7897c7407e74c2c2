"""A released run and its server in a cluster: the manifests, and the questions that prove it."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from k8s import Cluster, Manifests, open_tunnel, read_manifests, read_server_key
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.endpoint import Endpoint, read_key
from tuneline.core.errors import ArtifactError, ConfigError, ServerError, VerdictError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import logger
from tuneline.core.verdict import Verdict, require_verdict
from tuneline.models.source import computed_dtype
from tuneline.pipeline.deploy import render_run
from tuneline.pipeline.plan import current
from tuneline.pipeline.released import find_release
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.server import model_source, served_formats
from tuneline.pipeline.stage import DATASET, MODEL, PREFERENCES, REFERENCE, RETRIEVAL

NUM_PROMPTS = 32
"""Prompts of the reference that a smoke test sends: few enough for seconds, and enough that one
near tie in bfloat16 does not fail them."""
ANSWER_S = 30.0

Check = Callable[[str], None]


def render_released(run: Run, release_dir: Path | None = None) -> Manifests:
    """Return the manifests of a run from its release, as `deploy render` writes them.

    Raises:
        VerdictError: The run has no release whose gates pass.
        TunelineError: As `render_run` does.
    """
    with tempfile.TemporaryDirectory(prefix="tuneline-deploy-") as folder:
        try:
            return read_manifests(render_run(run, Path(folder) / "tree", release_dir=release_dir))
        except VerdictError as error:
            raise VerdictError(error.message, hint=f"Try: {run.command('release')}") from None


def local_release(run: Run) -> str | None:
    """Return the digest of the run's release that may be deployed; None if there is none."""
    try:
        (model,) = current(run, MODEL)
        config = run.config.model_dump(mode="json")
        return find_release(run.dir, run.command("release"), model.digest, config)[0].digest
    except (ArtifactError, VerdictError) as error:
        logger.info("no local release: %s", error.message)
        return None


def require_digest(model_digest: str) -> Check:
    """Return a check that a server states the digest of a model; it needs no key."""

    def check(url: str) -> None:
        facts = _read_ready(url)
        if facts.get("digest") != model_digest:
            raise ServerError(
                f"the server serves {facts.get('digest') or 'a model without a digest'}; the "
                f"release is of {model_digest}",
                hint="Does another server have the same labels? "
                "Try: kubectl get pods -l app.kubernetes.io/part-of=tuneline",
            )
        logger.info("  the server states the model's digest %s", short_digest(model_digest))

    return check


def _read_ready(url: str) -> dict[str, Any]:
    """Return what the server states about itself at `/ready`."""
    # No proxy can reach a loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/ready", timeout=ANSWER_S) as response:
            found = json.loads(response.read(100_000))
    except urllib.error.HTTPError as error:
        raise ServerError(f"/ready: status {error.code}; expected the model's digest") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServerError(f"/ready: no answer: {error}") from None
    return found if isinstance(found, dict) else {}


def prove_pod(run: Run, manifests: Manifests, key: str | None) -> Check:
    """Return a check that a server is the released one: the digest that it states, its names, and
    its answers to prompts of the reference, by the openai client. Of a reward model and a
    reranker, the scores; of an embedding model, the vectors.

    Raises:
        NotAnArtifactError: The reference, or the evaluation of such a model, is stale.
    """
    known, compare = {
        "text": (REFERENCE, _compare_answers),
        "scores": (PREFERENCES, _compare_scores),
        "vectors": (RETRIEVAL, _compare_vectors),
        "relevance": (RETRIEVAL, _compare_relevance),
    }[run.config.training.method.makes]
    model, truth = current(run, MODEL, known)
    states_digest = require_digest(manifests.model_digest)

    def check(url: str) -> None:
        states_digest(url)
        name = f"{run.config.name}@{short_digest(manifests.model_digest)}"
        endpoint = Endpoint(f"{url}/v1", name, key)
        with openai_client(endpoint, timeout_s=ANSWER_S) as client:
            names = [entry.id for entry in client.models.list()]
        if name not in names:
            raise ServerError(f"the server serves {', '.join(names)}; expected {name}")
        compare(run, model, truth, endpoint)

    return check


def _compare_scores(run: Run, model: Artifact, preferences: Artifact, endpoint: Endpoint) -> None:
    """Compare scores of held-out answers with those of the trained reward model.

    Raises:
        VerdictError: They differ by more than the number format explains.
    """
    from serving import compare_served_rewards

    serving = run.config.serving
    found, _ = compare_served_rewards(
        serving.parity,
        preferences,
        endpoint,
        route=serving.score_route,
        formats=served_formats(serving, model_source(model)),
        num_answers=NUM_PROMPTS,
    )
    differ = f"{found['max_relative_difference']:.2g} standard deviations"
    if found["verdict"] != Verdict.PASS:
        raise VerdictError(
            f"the scores of the server differ from the trained model's by {differ}; at most "
            f"{found['limit']:g} is allowed"
        )
    logger.info("  %d scores are the trained model's, within %s", NUM_PROMPTS, differ)


def _compare_relevance(run: Run, model: Artifact, evaluation: Artifact, endpoint: Endpoint) -> None:
    """Compare scores of queries with passages with those of the trained reranker.

    Raises:
        VerdictError: They differ by more than the number format explains, or the server reads other
            tokens.
    """
    from serving import compare_served_relevance

    serving = run.config.serving
    found, _ = compare_served_relevance(
        serving.parity,
        evaluation,
        endpoint,
        formats=served_formats(serving, model_source(model)),
        num_lists=NUM_PROMPTS,
    )
    if found["verdict"] != Verdict.PASS:
        raise VerdictError(
            f"the scores of the server are not the trained model's: {'; '.join(found['problems'])}"
        )
    logger.info(
        "  %d scores are the trained model's, within %.2g standard deviations",
        found["num_pairs"], found["max_relative_difference"],
    )  # fmt: skip


def _compare_vectors(run: Run, model: Artifact, evaluation: Artifact, endpoint: Endpoint) -> None:
    """Compare vectors of texts with those of the trained embedding model.

    Raises:
        VerdictError: They differ by more than the number format explains.
    """
    from serving import compare_trained_vectors

    serving = run.config.serving
    found, _ = compare_trained_vectors(
        serving.parity,
        evaluation,
        endpoint,
        route=serving.vector_route,
        formats=served_formats(serving, model_source(model)),
        num_texts=NUM_PROMPTS,
    )
    if found["verdict"] != Verdict.PASS:
        raise VerdictError(
            f"the vectors of the server are not the trained model's: {'; '.join(found['problems'])}"
        )
    logger.info(
        "  %d vectors are the trained model's, within %.2g of their length",
        found["num_texts"], found["max_relative_difference"],
    )  # fmt: skip


def _compare_answers(run: Run, model: Artifact, reference: Artifact, endpoint: Endpoint) -> None:
    """Compare answers with the reference.

    Raises:
        VerdictError: They differ by more than the run's tolerances.
    """
    from export import weight_tolerances
    from serving import compare_served

    metrics = reference.manifest.metrics
    if metrics.get("chat_template_date") and not metrics.get("chat_template_date_variable"):
        logger.warning("the chat template writes today's date; answers are not compared")
        return
    source = model_source(model)
    dtype = computed_dtype(run.config.serving.dtype, source)
    parity = compare_served(
        run.config.serving.parity,
        reference,
        endpoint,
        dtype=dtype,
        weights=weight_tolerances(source, dtype),
        num_prompts=NUM_PROMPTS,
    )
    if parity.problems:
        reasons = "\n".join(f"  {problem}" for problem in parity.problems)
        raise VerdictError(
            f"the answers of the server differ from the reference's "
            f"({parity.num_equal_answers} of {parity.num_prompts} are equal)\n{reasons}"
        )
    logger.info(
        "  %d of %d answers equal the reference's", parity.num_equal_answers, parity.num_prompts
    )


def find_key(cluster: Cluster, deployment: dict[str, Any], variable: str) -> str | None:
    """Return the API key: the environment variable's, else the one in the server's Secret."""
    return read_key(os.environ, variable) or read_server_key(cluster, deployment)


def compare_speeds(
    run: Run, cluster: Cluster, stable: str, key: str | None, out: Path
) -> Callable[[int], None]:
    """Return a check of one canary step: the canary is not slower than the stable run.

    Both are asked through a port-forward, in turns, with the run's scenarios and prompts. A verdict
    other than PASS raises its error. Each step writes an artifact below `out`.

    Raises:
        ArtifactError: `out` has reports already.
        ConfigError: The model gives scores, which no load test asks for.
    """
    if run.config.serving.pools:
        raise ConfigError(
            f"{run.path}: --compare asks for text, and this model gives scores; expected a canary "
            "without --compare"
        )
    from loadtest import compare_endpoints
    from tuneline.core.dataset import heldout_prompts
    from tuneline.pipeline.served_stages import loadtest_config

    if any(out.glob("weight-*")):
        raise ArtifactError(
            f"{out}: has reports of an earlier canary", hint="Choose another --compare DIR."
        )
    (dataset,) = current(run, DATASET)

    def check(weight: int) -> None:
        with open_tunnel(cluster, stable) as a, open_tunnel(cluster, run.config.name) as b:
            compared = compare_endpoints(
                loadtest_config(run),
                Endpoint(f"{a.url}/v1", stable, key),
                Endpoint(f"{b.url}/v1", run.config.name, key),
                out / f"weight-{weight}",
                prompts=heldout_prompts(dataset),
            )
        require_verdict(compared)

    return check
