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


def stage_key(stage: Stage, run: Run, base: ModelSource, made: Made) -> str:
    """Return the key of a stage whose needs are all made, as hexadecimal digits.

    Raises:
        DataError: A file that the stage reads does not exist.
    """
    inputs = [made[name].as_input(name) for name in stage.needs] + stage.inputs(run, base)
    digest = canonical_digest(
        {
            "stage": stage.name,
            "version": stage.version,
            "config": [keyed_values(section) for section in stage.sections],
            "inputs": [[entry.role, entry.digest] for entry in inputs],
        }
    )
    return key_of(digest)


def key_of(digest: str) -> str:
    """Return the part of a digest that names a directory."""
    return short_digest(digest)[:KEY_LENGTH]
