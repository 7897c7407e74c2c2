"""Whose fault it is that vLLM died while it loaded a model."""

from __future__ import annotations

from serving.command.parser_check import check_flags
from serving.config import ServingConfig
from tuneline.core.errors import ArtifactError, ServerError, TunelineError
from tuneline.models.load import check_model
from tuneline.models.source import ModelSource


def why_not_loaded(
    death: ServerError, model: ModelSource, refuses: ServingConfig | None = None
) -> TunelineError:
    """Return an ArtifactError if transformers, too, cannot load the model folder; else `death`.

    A broken folder so has the same exit code here as in every other command. The check takes
    seconds, and a server that starts does not pay for it.

    Args:
        refuses: The configuration, if vLLM ended with the status of a usage error. Its parser is
            then asked for each flag by itself, and the error has the keys of `serving`.
    """
    if refuses is not None:
        try:
            check_flags(refuses)
        except TunelineError as error:
            return error
        return death
    try:
        check_model(model.path, str(model.path))
    except ArtifactError as error:
        return ArtifactError(f"{death.message}\n{error.message}", hint=error.hint)
    except TunelineError:
        pass
    return death
