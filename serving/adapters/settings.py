"""The settings of adapters in the server's process: one JSON document in `TUNELINE_ADAPTERS`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuneline.core.config import StrictModel
from tuneline.core.tolerances import Tolerances

VARIABLE = "TUNELINE_ADAPTERS"


class AdapterSettings(StrictModel):
    """Where adapters come from, what they must fit, and how far a proof may differ."""

    root: Path
    """The only folder from which adapters are read."""
    state_dir: Path
    """Holds the desired adapters and a verified copy of each; it survives a restart."""
    base_dir: Path
    base_digest: str
    base_name: str
    """The name by which clients ask for the base model."""
    own_names: tuple[str, ...]
    """Names that the server has without adapters at run time."""
    reserved_names: tuple[str, ...]
    """The names among them that no adapter may take over."""
    aliases: dict[str, str]
    """The name that each alias of the run's own adapter means: the run's name, also after a later
    version has taken that over."""
    run_digest: str | None
    """The digest of the run's own adapter, if there is one; its name can be taken over."""
    max_adapters: int
    max_lora_rank: int
    tolerances: Tolerances


def read_settings(environ: Mapping[str, str]) -> AdapterSettings | None:
    """Return the settings; None for a server without adapters at run time.

    Raises:
        ValueError: The variable is not such a document; the server must not start.
    """
    text = environ.get(VARIABLE)
    return AdapterSettings.model_validate_json(text) if text else None
