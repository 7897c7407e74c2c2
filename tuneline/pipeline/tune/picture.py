"""The picture of a tuning: the rate of each trial, in its order."""

from __future__ import annotations

from pathlib import Path

from tuneline.pipeline.tune.schema import Trial, TuneReport

COLORS = {"held": "tab:green", "beaten": "tab:gray", "no rate": "tab:gray", "wrong": "tab:red"}
HEIGHT_PER_TRIAL = 0.34


def draw_trials(report: TuneReport, directory: Path) -> None:
    """Write `trials.png`: a bar for each trial, from the top in their order.

    The bar of a trial that was beaten ends at the rate that it does not hold. The line is the rate
    of the run's own settings, and the whisker goes to the lowest rate that failed.
    """
    from matplotlib.figure import Figure

    trials = report.trials
    figure = Figure(figsize=(10, 1.6 + HEIGHT_PER_TRIAL * len(trials)), layout="constrained")
    axes = figure.subplots()
    for place, trial in enumerate(trials):
        rate = trial.rate_rps if trial.rate_rps is not None else trial.to_beat_rps or 0.0
        is_upper = trial.rate_rps is None
        axes.barh(
            place, rate, color="white" if is_upper else COLORS.get(trial.state, "tab:orange"),
            edgecolor=COLORS.get(trial.state, "tab:orange"), hatch="//" if is_upper else None,
        )  # fmt: skip
        if trial.rate_rps is not None and trial.failing_rps is not None:
            axes.plot([trial.rate_rps, trial.failing_rps], [place, place], color="black")
        axes.text(rate, place, f"  {trial.state}", va="center", fontsize="small")
    if report.own_rate_rps is not None:
        axes.axvline(report.own_rate_rps, color="black", linestyle=":", linewidth=0.8)
    axes.set_yticks(range(len(trials)), [_label(trial) for trial in trials], fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set(xlabel="requests/s that keep the objectives (hatched: less than this)")
    figure.savefig(directory / "trials.png", dpi=110)


def _label(trial: Trial) -> str:
    if not trial.settings:
        return f"{trial.number}: the run's own"
    words = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in trial.settings.items()]
    return f"{trial.number}: {', '.join(words)}"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("method", "drafter")) + f" x{value.get('num_speculative_tokens')}"
    return str(value)
