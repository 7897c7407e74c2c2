"""A model in this process: greedy answers, and the losses of expected answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.row import Row
from training.evaluation.answerer import (
    Answerer,
    AnswerLoss,
    OnReply,
    Question,
    Reply,
    ignore_reply,
)
from training.evaluation.tool_calls import parse_tool_calls, without_channels
from tuneline.core.artifact import Artifact, Input
from tuneline.core.progress import progress
from tuneline.models.source import ModelSource, folder_digest
from tuneline.models.template import TemplateSettings

DEFAULT_SETTINGS = TemplateSettings()
MAX_LOGITS_BYTES = 2**28
"""Of one batch of losses."""


def local_answerer(
    base: ModelSource,
    adapter: Artifact | Path | None,
    *,
    batch_size: int | None = None,
    settings: TemplateSettings = DEFAULT_SETTINGS,
) -> Answerer:
    """Load base and adapter, or the base only.

    Weights are bfloat16 on a GPU that computes in it and float32 elsewhere.

    Args:
        batch_size: Prompts answered at once; as many as fit into memory if not given.
        settings: The settings of the chat template.

    Raises:
        ArtifactError: The model or adapter cannot be loaded.
        ConfigError: The model has no chat template.
    """
    from training import model as models
    from tuneline.models.chat import set_template
    from tuneline.models.companion_files import has_tokenizer
    from tuneline.models.folder import CONFIG, GENERATION_CONFIG
    from tuneline.models.stop_tokens import served_stop_ids
    from tuneline.models.tokenizer import load_tokenizer

    models.quiet_libraries()
    folder = base.path
    if adapter is not None:
        folder = adapter.path if isinstance(adapter, Artifact) else adapter
    # PEFT writes no tokenizer next to an adapter, and TRL no generation_config.json.
    tokenizer = load_tokenizer(folder if has_tokenizer(folder) else base.path)
    set_template(tokenizer, base.name, settings)
    has_stops = (folder / GENERATION_CONFIG).is_file() or (folder / CONFIG).is_file()
    stop_ids = frozenset(served_stop_ids(folder if has_stops else base.path, tokenizer))
    dtype = models.resolve_dtype("auto")
    model = models.load_tuned(base, adapter, dtype) if adapter else models.load_base(base, dtype)
    model.eval()

    def answer(
        questions: Sequence[Question], max_new_tokens: int, on_reply: OnReply = ignore_reply
    ) -> list[Reply]:
        return answer_questions(
            model, tokenizer, stop_ids, questions, max_new_tokens, batch_size, on_reply
        )

    def losses(rows: Sequence[Row]) -> list[AnswerLoss]:
        return _losses(model, rendered_rows(tokenizer, rows, stop_ids))

    digests = [base.digest, None if adapter is None else adapter_input(adapter).digest]
    return Answerer(answer, losses, [*digests, str(dtype), repr(settings)])


def adapter_input(adapter: Artifact | Path) -> Input:
    """Return a trained model, or any PEFT adapter folder, for the manifest of its evaluation."""
    if isinstance(adapter, Artifact):
        return adapter.as_input("adapter")
    return Input(role="adapter", kind="peft-adapter", digest=folder_digest(adapter))


def answer_questions(
    model: Any,
    tokenizer: Any,
    stop_ids: frozenset[int],
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int | None,
    on_reply: OnReply = ignore_reply,
) -> list[Reply]:
    """Return a loaded model's greedy answers, in the order of the questions."""
    from training.evaluation.decoding import batches_by_length, fitting_batch_size, greedy_answers
    from tuneline.models.chat import prompt_token_ids

    prompts = [prompt_token_ids(tokenizer, q.messages, q.tools) for q in questions]
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    fitting = batch_size or fitting_batch_size(model, longest)
    replies: dict[int, Reply] = {}
    with progress("evaluating", len(questions), "prompts") as advance:
        for batch in batches_by_length([len(prompt) for prompt in prompts], fitting):
            found = greedy_answers(model, [prompts[i] for i in batch], stop_ids, max_new_tokens)
            for index, ids in zip(batch, found, strict=True):
                text = answer_text(tokenizer, ids)
                tools = questions[index].tools
                replies[index] = Reply(
                    text,
                    "stop" if ids[-1] in stop_ids else "length",
                    parse_tool_calls(text, tools) if tools else (),
                )
                on_reply(index, replies[index])
            advance(len(replies))
    return [replies[index] for index in range(len(questions))]


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return generated tokens as a server returns them: without special tokens and channels."""
    whole = tokenizer.decode(ids)
    answer = without_channels(whole)
    return tokenizer.decode(ids, skip_special_tokens=True) if answer == whole else answer


def rendered_rows(
    tokenizer: Any, rows: Sequence[Row], stop_ids: frozenset[int]
) -> list[tuple[list[int], int]]:
    """Return each row's token ids up to its stop token, and the number of tokens of its prompt.

    Raises:
        ConfigError: The chat template renders a prompt differently with and without an answer.
        DataError: The template refuses a row.
    """
    import sys

    from training.rendering.chat import render_rows

    rendered = render_rows(
        tokenizer,
        rows,
        stop_ids=sorted(stop_ids),
        max_length=sys.maxsize,
        file="held-out rows",
        train_on="last_turn",
    )
    if len(rendered) != len(rows):
        raise RuntimeError(f"{len(rows)} rows gave {len(rendered)} answers")
    return [(row.input_ids, row.num_prompt_tokens) for row in rendered]


def _losses(model: Any, rendered: Sequence[tuple[list[int], int]]) -> list[AnswerLoss]:
    import torch

    from training.evaluation.decoding import batches_by_length

    losses: dict[int, AnswerLoss] = {}
    longest = max(len(ids) - num_prompt for ids, num_prompt in rendered) + 1
    vocabulary = model.get_output_embeddings().weight.shape[0]
    batch_size = max(1, min(16, MAX_LOGITS_BYTES // (longest * vocabulary * 4)))
    with progress("scoring", len(rendered), "answers") as advance:
        for batch in batches_by_length([len(ids) for ids, _ in rendered], batch_size):
            rows = [rendered[index] for index in batch]
            width = max(len(ids) for ids, _ in rows)
            # Padded on the left, so that every answer ends in the last column.
            padded = [[0] * (width - len(ids)) + ids for ids, _ in rows]
            mask = torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows], device=model.device
            )
            kept = max(len(ids) - num_prompt for ids, num_prompt in rows) + 1
            tokens = torch.tensor(padded, device=model.device)
            with torch.inference_mode():
                logits = model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                    logits_to_keep=kept,
                    use_cache=False,
                ).logits[:, -kept:-1]
            scores = logits.float().log_softmax(-1)
            found = scores.gather(2, tokens[:, 1 - kept :, None])[:, :, 0].double()
            for row, (index, (ids, num_prompt)) in enumerate(zip(batch, rows, strict=True)):
                num_answer = len(ids) - num_prompt
                losses[index] = AnswerLoss(-float(found[row, -num_answer:].sum()), num_answer)
            advance(len(losses))
    return [losses[index] for index in range(len(rendered))]
