"""The `data` section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from tuneline.core.config import StrictModel

DEFAULT_HELDOUT_FRACTION = 0.1


class DataConfig(StrictModel):
    """The files with the rows, and how held-out rows are chosen."""

    path: str = Field(json_schema_extra={"keyed": False})
    """JSON Lines, relative to the run.yaml: `{"instruction", "input", "output"}`,
    `{"messages": [...]}` or `{"prompt", "completion"}` on each line."""
    heldout_path: str | None = Field(default=None, json_schema_extra={"keyed": False})
    """A second file of the same shape, used for evaluation only."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the prompts of `path` that is held out when there is no `heldout_path`; 0.1 if
    neither is given."""
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """Put before every row that has no system message."""
    seed: int = 0
    """Chooses which prompts are held out."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_split(cls, values: Any) -> Any:
        if isinstance(values, dict):
            given = [values.get(name) is not None for name in ("heldout_path", "heldout_fraction")]
            if all(given):
                raise ValueError("give heldout_path or heldout_fraction, not both")
            if not any(given):
                return {**values, "heldout_fraction": DEFAULT_HELDOUT_FRACTION}
        return values

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest records: all but the paths, whose digests are inputs."""
        return self.model_dump(mode="json", exclude={"path", "heldout_path"})
