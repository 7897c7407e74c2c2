"""How a stage's key is computed.

A stage's artifact lies in `<stage>-<key>`. The key is a digest of everything that can change the
result, and of nothing else: the stage and its version, the keyed fields of its sections, and the
digests of its inputs.
"""

from __future__ import annotations

from tuneline.core.artifact import canonical_digest
from tuneline.core.config import keyed_values
from tuneline.core.digests import short_digest
from tuneline.models.source import ModelSource
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.stage import Made, Stage

KEY_LENGTH = 10


def stage_keys(stage: Stage, run: Run, base: ModelSource, made: Made) -> list[str]:
    """Return the key of a stage whose needs are all made, and then those of its earlier versions.

    Keys are hexadecimal digits; the latest version comes first.

    Raises:
        DataError: A file that the stage reads does not exist.
    """
    inputs = [made[name].as_input(name) for name in stage.needs] + stage.inputs(run, base)
    facts = {
        "stage": stage.name,
        "config": [keyed_values(section) for section in stage.sections],
        "inputs": [[entry.role, entry.digest] for entry in inputs],
    }
    versions = range(stage.version, 0, -1)
    return [key_of(canonical_digest({**facts, "version": version})) for version in versions]


def key_of(digest: str) -> str:
    """Return the part of a digest that names a directory."""
    return short_digest(digest)[:KEY_LENGTH]
