"""Draw docs/images/report-{light,dark}.png from a finished run's own artifacts.

    python scripts/readme_picture.py runs/support-tickets

The run needs the stages of `tuneline up`; `tuneline prove` on a run with `export.forms` adds rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "docs" / "images"
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1f2328", "soft": "#656d76", "line": "#d8dee4",
              "main": "#0969da", "good": "#1a7f37", "warm": "#bc4c00"},
    "dark": {"paper": "#0d1117", "ink": "#e6edf3", "soft": "#9198a1", "line": "#30363d",
             "main": "#58a6ff", "good": "#3fb950", "warm": "#f0883e"},
}  # fmt: skip
Theme = dict[str, str]


def newest(run: Path, pattern: str) -> Path:
    """Return the newest file of the run that matches the pattern."""
    found = sorted(run.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"{run}: no file {pattern}; run `tuneline up` first")
    return found[-1]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def draw_training(axes: Axes, run: Path, theme: Theme) -> None:
    """Draw training and held-out loss, and the exact match before and after training."""
    lines = newest(run, "adapter-*/loss.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    for key, colour, label in (("loss", "main", "training"), ("eval_loss", "warm", "held-out")):
        points = [(row["step"], row[key]) for row in steps if row.get(key)]
        marker = "o" if key == "eval_loss" else None
        axes.plot(*zip(*points, strict=True), color=theme[colour], lw=1.8, marker=marker, ms=5,
                  ls=":" if marker else "-", label=label)  # fmt: skip
    match = {
        who: read_json(newest(run, f"evaluation-{who}-*/manifest.json"))["metrics"]
        for who in ("base", "tuned", "served")
    }
    rows = [
        ("base model", match["base"]), ("base + adapter", match["tuned"]),
        ("served by vLLM", match["served"]),
    ]  # fmt: skip
    text = "\n".join(f"{name:<15}{m['exact_match']:>6.1%}" for name, m in rows)
    axes.text(0.97, 0.60, "held-out exact match", transform=axes.transAxes, ha="right",
              color=theme["soft"], fontsize=9.5)  # fmt: skip
    axes.text(0.97, 0.56, text, transform=axes.transAxes, ha="right", va="top",
              family="DejaVu Sans Mono", fontsize=10.5, color=theme["ink"],
              linespacing=1.5)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False, labelcolor=theme["ink"], loc="upper right", ncols=2)


def draw_ladder(axes: Axes, run: Path, theme: Theme) -> None:
    """Draw each form's largest log-probability difference next to its limit."""
    ladder = []
    for path in run.glob("parity-*/parity.json"):
        limit = read_json(path.parent / "manifest.json")["config"]["tolerances"]
        ladder.append((read_json(path), limit["max_logprob_difference"]))
    ladder.sort(key=lambda row: row[0]["max_logprob_difference"], reverse=True)
    first = ladder[0][0]
    for at, (parity, limit) in enumerate(ladder):
        difference = parity["max_logprob_difference"]
        axes.plot([1e-7, difference], [at, at], color=theme["line"], lw=1, zorder=1)
        axes.plot(difference, at, "o", color=theme["main"], ms=7, zorder=3)
        if limit is not None:
            axes.plot(limit, at, "|", color=theme["warm"], ms=13, mew=2.2, zorder=2)
        answers = f"{parity['num_equal_answers']}/{parity['num_prompts']}"
        verdict = parity["verdict"].upper()
        axes.text(1.02, at, answers, transform=axes.get_yaxis_transform(), va="center",
                  family="DejaVu Sans Mono", fontsize=9.5, color=theme["ink"])  # fmt: skip
        axes.text(1.19, at, verdict, transform=axes.get_yaxis_transform(), va="center",
                  weight="bold", fontsize=9.5,
                  color=theme["good" if verdict == "PASS" else "warm"])  # fmt: skip
    axes.text(1.02, len(ladder) - 0.42, "answers equal", transform=axes.get_yaxis_transform(),
              fontsize=8.5, color=theme["soft"], va="bottom")  # fmt: skip
    noise = first["reference_noise"]
    axes.axvline(noise, color=theme["soft"], lw=1, ls=":")
    axes.text(noise * 1.15, -0.72, "the reference computed twice", va="center", fontsize=8.5,
              color=theme["soft"])  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1e-6, 4)
    axes.set_ylim(-1.05, len(ladder) - 0.4)
    axes.set_yticks(range(len(ladder)), [parity["form"] for parity, _ in ladder])
    axes.set_xlabel("largest log-probability difference, nats   ( | limit )")


