"""The command that proves forms against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneline.commands.option_values import endpoint_of, is_url, open_run, refuse, required
from tuneline.commands.options import AsJson, KeyEnv, ModelName, OptionalRun, Overrides, RunsDir
from tuneline.commands.printing import emit_artifact
from tuneline.commands.run_stages import run_stages
from tuneline.core.errors import ArtifactError, ConfigError, VerdictError
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from tuneline.core.artifact import Artifact
    from tuneline.core.endpoint import Endpoint
    from tuneline.core.parity import Parity
    from tuneline.pipeline.run_config import Run


def prove(
    run_file: OptionalRun = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="A reference artifact; a model folder for a server of vectors or scores."
        ),
    ] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="DIR|URL", help="A model in any form, or a URL.")
    ] = None,
    model: ModelName = None,
    dtype: Annotated[
        str | None, typer.Option(help="A server's arithmetic: float32, float16 or bfloat16.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder that the URL serves, if it was reduced."),
    ] = None,
    api_key_env: KeyEnv = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the proof goes: ./parity-NAME.")
    ] = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare every form with the trained model, with a verdict.

    Compares each form of the run, from the merged to the served model, or any --candidate, with the
    reference. Exits with 6 if a form differs by more than its tolerances.
    """
    of_a_server = {"--model": model, "--dtype": dtype, "--weights": weights}
    if run_file is not None:
        options = {"--reference": reference, "--candidate": candidate, "--out": out}
        refuse("with RUN.yaml", {**options, **of_a_server, "--api-key-env": api_key_env})
        _prove_run(open_run(run_file, overrides, runs_dir), as_json)
        return
    from tuneline.core.artifact import open_artifact
    from tuneline.core.verdict import require_verdict

    refuse("without RUN.yaml", {"--set": overrides})
    folder = required(reference, "--reference")
    form = required(candidate, "--candidate")
    if _is_model(folder):
        refuse("with a model folder as --reference", {"--weights": weights})
        result = _prove_vectors(folder, form, (model, api_key_env), dtype, out)
    elif is_url(form):
        expected = open_artifact(folder, kind="reference")
        result = _prove_url(expected, endpoint_of(form, model, api_key_env), weights, dtype, out)
    else:
        refuse("with a model on disk", {**of_a_server, "--api-key-env": api_key_env})
        result = _prove_folder(open_artifact(folder, kind="reference"), form, out)
    emit_artifact(result, as_json)
    again = f"tuneline prove --reference {reference} --candidate {form} --model {model}"
    if result.kind == "parity" and is_url(form) and weights is None:
        _require_served(result, again, has_dtype=dtype is not None)
    else:
        require_verdict(result)


def _prove_run(run: Run, as_json: bool) -> None:
    """Prove every form of a run."""
    from tuneline.pipeline.products.table import SERVED_PROOFS, product_of
    from tuneline.pipeline.stages import stage_names

    names = stage_names(run, kinds=("parity", *SERVED_PROOFS))
    # The ladder compares forms of a model of text; scores and vectors have one proof.
    is_text = product_of(run.config).proof is None
    run_stages(run, names, as_json=as_json, ladder=is_text)


def _require_served(parity: Artifact, again: str, *, has_dtype: bool) -> None:
    """Check the verdict of a server whose weights are not stated.

    Args:
        again: The command, to which what may explain the differences is added.
        has_dtype: The number format of the server's arithmetic is stated.

    Raises:
        VerdictError: It is not PASS; the hint says which number formats would explain it.
    """
    from tuneline.core.parity import PARITY_FILE, Parity
    from tuneline.core.verdict import require_verdict

    try:
        require_verdict(parity)
    except VerdictError as error:
        figures = Parity.model_validate_json((parity.path / PARITY_FILE).read_bytes())
        hint = _explanation(figures, f"{again} --out {parity.path}-again", has_dtype=has_dtype)
        raise VerdictError(error.message, hint=f"{error.hint}\n  {hint}") from None


