"""A first run.yaml for data and a base model: every choice follows from a measured fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import DataConfig, TrainingConfig
from tuneline.core.config import validate_config
from tuneline.core.environment import gpu_names
from tuneline.core.errors import ArtifactError
from tuneline.core.free_memory import free_host_bytes
from tuneline.models.context import context_length
from tuneline.models.network import read_network
from tuneline.models.source import ModelSource, computed_dtype
from tuneline.pipeline.choices import Choice, relative_path, run_name, write_choices

if TYPE_CHECKING:
    from training import DataFacts

HEAD = (
    "Written by tuneline init. The comment above each key has the reason for its value. "
    "docs/configuration.md has every key. Next: tuneline check RUN.yaml"
)
LARGEST_BATCH = 8
UNLIMITED_CONTEXT = 4096
"""Most tokens of a row if the base model's files name no limit."""
ROWS_PER_STEP = 16
STEPS_PER_EPOCH = 20
"""At least; smaller data gets smaller steps."""
FEW_ROWS = 500
LEAST_STEPS = 200
"""Steps that a new adapter gets by more epochs, if the rows are few."""
MOST_EPOCHS = 10
LEARNED_ANEW = ("answer", "text", "retrieval")
LEAST_COMPARED, COMPARED_PER_STEP = 32, 64
"""Queries of a step of an embedding model, which are compared with the passages of all."""
"""Kinds of rows that teach something new. Preferences and rewards move a model a little."""
USUAL_WIDTH = 2048
"""The hidden size from which on the default learning rate fits."""


def write_first_run(
    file: str, base: ModelSource, base_name: str, out: Path, data: Mapping[str, Any]
) -> DataFacts:
    """Write a run.yaml whose choices fit the data, the base model and this machine.

    Args:
        file: As `data.path`, relative to the current folder.
        base: The base model.
        base_name: Its name as it is written in run.yaml.
        out: The new run.yaml.
        data: Other keys of the section `data`.

    Raises:
        ConfigError: `out` exists.
        DataError: Rows cannot be read.
    """
    from training import find_heldout, measure_data

    heldout = find_heldout(file, Path())
    config = validate_config(DataConfig, {"path": file, **data, **heldout}, "options")
    facts = measure_data(config, base, Path())
    path = Path(file.removeprefix("hf:"))
    stem = path.name.partition(".")[0]
    stem = path.resolve().parent.name if stem in ("train", "data", "rows") else stem
    written = {k: relative_path(v, out) if k == "heldout_path" else v for k, v in heldout.items()}
    choices = [
        Choice("name", run_name(stem), "Names the run's folder and the served model."),
        Choice("base_model", base_name),
        Choice("data.path", relative_path(file, out), _data_reason(facts)),
        *[Choice(f"data.{key}", value) for key, value in data.items() if value],
        *_template_choices(facts),
        *_heldout_choices(written, facts),
        *_training_choices(facts, base, facts.counts.num_kept - _num_held_out(written, facts)),
    ]
    write_choices(out, [HEAD], choices)
    return facts


def _data_reason(facts: DataFacts) -> str:
    counted = "" if facts.num_measured == facts.counts.num_kept else (
        f" (of a random sample of {facts.num_measured:,} rows)"
    )  # fmt: skip
    parts = ("query", "passage") if facts.kind == "retrieval" else ("prompt", "answer")
    left = f" Not trained on: the columns {', '.join(facts.other_columns[:8])}."
    return (
        f"{facts.counts.num_kept:,} rows of kind {facts.kind}. In tokens{counted}: the longest row "
        f"has {facts.longest:,}, 95 % have at most {facts.usual:,}; the longest {parts[0]} "
        f"has {facts.longest_prompt:,} and the longest {parts[1]} {facts.longest_answer:,}."
        + (left if facts.other_columns else "")
    )


def _template_choices(facts: DataFacts) -> list[Choice]:
    if facts.chat_template is None:
        return []
    reason = (
        "The base model has no chat template. This one is trained, written into the trained model "
        "and served."
    )
    return [Choice("data.chat_template", facts.chat_template, reason)]


