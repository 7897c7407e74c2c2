"""Exact match of greedy answers while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from training.config import TrainingConfig
from training.config.checkpoints import EXACT_MATCH
from training.data.row import Row
from training.evaluation.answerer import Question
from training.evaluation.local import answer_questions
from training.evaluation.prediction import predict
from tuneline.models.chat import conversation_token_ids, prompt_token_ids


class ExactMatchInTraining(TrainerCallback):  # type: ignore[misc]
    """Adds the share of right greedy answers to each held-out measurement.

    An answer has at most as many tokens as the longest expected one, since a longer answer is not
    equal. Greedy decoding draws no random numbers, so that training goes on as without it.
    """

    def __init__(
        self,
        config: TrainingConfig,
        tokenizer: Any,
        stop_ids: Sequence[int],
        rows: Sequence[Row],
        between: Callable[[], None],
    ) -> None:
        self.tokenizer, self.stop_ids = tokenizer, frozenset(stop_ids)
        self.rows = [row for row in rows if row.kind == "answer"][: config.num_eval_prompts]
        self.batch_size = config.per_device_train_batch_size
        self.between = between
        self.max_new_tokens = max(
            len(conversation_token_ids(tokenizer, row.messages, row.tools))
            - len(prompt_token_ids(tokenizer, row.prompt, row.tools))
            for row in self.rows
        )

    def on_evaluate(
        self, _args: Any, state: Any, _control: Any, *, model: Any, metrics: Any, **_: Any
    ) -> None:
        """Answer the prompts, and write the share into the figures and the log."""
        was_training = model.training
        model.eval()
        right = 0
        for start in range(0, len(self.rows), self.batch_size):
            self.between()
            rows = self.rows[start : start + self.batch_size]
            questions = [Question(row.prompt, row.tools) for row in rows]
            replies = answer_questions(
                model, self.tokenizer, self.stop_ids, questions, self.max_new_tokens, len(rows)
            )
            for row, reply in zip(rows, replies, strict=True):
                right += predict(row, reply.text, reply.finish_reason, reply.tool_calls).correct
        model.train(was_training)
        share = right / len(self.rows)
        metrics[EXACT_MATCH] = share
        state.log_history[-1][EXACT_MATCH] = share
