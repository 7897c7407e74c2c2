"""The Indexed Job of a search: pods that share one study."""

from __future__ import annotations

from k8s.render.facts import Document
from k8s.render.training.facts import TrainingFacts


def search_objects(facts: TrainingFacts, job: Document) -> list[Document]:
    """Return an Indexed Job of `tuneline search`; the study is on the claim.

    A pod that ends gives its point back to the study, and any pod takes it up again.
    """
    workers = facts.training.workers
    spec = job["spec"]
    spec |= {"completionMode": "Indexed", "completions": workers, "parallelism": workers}
    spec["backoffLimit"] = facts.training.retries * workers
    (container,) = spec["template"]["spec"]["containers"]
    container["command"] = ["tuneline", "search"]
    # Next to run.yaml, by default; a ConfigMap is read-only.
    container["args"].append(f"--out=/work/runs/{facts.run}.best.yaml")
    return [job]
