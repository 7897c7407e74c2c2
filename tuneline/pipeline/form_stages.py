"""The stages of the export forms that a run asks for: two per row of `export.FORMS`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from export import FORMS, make_form, prepare_form
from export.config import FormName, ParityConfig
from tuneline.core.artifact import Artifact
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.server import model_source
from tuneline.pipeline.stage import DATASET, MODEL, REFERENCE, Line, Made, Stage


def form_stages(run: Run) -> list[Stage]:
    """Return two stages for each form that the run asks for: make it, and prove it."""
    export = run.config.export
    found = []
    for name in export.forms:
        form = FORMS[name]
        needs = (DATASET, MODEL) if form.needs_data else (MODEL,)
        found += [
            Stage(
                name, f"Export {name}", "export", form.kind, (form.options(export),), needs,
                functools.partial(_form, name), prepare=(_prepare(name),), version=form.version,
            ),
            Stage(
                f"parity-{name}", f"Prove {name}", "parity", "parity",
                (parity_section(export.parity, name),), (REFERENCE, name),
                functools.partial(_parity_form, name), version=2,
            ),
        ]  # fmt: skip
    return found


def parity_section(config: ParityConfig, name: FormName) -> ParityConfig:
    """Return the part of the section that judges one form, so that other forms stay current."""
    return ParityConfig(
        forms={form: limits for form, limits in config.forms.items() if form == name}
    )


def _prepare(name: str) -> Callable[[Run], None]:
    return lambda _run: prepare_form(name)


def _form(name: str, line: Line, made: Made, out: Path) -> Artifact:
    form, data = FORMS[name], None
    if form.needs_data:
        from tuneline.pipeline.calibration import calibration_of

        data = calibration_of(made[DATASET])
    options = form.options(line.run.config.export)
    return make_form(name, model_source(made[MODEL]), out, options, data)


def _parity_form(name: str, line: Line, made: Made, out: Path) -> Artifact:
    from export import prove_model

    config = parity_section(line.run.config.export.parity, name)
    return prove_model(config, made[REFERENCE], model_source(made[name]), out, form=name)