def _explanation(parity: Parity, again: str, *, has_dtype: bool) -> str:
    """Return what may explain the differences of a server from the trained model, in lines."""
    from tuneline.core.parity import parity_problems
    from tuneline.core.tolerances import ARITHMETIC_TOLERANCES, WEIGHT_TOLERANCES, add_tolerances

    if parity.num_prompts_with_equal_ids < parity.num_prompts:
        return "Serve the model with the tokenizer and the chat template of its training."
    formats = [
        dtype
        for dtype, limits in ARITHMETIC_TOLERANCES.items()
        if not parity_problems(parity, limits)
    ]
    lines = []
    if formats and not has_dtype:
        named = " or ".join(formats)
        lines.append(f"If the server computes in {named}, name the format: {again} --dtype FORMAT")
    arithmetic = ARITHMETIC_TOLERANCES["bfloat16"]
    widest = [add_tolerances(limits, arithmetic) for limits in WEIGHT_TOLERANCES.values()]
    if any(not parity_problems(parity, limits) for limits in widest):
        lines.append(
            "If the server's weights were reduced, name the folder that it serves: "
            f"{again} --weights DIR"
        )
    nothing = "No number format explains the differences: the server has other weights."
    return "\n  ".join(lines) or nothing


def _is_model(folder: Path) -> bool:
    """Return whether a folder is a model's, an artifact or not."""
    from tuneline.core.artifact import open_artifact
    from tuneline.core.files import MANIFEST

    if not (folder / "config.json").is_file():
        return False
    return not (folder / MANIFEST).is_file() or open_artifact(folder).kind == "model"


def _prove_vectors(
    folder: Path,
    url: str,
    name_and_key: tuple[str | None, str | None],
    dtype: str | None,
    out: Path | None,
) -> Artifact:
    """Compare a server's vectors, or a classifier's scores, with those of a model folder."""
    if not is_url(url):
        raise ConfigError(
            f"--candidate {url}: a model folder as --reference proves the vectors of a server",
            hint="Try: --candidate http://127.0.0.1:8000/v1 --model NAME, or give a reference "
            "artifact as --reference",
        )
    endpoint = endpoint_of(url, *name_and_key)
    from serving import prove_classifier, prove_vectors
    from serving.config import ServedParityConfig
    from tuneline.models.classifier import is_classifier
    from tuneline.models.source import computed_dtype, resolve_model

    prove = prove_classifier if is_classifier(folder) else prove_vectors
    source = resolve_model(str(folder.resolve()), download=False)
    computed = _known_dtype(dtype or computed_dtype("auto", source))
    return prove(
        ServedParityConfig(), source, endpoint, _proof_dir(out, endpoint.model), dtype=computed
    )


def _known_dtype(dtype: str) -> str:
    from tuneline.core.tolerances import ARITHMETIC_TOLERANCES

    if dtype not in ARITHMETIC_TOLERANCES:
        raise ConfigError(f"--dtype {dtype}: expected {' or '.join(ARITHMETIC_TOLERANCES)}")
    return dtype


def _prove_folder(expected: Artifact, form: str, out: Path | None) -> Artifact:
    """Compare a model on disk, in any form, with the reference."""
    from export import form_name, prove_model, resolve_form
    from export.config import ParityConfig

    source = resolve_form(form)
    out_dir = _proof_dir(out, source.path.resolve().name)
    return prove_model(ParityConfig(), expected, source, out_dir, form=form_name(source))


def _prove_url(
    expected: Artifact,
    endpoint: Endpoint,
    weights: Path | None,
    dtype: str | None,
    out: Path | None,
) -> Artifact:
    """Compare a server's answers with the reference, with tolerances for the weights that the
    caller states."""
    from serving import prove_served
    from serving.config import ServedParityConfig
    from tuneline.models.source import computed_dtype

    computed = dtype or "float32"
    rounding, stated, inputs = None, None, []
    if weights is not None:
        from export import resolve_weights, weight_tolerances, weights_of_folder

        source = resolve_weights(weights)
        computed = dtype or computed_dtype("auto", source)
        rounding = weight_tolerances(source, computed)
        stated = weights_of_folder(source.path)
        inputs = [source.as_input("weights")]
    return prove_served(
        ServedParityConfig(), expected, endpoint, _proof_dir(out, endpoint.model),
        inputs=inputs, dtype=_known_dtype(computed), weights=rounding, stated_weights=stated,
    )  # fmt: skip


def _proof_dir(out: Path | None, name: str) -> Path:
    """Return the directory for a proof, and refuse an existing one before the proof starts."""
    out_dir = out or Path(f"parity-{name.replace('/', '-')}")
    if out_dir.exists():
        raise ArtifactError(
            f"{out_dir}: exists already", hint="Remove it, or choose another --out."
        )
    return out_dir
