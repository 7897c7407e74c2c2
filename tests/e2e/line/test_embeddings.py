"""The line of an embedding model: trained, merged, served by real vLLM, and its vectors proven."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands import tuneline_here

COLORS = ("red", "green", "blue", "brown", "white", "black", "grey", "pink")
SIZES = ("small", "large", "narrow", "wide", "short", "tall")


def test_the_served_vectors_are_those_of_the_trained_embedding_model(tmp_path: Path) -> None:
    pairs = [(color, size) for color in COLORS for size in SIZES]
    rows = [
        {"query": f"WHICH BOX IS {color.upper()} AND {size.upper()}?",
         "positive": f"The box in row {at} is {color} and {size}."}
        for at, (color, size) in enumerate(pairs)
    ]  # fmt: skip
    order = [at * 17 % len(rows) for at in range(len(rows))]
    lines = [json.dumps(rows[at]) + "\n" for at in order]
    (tmp_path / "train.jsonl").write_text("".join(lines[:24]))
    (tmp_path / "heldout.jsonl").write_text("".join(lines[24:]))
    (tmp_path / "run.yaml").write_text(
        """
name: boxes
base_model: tiny-base
data: {path: train.jsonl, heldout_path: heldout.jsonl}
training:
  method: {type: embedding, query_prompt: "query: "}
  max_steps: 4
  learning_rate: 1.0e-3
  max_length: 128
export: {merge: {dtype: float32}}
serving:
  routes: [embeddings]
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
    report = json.loads((folder / "vectors.json").read_text())
    assert (report["verdict"], report["num_texts"], report["dimensions"]) == ("PASS", 64, 256)
    assert report["limit"] == 2e-4 and 0 < report["max_relative_difference"] < 2e-5
    assert all(len(vector) == 256 for vector in report["vectors"])

    (folder,) = runs.glob("evaluation-retrieval-*")
    texts = [json.loads(line)["text"] for line in (folder / "vectors.jsonl").open()]
    assert sum(text.startswith("query: WHICH BOX") for text in texts) == 24
    (folder,) = runs.glob("loadtest-*")
    load = json.loads((folder / "report.json").read_text())
    assert load["verdict"] == "PASS"
    (model,) = runs.glob("model-*")
    modules = json.loads((model / "modules.json").read_text())
    assert [one["type"].rpartition(".")[2] for one in modules] == [
        "Transformer", "Pooling", "Normalize",
    ]  # fmt: skip
