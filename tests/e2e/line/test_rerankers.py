"""The line of a reranker: trained, merged, served by real vLLM, and its scores proven."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands import tuneline_here

COLORS = ("red", "green", "blue", "brown", "white", "black", "grey", "pink")
SIZES = ("small", "large", "narrow", "wide", "short", "tall")


def _row(at: int) -> dict[str, object]:
    """A query, the passage with its words, and passages with one other word."""
    color, size = COLORS[at % 8], SIZES[at // 8]
    others = [(COLORS[(at + 3) % 8], size), (color, SIZES[(at // 8 + 1) % 6])]
    return {
        "query": f"Which box is {color} and {size}?",
        "positive": f"The box in row {at} is {color} and {size}.",
        "negatives": [f"The box in row {at + 50} is {one} and {two}." for one, two in others],
    }


def test_the_served_scores_are_those_of_the_trained_reranker(tmp_path: Path) -> None:
    lines = [json.dumps(_row(at * 17 % 48)) + "\n" for at in range(48)]
    (tmp_path / "train.jsonl").write_text("".join(lines[:24]))
    (tmp_path / "heldout.jsonl").write_text("".join(lines[24:]))
    (tmp_path / "run.yaml").write_text(
        """
name: boxes
base_model: tiny-base
data: {path: train.jsonl, heldout_path: heldout.jsonl}
training:
  method: {type: reranker}
  max_steps: 4
  learning_rate: 1.0e-3
  max_length: 128
export: {merge: {dtype: float32}}
serving:
  routes: [score]
  dtype: float32
  max_model_len: 128
  enforce_eager: true
  cpu_kvcache_space_gib: 1
loadtest:
  max_client_lag_s: 2.0
  scenarios: [{name: closed, concurrency: 2, num_requests: 40}]
  slo: {e2e_s: {p50: 30}}
"""
    )
    place = ("--runs-dir", str(tmp_path / "runs"))
    done = tuneline_here("up", str(tmp_path / "run.yaml"), *place, "--json")
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs" / "boxes"
    (folder,) = runs.glob("parity-served-*")
    report = json.loads((folder / "relevance.json").read_text())
    assert (report["verdict"], report["num_pairs"], report["num_lists"]) == ("PASS", 63, 21)
    assert report["num_equal_token_counts"] == 21
    assert report["limit"] == 2e-3 and 0 < report["max_relative_difference"] < 2e-4

    (folder,) = runs.glob("loadtest-*")
    load = json.loads((folder / "report.json").read_text())
    assert load["verdict"] == "PASS"
    (folder,) = runs.glob("evaluation-retrieval-*")
    found = json.loads((folder / "retrieval.json").read_text())
    assert (found["num_queries"], found["num_passages"], found["base_order"]) == (24, 72, "BM25")
