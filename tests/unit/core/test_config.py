"""Configuration problems are shown all at once, each with its key and a suggestion."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import pytest
from pydantic import Field, model_validator

from tuneline.core.config import (
    StrictModel,
    keyed_values,
    load_config,
    read_document,
    validate_config,
)
from tuneline.core.config_problems import near_keys
from tuneline.core.errors import ConfigError
from tuneline.pipeline.run_config import RunConfig


class Inner(StrictModel):
    learning_rate: float = Field(default=1e-3, gt=0)
    steps: int = 1


class Scenario(StrictModel):
    rate_rps: float | None = None


class Choices(StrictModel):
    choices: list[int]


class Range(StrictModel):
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self


class Sft(StrictModel):
    type: Literal["sft"]
    beta: float = 1


class Dpo(StrictModel):
    type: Literal["dpo"]
    beta: float = 1


class Outer(StrictModel):
    name: str
    training: Inner = Inner()
    optional: Inner | None = None
    scenarios: tuple[Scenario, ...] = ()
    method: Annotated[Sft | Dpo, Field(discriminator="type")] = Sft(type="sft")
    space: dict[str, Range | Choices] = Field(default={})
    targets: str | list[str] = "all"
    think_s: Range | Literal["recorded"] = "recorded"


def load(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> Outer:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, Outer, overrides)


def problems(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_overrides_win_and_are_typed(tmp_path: Path) -> None:
    config = load(tmp_path, "name: a", ("training.learning_rate=1e-4", "optional.steps=7"))
    assert config.training.learning_rate == 1e-4
    assert config.optional is not None
    assert config.optional.steps == 7
    text = "name: a\nscenarios: [{rate_rps: 1}, {rate_rps: 2}]"
    changed = load(tmp_path, text, ("scenarios.1.rate_rps=5",))
    assert [scenario.rate_rps for scenario in changed.scenarios] == [1, 5]


def test_all_problems_at_once_with_suggestions(tmp_path: Path) -> None:
    text = "training: {lerning_rate: 1, steps: many}\noptional: {step: 1}\nscenarios: [{rate: 2}]"
    found = problems(tmp_path, text)
    path = tmp_path / "run.yaml"
    assert f"{path}: name: missing; it is required" in found
    assert f"{path}: training.lerning_rate: unknown key (did you mean learning_rate?)" in found
    assert f"{path}: optional.step: unknown key (did you mean steps?)" in found
    assert f"{path}: scenarios.0.rate: unknown key (did you mean rate_rps?)" in found
    assert any("training.steps" in problem and "'many'" in problem for problem in found)
    assert len(found) == 5


def test_an_unlike_key_lists_the_known_ones(tmp_path: Path) -> None:
    assert "known: name, training" in problems(tmp_path, "name: a\nzzz: 1")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "line 1: not valid YAML"),
        ("name: a\nname: b", "line 2: not valid YAML: key 'name' appears twice"),
        ("- a", "expected a mapping of sections, found list"),
        ("# nothing", "is empty; expected sections"),
        ("name: a\ntraining:\n# steps: 2\n", "training: expected keys below it, found nothing"),
        ("name: a\ntraining: 3", "training: expected keys below it, found 3"),
        ("name: a\nscenarios: {rate_rps: 1}", "expected a list in brackets, found {'rate_rps': 1}"),
        ("name: a\ntraining: {steps: sk-abcdefghijklmnop1}", "found '***'"),
        ("name: a\ntraining: {learning_rate: -1}", "training.learning_rate: input should be gr"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: {type: dpo, beta: x}", ["method.beta: input should be a valid number, unable"]),
        ("method: {typ: dpo}", ["method.type: missing; it is required"]),
        ("method: {type: foo}", ["method.type: 'foo' is unknown; expected one of 'sft', 'dpo'"]),
        ("space: {a.b: {lo: 1, high: 2}}",
         ["space.a.b.low: missing", "space.a.b.lo: unknown key (did you mean low?)"]),
        ("space: {a.b: {choices: 5}}", ["space.a.b.choices: expected a list in brackets, found 5"]),
        ("targets: 5", ["targets: input should be a valid string, found 5",
                        "targets: expected a list in brackets, found 5"]),
        ("targets: [a, 5]", ["targets.1: input should be a valid string, found 5"]),
        ("think_s: {low: x, high: 1}", ["think_s.low: input should be a valid number"]),
        ("think_s: often", ["think_s: expected keys below it, found 'often'",
                            "think_s: input should be 'recorded', found 'often'"]),
    ],
)  # fmt: skip
def test_a_key_is_the_user_s_own_where_several_types_fit(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    found = problems(tmp_path, f"name: a\n{text}")
    path = tmp_path / "run.yaml"
    assert len(found) == len(expected), found
    for problem, words in zip(found, expected, strict=True):
        assert problem.startswith(f"{path}: {words}")


def test_merge_keys_are_read(tmp_path: Path) -> None:
    text = (
        "name: a\ntraining: &usual {steps: 2, learning_rate: 1}\noptional: {<<: *usual, steps: 3}"
    )
    config = load(tmp_path, text)
    assert config.optional == Inner(steps=3, learning_rate=1)
    (found,) = problems(tmp_path, text.replace("steps: 3", "steps: 3, steps: 4"))
    assert "key 'steps' appears twice" in found


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("options: {a: 1e-4, b: [+2E+3, 1.5e-2], revision: 12e4567, word: 1e-4x}")
    assert read_document(path, ("options.c=1e-5",)) == {
        "options": {
            "a": 1e-4, "b": [2000.0, 0.015], "revision": "12e4567", "word": "1e-4x", "c": 1e-5,
        }
    }  # fmt: skip


def test_missing_directory_and_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml", Outer)
    with pytest.raises(ConfigError, match=r"is a directory.*\n.*Try: .*/run.yaml"):
        load_config(tmp_path, Outer)
    (tmp_path / "tickets.yml").touch()
    with pytest.raises(ConfigError, match=r"Try: .*/tickets.yml"):
        load_config(tmp_path, Outer)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match="byte 9: not UTF-8"):
        load_config(tmp_path / "latin.yaml", Outer)


@pytest.mark.parametrize(
    "override",
    [
        "name",
        "=1",
        "training..steps=1",
        "name.x=1",
        "name=[",
        "scenarios.1.x=1",
        "scenarios.a=1",
        "training={steps: 1, steps: 2}",
    ],
)
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    text = "name: a\nscenarios: [{rate_rps: 1}]"
    assert override in problems(tmp_path, text, (override,))[0]


def test_options_are_validated_alike() -> None:
    with pytest.raises(ConfigError, match=r"tuneline x: steps: .*'no'"):
        validate_config(Inner, {"steps": "no"}, "tuneline x")


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().steps = 3


class Kept(StrictModel):
    """With a field that is not keyed, and fields that other tools call otherwise."""

    other_names: ClassVar[dict[str, str]] = {
        "speed": "rate",
        "p95_s": "limits: {p95: SECONDS}",
    }

    rate: float = 1.0
    port: int = Field(default=8000, json_schema_extra={"keyed": False})
    limits: dict[str, float] = Field(default={})
    inner: Inner = Inner()
    hidden: Inner = Field(default=Inner(), json_schema_extra={"keyed": False})
    scenarios: tuple[Scenario, ...] = (Scenario(rate_rps=2),)
    path: Path | None = None


class Whole(StrictModel):
    kept: Kept = Kept()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=My Model", "name: found 'My Model'; expected a lower-case letter, then lower-case "
                          "letters, digits and hyphens, at most 42 characters"),
        ("learning_rate=1e-4", "learning_rate: unknown key (did you mean training.learning_rate?)"),
        ("serving.lr=1e-4", "serving.lr: unknown key (did you mean training.learning_rate?)"),
        ("serving.dtpe=auto", "serving.dtpe: unknown key (did you mean dtype?)"),
        ("data=rows.jsonl",
         "data: expected keys below it, found 'rows.jsonl' (did you mean path: rows.jsonl?)"),
        ("training.method=dpo",
         "training.method: expected keys below it, found 'dpo' (did you mean type: dpo?)"),
    ],
)  # fmt: skip
def test_a_first_mistake_is_answered_with_the_key_that_is_meant(
    tmp_path: Path, override: str, expected: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\ndata: {path: rows.jsonl}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, RunConfig, (override,))
    assert caught.value.problems == [f"{path}: {expected}"]


ALIASES = "\n".join(f"k{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 6))
"""Each line is a list of ten aliases of the line before."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ALIASES,
         "more than 100,000 values with its aliases"),
        ("name: &x [*x]", "has an alias that is part of itself"),
        ("name: " + "[" * 3000, "is nested too deeply"),
    ],
    ids=["aliases", "cycle", "nesting"],
)  # fmt: skip
def test_yaml_that_would_fill_the_memory_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in problems(tmp_path, f"k0: &x0 [1, 2]\n{text}")[0]


