"""Ask base and tuned model the forgetting suite, and write a `forgetting` artifact."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.config import EvaluationConfig
from training.evaluation.answerer import Answerer, Reply
from training.evaluation.evaluate import PAGE_FILE
from training.evaluation.forgetting.answers import ANSWERS_FILE, MODELS, answers_text
from training.evaluation.forgetting.items import Item, suite_input, suite_items
from training.evaluation.forgetting.judging import differing, judge_forgetting
from training.evaluation.kept import ask_model, kept_answers
from training.evaluation.local import DEFAULT_SETTINGS, adapter_input
from training.evaluation.prediction import Prediction
from training.evaluation.report.page import mismatch_page
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.models.source import ModelSource
from tuneline.models.template import TemplateSettings

REPORT_FILE = "forgetting.json"
MAX_NEW_TOKENS = 256


def measure_forgetting(
    base: ModelSource,
    tuned: Artifact | Path | ModelSource | Endpoint,
    out: Path,
    *,
    batch_size: int | None = None,
    settings: TemplateSettings = DEFAULT_SETTINGS,
) -> Artifact:
    """Let both models answer the suite greedily, and judge which skills the tuned model lost.

    Items on which they differ are asked once more of both. The second time, other questions share a
    batch, and a server has other requests: its rounding differs, and so may a greedy answer.

    Args:
        base: The model before fine-tuning.
        tuned: An adapter of `base`, a model folder, or an endpoint.
        batch_size: Prompts answered at once; as many as fit into memory if not given.
        settings: The settings of the chat template.

    Raises:
        ArtifactError: `out` exists, or a model cannot be loaded.
        ServerError: A request to the endpoint failed.
    """
    inputs = [suite_input(), base.as_input("base")]
    if isinstance(tuned, Artifact):
        inputs.append(tuned.as_input("adapter"))
    elif isinstance(tuned, ModelSource):
        inputs.append(tuned.as_input("model"))
    elif isinstance(tuned, Path):
        inputs.append(adapter_input(tuned))
    config = {"max_new_tokens": MAX_NEW_TOKENS}
    with (
        kept_answers(out) as kept,
        new_artifact(out, "forgetting", config=config, inputs=inputs) as draft,
    ):
        start_s = time.monotonic()
        items = suite_items()

        def ask(who: str, places: Sequence[int], repeat: int = 0) -> dict[int, Reply]:
            # One model at a time is in memory.
            model = tuned if who == "tuned" else None
            answerer = _answerer(base, model, batch_size, settings)
            questions = [items[index].question() for index in places]
            found = ask_model(answerer, questions, MAX_NEW_TOKENS, kept, repeat=repeat)
            return dict(zip(places, found, strict=True))

        # An endpoint may be down, so it is asked first.
        first = {who: ask(who, range(len(items))) for who in reversed(MODELS)}
        replies = {who: list(first[who].values()) for who in MODELS}
        passed = {who: list(_passed(items, first[who]).values()) for who in MODELS}
        places = differing(passed["base"], passed["tuned"])
        again = {who: ask(who, places, 1) if places else {} for who in MODELS}
        passed_again = {who: _passed(items, again[who]) for who in MODELS}
        report = judge_forgetting(items, passed["base"], passed["tuned"], passed_again)
        text = report.model_dump_json(indent=2) + "\n"
        (draft.dir / REPORT_FILE).write_text(text, encoding="utf-8")
        text = answers_text(items, replies, again)
        (draft.dir / ANSWERS_FILE).write_text(text, encoding="utf-8")
        _write_page(draft.dir, items, replies, passed)
        if isinstance(tuned, Endpoint):
            draft.metrics["served_model"] = tuned.model
        draft.metrics["num_asked"] = len(items)
        draft.metrics["num_cut"] = {
            who: sum(reply.finish_reason == "length" for reply in found)
            for who, found in replies.items()
        }
        draft.metrics.update(report.model_dump(mode="json"), wall_s=time.monotonic() - start_s)
    return open_artifact(out, kind="forgetting")


def _passed(items: Sequence[Item], replies: Mapping[int, Reply]) -> dict[int, bool]:
    return {index: items[index].passes(reply) for index, reply in replies.items()}


def _answerer(
    base: ModelSource,
    tuned: Artifact | Path | ModelSource | Endpoint | None,
    batch_size: int | None,
    settings: TemplateSettings,
) -> Answerer:
    if isinstance(tuned, Endpoint):
        from training.evaluation.endpoint import endpoint_answerer

        return endpoint_answerer(tuned, batch_size=batch_size)
    from training.evaluation.local import local_answerer

    if isinstance(tuned, ModelSource):
        return local_answerer(tuned, None, batch_size=batch_size, settings=settings)
    return local_answerer(base, tuned, batch_size=batch_size, settings=settings)


def _write_page(
    folder: Path,
    items: Sequence[Item],
    replies: dict[str, list[Reply]],
    passed: dict[str, list[bool]],
) -> None:
    columns = {
        who: [_prediction(*entry) for entry in zip(items, replies[who], passed[who], strict=True)]
        for who in replies
    }
    page = mismatch_page("Forgetting suite: base and tuned model", columns, EvaluationConfig())
    (folder / PAGE_FILE).write_text(page, encoding="utf-8")


def _prediction(item: Item, reply: Reply, passed: bool) -> Prediction:
    """Return an item as the page shows it, with its id and its checks."""
    about = f"{item.id}\n" + json.dumps(item.checks, ensure_ascii=False)
    return Prediction(
        prompt=[{"role": item.skill, "content": about}, {"role": "user", "content": item.prompt}],
        expected=item.right,
        answer=reply.text,
        correct=passed,
        finish_reason=reply.finish_reason,
        tool_calls=reply.tool_calls,
    )
