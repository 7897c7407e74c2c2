"""The training: base model, data, method, cost, and the curves of the training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.config.method import METHODS
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.page.blocks import Code, Pairs, Plot, Plots, Section, Text
from tuneline.core.page.numbers import count, digits, seconds, size, three_digits
from tuneline.core.page.plot import Axis, Series, line_plot
from tuneline.pipeline.stage import ADAPTER, DATASET
from tuneline.report.facts import Facts
from tuneline.report.sections.absent import absent_section

TITLE = "Model, data and training"
CURVE_FILE = "loss.jsonl"
STEP = "optimizer step"
LOG_RATIO = 20.0
"""A loss that falls by more has a logarithmic axis, so that its end can still be read."""
FIRST = ("loss", "learning_rate")
LEFT_OUT = ("step", "epoch", "grad_norm")
WORDS = {"distillation": "distillation", "reward": "reward model"}
"""The methods whose names are words, not initials."""
MAX_FURTHER = 4
"""Plots of figures of the method, such as rewards."""


def training_section(facts: Facts) -> Section | None:
    """Return base, data, method and cost of the training with its curves."""
    trained = facts.made.get(ADAPTER)
    if trained is None:
        return absent_section("training", TITLE, facts, [ADAPTER, DATASET])
    pairs = (*_base(facts, trained), *_data(facts), *_method(trained), *_cost(trained))
    curves = tuple(_curves(trained))
    blocks = (Pairs(pairs), *((Plots(curves),) if curves else ()))
    sources = facts.sources(DATASET, ADAPTER)
    return Section("training", TITLE, blocks, sources, facts.again("train"))


def _base(facts: Facts, trained: Artifact) -> list[tuple[str, Text]]:
    """Return the base model, and the teacher of a distillation."""
    release = facts.release
    known = {} if release is None else {"base": release.base, "teacher": release.teacher}
    method = facts.config.get("training", {}).get("method", {})
    names = {
        "base": ("base model", facts.config.get("base_model", "")),
        "teacher": ("teacher", method.get("teacher_model_name_or_path", "")),
    }
    pairs: list[tuple[str, Text]] = []
    for one in trained.manifest.inputs:
        if one.role in names:
            title, name = names[one.role]
            model = known.get(one.role)
            shown = "" if model is None else f", licence {model.license or 'unknown'}"
            pairs.append((title, (f"{name} ", Code(short_digest(one.digest)), shown)))
    return pairs


def _data(facts: Facts) -> list[tuple[str, Text]]:
    dataset = facts.made.get(DATASET)
    if dataset is None:
        return []
    metrics = dataset.manifest.metrics
    if facts.release is None:
        named = [facts.config["data"].get("path"), facts.config["data"].get("heldout_path")]
        paths, licence = [path for path in named if path], ""
    else:
        data = facts.release.data
        paths, licence = data.paths, f", licence {data.license or 'unknown'}"
    rows = (
        f"{count(metrics['num_train'])} training rows, {count(metrics['num_heldout'])} held-out "
        f"rows; {count(metrics['num_rows_read'])} training rows read"
    )
    named_files = ", ".join(paths) or "see the dataset's manifest"
    pairs: list[tuple[str, Text]] = [
        ("data", (f"{named_files} ", Code(dataset.short_digest), licence)),
        ("rows", rows),
    ]
    found = [
        f"{count(one['num_rows'])} {one['title']} ({_outcome(one)})"
        for one in metrics.get("checks", [])
        if one["num_rows"]
    ]
    return [*pairs, ("data checks", "; ".join(found))] if found else pairs


def _outcome(check: dict[str, Any]) -> str:
    changed = f"{check['num_changed']} changed" if check["num_changed"] else ""
    dropped = f"{check['num_dropped']} dropped" if check["num_dropped"] else ""
    return ", ".join(part for part in (dropped, changed) if part) or "kept"


def _method(trained: Artifact) -> list[tuple[str, Text]]:
    config = trained.manifest.config
    if not config:
        return []  # an adapter that was not trained here
    batch = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
    schedule = (
        f"{_duration(config)}, {batch} rows per step, learning rate "
        f"{config['learning_rate']:g} ({config['lr_scheduler_type']}), {config['optim']}, at most "
        f"{count(config['max_length'])} tokens, seed {config['seed']}"
    )
    return [("method", method_words(config)), ("schedule", schedule)]


def method_words(config: Mapping[str, Any]) -> str:
    """Return the method of a training, from its section of run.yaml, in words."""
    name = config["method"]["type"]
    method = WORDS.get(name, name.upper())
    if config["finetuning_type"] == "full":
        return f"{method}, all weights"
    adapter = "DoRA" if config["use_dora"] else "LoRA"
    scale = " (rsLoRA)" if config["use_rslora"] else ""
    quantized = ", 4-bit base" if config["load_in_4bit"] else ""
    return (
        f"{method}, {adapter} r {config['r']}, alpha {config['lora_alpha']}{scale}, "
        f"targets {_named(config['target_modules'])}{quantized}"
    )


def _duration(config: dict[str, Any]) -> str:
    steps = config.get("max_steps")
    return f"{config['num_train_epochs']:g} epochs" if steps is None else f"{count(steps)} steps"


def _named(targets: Any) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def _cost(trained: Artifact) -> list[tuple[str, Text]]:
    found, environment = trained.manifest.metrics, trained.manifest.environment
    done = (
        f"{count(found.get('num_steps'))} steps, {count(found.get('num_trained_tokens'))} trained "
        f"tokens, {count(found.get('num_trainable_parameters'))} trainable parameters in "
        f"{found.get('dtype', 'an unknown format')}"
    )
    cost = (
        f"{seconds(found.get('wall_s'))}, {digits(found.get('trained_tokens_per_s'))} trained "
        f"tokens/s, peak memory {size(found.get('peak_memory_bytes'))}"
    )
    pairs: list[tuple[str, Text]] = [("trained", done), ("cost", cost)]
    pairs.append(("machine", machine(environment.get("hardware", {}))))
    if "eval_loss" in found:
        loss = f"{digits(found.get('eval_loss_before'))} → {digits(found['eval_loss'])}"
        pairs.append(("held-out loss", f"{loss} {_loss_unit(trained)}".rstrip()))
    return pairs


def _loss_unit(trained: Artifact) -> str:
    """Return the unit of a training's loss; the loss of another method compares answers."""
    method = trained.manifest.config.get("method", {}).get("type", "sft")
    return "nats per token" if METHODS[method].has_token_loss else ""