def test_a_long_value_is_cut_in_a_message(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f"name: a\ntraining: {{steps: {'many' * 5000}}}")
    assert "found 'many" in problem and len(problem) < 500


def test_only_fields_that_change_a_result_are_keyed() -> None:
    assert keyed_values(Kept(path=Path("a/b"), limits={"p95": 1})) == {
        "rate": 1.0,
        "limits": {"p95": 1.0},
        "inner": {"learning_rate": 1e-3, "steps": 1},
        "scenarios": [{"rate_rps": 2.0}],
        "path": "a/b",
    }
    assert keyed_values(Kept(port=1, hidden=Inner(steps=9))) == keyed_values(Kept())
    assert keyed_values(Kept(inner=Inner(steps=9))) != keyed_values(Kept())


@pytest.mark.parametrize("by_override", [False, True])
@pytest.mark.parametrize(("key", "here"), [("speed", "rate"), ("p95_s", "limits: {p95: SECONDS}")])
def test_the_name_of_another_tool_is_answered_with_the_key(
    tmp_path: Path, key: str, here: str, by_override: bool
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("kept: {}" if by_override else f"kept: {{{key}: 3}}")
    overrides = (f"kept.{key}=3",) if by_override else ()
    with pytest.raises(ConfigError) as caught:
        load_config(path, Whole, overrides)
    assert caught.value.exit_code == 2
    assert caught.value.problems == [f"{path}: kept.{key}: is called {here} here"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learning_rate", ["training.learning_rate"]),
        ("training.lerning_rate", ["training.learning_rate"]),
        ("training.learning-rate", ["training.learning_rate"]),
        ("training.adapter.r", ["training.r"]),
        ("lora_r", ["training.r"]),  # as other tools call it
        ("training.beta", ["training.method.beta"]),  # a key of some methods
        ("nothing.like.it", []),
    ],
)
def test_a_path_that_is_unknown_leads_to_the_keys_that_are_meant(
    written: str, meant: list[str]
) -> None:
    assert near_keys(RunConfig, written) == meant