def _heldout_choices(heldout: Mapping[str, str], facts: DataFacts) -> list[Choice]:
    if heldout:
        reason = "Lies with the data; its name says that it is not for training."
        return [Choice(f"data.{key}", value, reason) for key, value in heldout.items()]
    share, reason = _heldout_share(facts)
    return [Choice("data.heldout_fraction", share, reason)]


def _heldout_share(facts: DataFacts) -> tuple[float, str]:
    """Return the share of the prompts that is held out, and the reason."""
    rows, how = facts.counts.num_kept, "by a hash of seed and prompt"
    if rows < FEW_ROWS:
        return 0.2, f"A fifth of the prompts, {how}; a tenth of so few tells little."
    if rows <= 20_000:
        return 0.1, f"A tenth of the prompts, {how}."
    share = max(round(2000 / rows, 4), 0.0001)
    return share, f"About 2,000 prompts, {how}; enough to tell accuracies apart by 2 points."


def _num_held_out(heldout: Mapping[str, str], facts: DataFacts) -> int:
    return 0 if heldout else round(facts.counts.num_kept * _heldout_share(facts)[0])


def _training_choices(facts: DataFacts, base: ModelSource, num_trained: int) -> list[Choice]:
    """Return the keys of training, evaluation and serving."""
    rows = facts.counts.num_kept
    # A sample may miss the longest row.
    slack = 1.0 if facts.num_measured == rows else 1.25
    context = context_length(base.path) or UNLIMITED_CONTEXT
    methods = _method(facts)
    sampled = _num_sampled_tokens(methods)
    and_answer = f" and an answer of {sampled:,} tokens" if sampled else ""
    wanted = facts.longest * slack + sampled
    max_length = min(_up(wanted, 64), context)
    fits = (
        f"the longest row ({facts.longest:,} tokens){and_answer}, rounded up to a multiple of 64."
    )
    if wanted > context:
        fits = (
            f"the base model's context. The longest row has {facts.longest:,} tokens{and_answer}: "
            "data.checks.length: fix drops the rows that do not fit. Or choose a base with a "
            "longer context."
        )
    rows_per_step = min(ROWS_PER_STEP, max(rows // STEPS_PER_EPOCH, 2))
    if facts.kind == "retrieval":
        rows_per_step = min(COMPARED_PER_STEP, max(rows // STEPS_PER_EPOCH, LEAST_COMPARED), rows)
    if facts.kind == "prompt":
        rows_per_step = ROWS_PER_STEP  # a multiple of the answers per prompt
    batch, memory, automatic = _batch(methods, max_length, rows_per_step, base)
    accumulation = max(rows_per_step // batch, 1)
    steps = -(-num_trained // (batch * accumulation))
    trained = [
        *methods,
        Choice("training.max_length", max_length, f"Fits {fits}"),
        *_learning_rate(facts, base, methods),
        *_epochs(facts, steps),
        Choice("training.per_device_train_batch_size", batch, memory),
        Choice(
            "training.gradient_accumulation_steps",
            accumulation,
            f"{batch * accumulation} rows per step, so that an epoch has about {steps:,} steps.",
        ),
        *automatic,
    ]
    if facts.kind == "retrieval":
        return [*trained, *_served_vectors(base, max_length), *_client_lag()]
    return [*trained, *_answer_choices(facts, base, wanted, slack, sampled)]


def _answer_choices(
    facts: DataFacts, base: ModelSource, wanted: float, slack: float, sampled: int
) -> list[Choice]:
    """Return how long answers are in evaluation, proof, server and load test.

    Args:
        wanted: Tokens of the longest row and of what the method adds to it.
        slack: Above 1 if the rows that were measured are a sample.
        sampled: Tokens that the method adds to a row in training.
    """
    context = context_length(base.path) or UNLIMITED_CONTEXT
    new_tokens = _up(max(facts.longest_answer * slack, sampled, 16) * 1.25, 16)
    answered = "A quarter more than the longest answer."
    room = context // 2 if wanted > context else context - int(facts.longest_prompt * slack)
    if new_tokens > room:
        new_tokens, answered = max(room, 16), "As many as the base model's context has room for."
    served = min(_up(facts.longest_prompt * slack + new_tokens, 64), context)
    if wanted > context:
        served = context
    return [
        Choice("evaluation.max_new_tokens", new_tokens, answered),
        Choice("reference.max_new_tokens", min(new_tokens, 128),
               "The proof compares this many tokens of each answer at most."),
        Choice(
            "serving.max_model_len", served,
            "The longest prompt and the longest answer." + _without_parser(facts),
        ),
        *_served_dtype(base),
        *_tool_choices(facts),
        Choice("loadtest.max_tokens", min(new_tokens, 64), "The longest answer under load."),
        *_client_lag(),
    ]  # fmt: skip


def _learning_rate(facts: DataFacts, base: ModelSource, methods: Sequence[Choice]) -> list[Choice]:
    """Return the learning rate of a base that is narrower than those that the default fits."""
    try:
        width = read_network(base.path).hidden_size
    except ArtifactError:  # its files name no sizes
        return []
    if facts.kind not in LEARNED_ANEW or width >= USUAL_WIDTH:
        return []
    usual = TrainingConfig.model_validate({"method": _values(methods)}).learning_rate
    reason = (
        f"The base has a hidden size of {width:,}; the default {usual} fits {USUAL_WIDTH:,}, and "
        "Adam's rate goes by the inverse of this size (Yang et al., 2022, arXiv:2203.03466)."
    )
    return [Choice("training.learning_rate", float(f"{usual * USUAL_WIDTH / width:.1g}"), reason)]


def _epochs(facts: DataFacts, steps: int) -> list[Choice]:
    """Return the epochs, and that the best one is kept if they are more than usual."""
    rows = facts.counts.num_kept
    usual = 3 if rows < 10_000 else 2 if rows < 100_000 else 1
    wanted = min(-(-LEAST_STEPS // max(steps, 1)), MOST_EPOCHS)
    if facts.kind not in LEARNED_ANEW or wanted <= usual:
        return [Choice("training.num_train_epochs", usual, f"{rows:,} rows.")]
    few = f"{rows:,} rows make {steps:,} steps per epoch, and {LEAST_STEPS} steps are wanted"
    few += f"; at most {MOST_EPOCHS} epochs." if wanted == MOST_EPOCHS else "."
    best = "Many epochs can learn few rows by heart: the one with the best held-out loss is kept."
    return [
        Choice("training.num_train_epochs", wanted, few),
        Choice("training.load_best_model_at_end", True, best),
    ]


def _client_lag() -> list[Choice]:
    """Return how late the load test's client may be if it shares its cores with the server."""
    if gpu_names():
        return []
    reason = (
        "No GPU is here: the client shares its cores with the server. On a host of its own, leave "
        "this line out."
    )
    return [Choice("loadtest.max_client_lag_s", 0.25, reason)]


def _served_dtype(base: ModelSource) -> list[Choice]:
    """Return the number format of a server on a CPU, if the base model's own is a shorter one."""
    if gpu_names() or computed_dtype("auto", base) == "float32":
        return []
    size_bytes = sum(file.stat().st_size for file in base.path.glob("*.safetensors"))
    if 2 * size_bytes > free_host_bytes() / 2:
        return []
    reason = (
        "No GPU is here. In float32 the server computes as the proof does; shorter formats are "
        "slow on most CPUs, and their rounding changes answers of a model that is not sure."
    )
    return [Choice("serving.dtype", "float32", reason)]


def _served_vectors(base: ModelSource, max_length: int) -> list[Choice]:
    """Return how an embedding model is served; without a route, its line ends with its
    evaluation."""
    return [
        Choice("serving.routes", ["embeddings"], "Opens /v1/embeddings, by which it is proven."),
        Choice("serving.max_model_len", max_length, "The longest text."),
        *_served_dtype(base),
    ]


def _tool_choices(facts: DataFacts) -> list[Choice]:
    """Return the parser without which vLLM answers 400 to a request with tools."""
    if facts.tool_call_parser is None:
        return []
    reason = (
        "Rows have tools, and the chat template writes calls in the form of this parser. Without a "
        "parser the server answers 400 to a request with tools."
    )
    flags = {"tool_call_parser": facts.tool_call_parser, "enable_auto_tool_choice": True}
    return [Choice("serving.extra_args", flags, reason)]


def _without_parser(facts: DataFacts) -> str:
    if not facts.has_tools or facts.tool_call_parser is not None:
        return ""
    return (
        " Rows have tools, and no parser is known for the calls of this chat template: set "
        "tool_call_parser and enable_auto_tool_choice in serving.extra_args, or the server answers "
        "400 to a request with tools."
    )


def _method(facts: DataFacts) -> list[Choice]:
    """Return the method that trains this kind of rows."""
    name, reason = {
        "answer": ("sft", "Rows are prompts with an answer."),
        "text": ("sft", "Rows are plain text."),
        "preference": ("dpo", "Rows are pairs of a chosen and a rejected answer. orpo needs no "
                              "reference model; reward trains a model that scores."),
        "label": ("kto", "Rows are answers with a label."),
        "prompt": ("grpo", "Rows are prompts without an answer: the model's own answers are "
                           "scored by a function. distillation learns from a larger model."),
        "retrieval": ("embedding", "Rows are queries with passages: they train a model of "
                                   "vectors. reranker trains a score of a query with a "
                                   "passage, and needs negatives."),
    }[facts.kind]  # fmt: skip
    choices = [Choice("training.method.type", name, reason)]
    if name == "grpo":
        choices.append(
            Choice(
                "training.method.reward_funcs",
                ["rewards.py:reward"],
                "Write this function; docs/training.md has its signature.",
            )
        )
    return choices


def _values(methods: Sequence[Choice]) -> dict[str, Any]:
    return {choice.key.rpartition(".")[2]: choice.value for choice in methods}


def _num_sampled_tokens(methods: Sequence[Choice]) -> int:
    """Return the tokens that the method adds to a row in training."""
    config = TrainingConfig.model_validate({"method": _values(methods)})
    return config.method.num_sampled_tokens


def _batch(
    methods: Sequence[Choice], max_length: int, most: int, base: ModelSource
) -> tuple[int, str, list[Choice]]:
    """Return the most rows per batch that fit, the reason, and what `auto` chooses then."""
    from training import estimate_memory

    method = _values(methods)
    # KTO compares answers within a batch, and GRPO the answers to one prompt.
    least = {"kto": 2, "grpo": 8}.get(method["type"], 1)
    batch = max(least, min(LARGEST_BATCH, most))
    while True:
        config = TrainingConfig.model_validate(
            {"method": method, "max_length": max_length, "per_device_train_batch_size": batch}
        )
        try:
            found = estimate_memory(config, base.path, serving_dtype="auto", num_served_tokens=None)
        except ArtifactError as error:  # Mamba has no heads whose activations could be counted
            return batch, f"The memory of a step is not known: {error.message}", []
        if found["fits"] or batch // 2 < least:
            break
        batch //= 2
    needed, free = found["training"]["total"] / 2**30, found["free_bytes"] / 2**30
    reason = f"A step needs about {needed:,.1f} GiB; {free:,.1f} GiB are free here."
    if not found["fits"]:
        reason += f" It does not fit; try: {found['change']}."
    automatic = [
        Choice(f"training.{choice['key']}", "auto", f"{choice['value']} here: {choice['reason']}")
        for choice in found["choices"]
        if getattr(config, choice["key"], None) == "auto"
    ]
    return batch, reason, automatic


def _up(value: float, multiple: int) -> int:
    return int(-(-value // multiple)) * multiple
