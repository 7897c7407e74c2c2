"""Templates with fixed values, rendered by transformers' own function."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.errors import ConfigError
from tuneline.models.template import (
    TemplateSettings,
    dataset_settings,
    date_formats,
    default_kwargs,
    folder_defaults,
    require_variables,
    template_variables,
    with_date,
    with_defaults,
    with_settings,
)

DAY = datetime.date(2026, 11, 28)
SWITCH = "{% if thinking is defined and thinking is false %}off{% else %}on{% endif %}"
IN_MACRO = "{% macro f() %}[{{ effort }}]{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}"
DATED = "Today: {{ strftime_now('%d %b %Y') + '.' }}{% if strftime_now is defined %}!{% endif %}"
GUARDED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}"
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _render(template: str, **kwargs: Any) -> str:
    texts, _ = render_jinja_template(
        [[{"role": "user", "content": "x"}]], chat_template=template, **kwargs
    )
    return str(texts[0])


def test_a_default_is_used_until_a_caller_sets_the_variable() -> None:
    template = with_defaults(SWITCH, {"thinking": False})
    assert _render(SWITCH) == "on"
    assert _render(template) == "off"
    assert _render(template, thinking=True) == "on"


def test_defaults_reach_macros_and_leave_the_first_newline_of_a_template() -> None:
    template = with_defaults("\n" + IN_MACRO, {"effort": "low"})
    assert _render(template) == "\n[low]"


def test_vllm_passes_a_variable_with_a_default_on() -> None:
    # vLLM drops the variables of a request that `find_undeclared_variables` does not list.
    assert "thinking" in template_variables(with_defaults(SWITCH, {"thinking": False}))


@given(value=JSON)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_a_default_of_any_json_value_is_written_and_read_back(value: Any) -> None:
    template = with_defaults("{{ x | tojson }}", {"x": value, "y": [value]})
    assert default_kwargs(template) == {"x": value, "y": [value]}
    assert _render(template) == _render("{{ x | tojson }}", x=value)


def test_a_template_without_defaults_has_none(tmp_path: Path) -> None:
    assert default_kwargs(SWITCH) == {}
    assert folder_defaults(tmp_path) == {}
    (tmp_path / "chat_template.jinja").write_text(with_defaults(SWITCH, {"thinking": False}))
    assert folder_defaults(tmp_path) == {"thinking": False}


@pytest.mark.parametrize(
    ("template", "expected"),
    [(DATED, "Today: 28 Nov 2026.!"), (GUARDED, "28 Nov 2026"), (SWITCH, "on")],
)
def test_a_template_with_a_date_writes_it_on_every_day(template: str, expected: str) -> None:
    assert _render(with_date(template, DAY)) == expected


def test_every_format_of_a_template_is_dated() -> None:
    template = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%A') }}"
    assert date_formats(template) == ["%A", "%Y-%m-%d"]
    assert _render(with_date(template, DAY)) == "2026-11-28 Saturday"


def test_a_template_that_computes_its_format_stays_as_it_is() -> None:
    template = "{{ strftime_now('%Y' + '') }}"
    assert with_date(template, DAY) == template


def test_settings_are_one_header_whose_defaults_can_be_read() -> None:
    fixed = TemplateSettings({"thinking": False}, DAY, serves_date=True)
    template = with_settings(SWITCH + DATED, fixed)
    assert _render(template) == "offToday: 28 Nov 2026.!"
    assert default_kwargs(template) == {"thinking": False}


def test_a_variable_that_no_template_reads_is_an_error_with_the_known_names() -> None:
    require_variables(SWITCH, {"thinking": False})
    with pytest.raises(ConfigError) as caught:
        require_variables(SWITCH, {"thinkin": False})
    assert "data.chat_template_kwargs.thinkin: the chat template reads no" in caught.value.message
    assert caught.value.hint == "It reads: thinking."
    assert caught.value.exit_code == 2


def test_a_template_that_is_not_jinja_is_an_error_with_its_line() -> None:
    with pytest.raises(ConfigError, match="the chat template is not valid: line 2"):
        date_formats("ok\n{% if %}")


def test_a_template_that_marks_its_answers_is_read() -> None:
    assert template_variables("{% generation %}{{ thinking }}{% endgeneration %}") == {"thinking"}


def _dataset(folder: Path, **config: Any) -> Any:
    with new_artifact(folder, "dataset", config=config, inputs=[]) as draft:
        (draft.dir / "train.jsonl").write_text("")
    return open_artifact(folder)


def test_the_date_of_a_run_is_the_day_on_which_its_dataset_was_made(tmp_path: Path) -> None:
    made = _dataset(tmp_path / "a")
    found = dataset_settings(made)
    assert found.date is not None and made.manifest.created_at.startswith(str(found.date))
    assert (found.kwargs, found.serves_date) == ({}, False)
    fixed = _dataset(
        tmp_path / "b", chat_template_kwargs={"thinking": False}, chat_template_date="2026-11-28"
    )
    assert dataset_settings(fixed) == TemplateSettings({"thinking": False}, DAY, True)