def draw_load(axes: Axes, run: Path, theme: Theme) -> None:
    """Draw the TTFT of every request of the open-loop scenario, with its percentiles."""
    report = read_json(newest(run, "load*/report.json"))
    scenario = next(s for s in report["scenarios"] if s["config"].get("rate_rps"))
    records = np.load(newest(run, f"load*/records-{scenario['name']}.npz"))
    measured = ~records["warmup"]
    at = records["intended_s"][measured]
    ttft_ms = (records["first_token_s"][measured] - at) * 1000
    axes.scatter(at, ttft_ms, s=13, color=theme["main"], alpha=0.75, lw=0)
    for q in (50, 90, 99):
        value = float(np.percentile(ttft_ms, q))
        axes.axhline(value, color=theme["warm"], lw=1, ls="--", alpha=0.9)
        axes.text(1.005, value, f"p{q}  {value:.0f} ms", transform=axes.get_yaxis_transform(),
                  va="center", fontsize=9.5, color=theme["ink"])  # fmt: skip
    axes.set_ylim(0, None)
    axes.set_xlim(0, float(at.max()) + 0.5)
    axes.set_xlabel("intended time of the request, s")
    axes.set_ylabel("TTFT, ms")
    requests = scenario["requests"]
    lag = scenario["client"]["send_lag_s"]["percentiles"]["p50"] * 1000
    bias = scenario["calibration"]["ttft_bias_p50_s"] * 1000
    said = (
        f"{report['verdict']}   {requests['succeeded']} of {requests['offered']} requests succeeded"
        f"  ·  {scenario['throughput']['output_tokens_per_s']:.0f} output tokens/s"
        f"  ·  client: {lag:.1f} ms late and {bias:.2f} ms of bias at the median"
    )
    axes.set_title(said, loc="left", fontsize=9.5, color=theme["soft"], pad=5)


def draw(run: Path, theme: Theme, out: Path) -> None:
    """Write the three panels as one PNG."""
    matplotlib.rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 10, "text.color": theme["ink"],
        "axes.labelcolor": theme["soft"], "axes.edgecolor": theme["line"],
        "axes.facecolor": theme["paper"], "figure.facecolor": theme["paper"],
        "xtick.color": theme["soft"], "ytick.color": theme["ink"], "axes.spines.top": False,
        "axes.spines.right": False,
    })  # fmt: skip
    figure = plt.figure(figsize=(12, 7.4))
    panels = [
        ((0.06, 0.50, 0.32, 0.41), "1  Trained", draw_training),
        ((0.515, 0.50, 0.345, 0.41), "2  Compared with the trained model", draw_ladder),
        ((0.06, 0.075, 0.855, 0.265), "3  Under load: Poisson arrivals, streaming", draw_load),
    ]
    for place, title, paint in panels:
        axes = figure.add_axes(place)
        axes.grid(axis="y" if paint is not draw_ladder else "x", color=theme["line"], lw=0.6)
        axes.set_axisbelow(True)
        paint(axes, run, theme)
        axes.text(0, 1.13 if paint is draw_load else 1.05, title, transform=axes.transAxes,
                  fontsize=13, weight="bold", va="bottom", color=theme["ink"])  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=125, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Draw both themes from the run directory that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/readme_picture.py RUN_DIR")
    matplotlib.use("Agg")
    for name, theme in THEMES.items():
        out = IMAGES / f"report-{name}.png"
        draw(Path(sys.argv[1]), theme, out)
        print(f"{out}: {out.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