def machine(hardware: dict[str, Any]) -> str:
    """Return a machine in words."""
    gpus = ", ".join(hardware.get("gpus", [])) or "no GPU"
    return (
        f"{hardware.get('cpu', 'unknown CPU')}, {hardware.get('cpu_cores', '?')} cores, "
        f"{hardware.get('memory_gib', '?')} GiB, {gpus}"
    )


def _curves(trained: Artifact) -> list[Plot]:
    path = trained.path / CURVE_FILE
    if not path.is_file():
        return []
    points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name for point in points for name in point]
    further = [
        name
        for name in dict.fromkeys(names)
        if name not in (*FIRST, *LEFT_OUT) and not name.startswith("eval_")
    ]
    unit = _loss_unit(trained)
    drawn = (_curve(points, name, unit) for name in (*FIRST, *further[:MAX_FURTHER]))
    return [plot for plot in drawn if plot is not None]


def _curve(points: list[dict[str, Any]], name: str, loss_unit: str) -> Plot | None:
    """Return the plot of one column of training and of held-out rows; None without a value."""
    held = f"eval_{name}"
    training = [(p["step"], p[name]) for p in points if p.get(name) is not None]
    heldout = [(p["step"], p[held]) for p in points if p.get(held) is not None]
    values = [value for _, value in (*training, *heldout)]
    if not values:
        return None
    is_log = min(values) > 0 and max(values) > LOG_RATIO * min(values) and name == "loss"
    low = None if is_log or min(values) < 0 else 0.0
    title = name.removeprefix("rewards/").replace("_", " ").capitalize()
    label = loss_unit if name == "loss" else ""
    show = three_digits if name == "learning_rate" else digits
    return line_plot(
        title,
        [Series("training", training), Series("held-out rows", heldout, "marked")],
        Axis(STEP, show=count, limits=(0.0, None)),
        Axis(label, show=show, is_log=is_log, limits=(low, None)),
    )
