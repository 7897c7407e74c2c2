"""The form that docs/how-to/add-a-form.md adds is made, opened and scores tokens."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import transformers

import export
from export.config import GraphConfig
from export.forms import FORMS, Form, find_function, make_form
from tests.integration.export.exported import make_model, random_ids
from tests.unit.docs.pages import snippets
from tuneline.core.artifact import verify_artifact
from tuneline.models.source import resolve_model


def test_the_form_of_the_page_scores_as_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, row = [s for s in snippets("python") if s.page.endswith("how-to/add-a-form.md")]
    (tmp_path / "flat.py").write_text(module.text)
    (tmp_path / "row.py").write_text(row.text)
    monkeypatch.setattr(export, "__path__", [*export.__path__, str(tmp_path)])
    names = {"Form": Form, "GraphConfig": GraphConfig}
    ((name, form),) = runpy.run_path(str(tmp_path / "row.py"), names)["FORMS"].items()
    monkeypatch.setitem(FORMS, name, form)

    base = make_model(tmp_path / "base", "llama")
    made = make_form(name, resolve_model(str(base)), tmp_path / "out")
    verify_artifact(made)
    assert made.kind == form.kind
    opened = find_function(form.open)(made.path)

    ids = random_ids(1, 12)
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    with torch.inference_mode():
        expected = network.float()(ids).logits[0, -4:]
    torch.testing.assert_close(opened.score(ids[0].tolist(), 4), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
