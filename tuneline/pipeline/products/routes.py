"""The routes of `serving.routes` that serve a model which gives no text."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.method_options import Makes


@dataclass(frozen=True)
class Routes:
    """The routes of a kind of model.

    Attributes:
        model: The name of the model in a sentence, with its article.
        gives: The plural of its answers.
        proven_by: The routes that can prove it; one of them must be open.
        refused: Routes that its server cannot have.
    """

    model: str
    gives: str
    proven_by: tuple[str, ...]
    refused: tuple[str, ...]

    def problem(self, opened: set[str]) -> str | None:
        """Return why the routes of a server do not fit the model; None if they do."""
        if not opened.isdisjoint(self.proven_by) and opened.isdisjoint(self.refused):
            return None
        *others, last = self.refused
        return (
            f"serving.routes of {self.model}: expected {' or '.join(self.proven_by)}, by which its "
            f"{self.gives} are proven, and no {', '.join(others)}{' or ' if others else ''}{last}"
        )


ROUTES: dict[Makes, Routes] = {
    "scores": Routes("a reward model", "scores", ("pooling", "classify"), ("embeddings",)),
    "vectors": Routes(
        "an embedding model", "vectors", ("embeddings", "pooling"), ("classify",)
    ),
    "relevance": Routes(
        "a reranker", "scores", ("score",), ("embeddings", "pooling", "classify")
    ),
}  # fmt: skip
