"""The command of another trainer in a shell script, read without running it.

A command gives its options as words, in a configuration file that it names, or both; the words
then win. Variables that the script itself sets to plain text are put in. Nothing else of the shell
is known: a value with `$` stays as it is written, and the caller names it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneline.core.bounded_yaml import load_yaml
from tuneline.core.errors import ConfigError
from tuneline.pipeline.foreign.reading import WITHOUT_EFFECT

SUFFIXES = (".sh", ".bash", ".slurm", ".sbatch")
CONFIGURATIONS = (".yaml", ".yml", ".json")
TRL_SCRIPTS = ("sft", "dpo", "kto", "orpo", "reward", "grpo", "rloo", "distillation")
PROGRAMS = {
    "swift": ("ms-swift", ("sft", "rlhf", "pt")),
    "trl": ("TRL", TRL_SCRIPTS),
    "llamafactory-cli": ("LLaMA-Factory", ("train",)),
    "lmf": ("LLaMA-Factory", ("train",)),
    "axolotl": ("Axolotl", ("train",)),
    "tune": ("torchtune", ("run",)),
}
"""The trainer and its commands by the name of the program."""
FILES = (
    (re.compile(r"\bswift[./]cli[./](?P<name>sft|rlhf|pt)(\.py)?$"), "ms-swift"),
    (re.compile(r"\baxolotl[./]cli[./](?P<name>train)(\.py)?$"), "Axolotl"),
    (re.compile(rf"\bscripts[./](?P<name>{'|'.join(TRL_SCRIPTS)})(\.py)?$"), "TRL"),
    (re.compile(r"\bsrc/(?P<name>train)(_bash)?\.py$"), "LLaMA-Factory"),
)
"""Files and modules that python, torchrun, deepspeed or accelerate start, and their trainer."""
SHELL = "only the shell knows the value; set it in the new file"
EXPECTED = ("swift sft", "trl sft", "llamafactory-cli train", "axolotl train", "tune run")
PROCESSES = ("nproc_per_node", "num_processes", "num_gpus", "NPROC_PER_NODE")
END = "\0"
OPERATOR = re.compile(r"(?:(?<=\s)\d+|&)?[<>]+|[|&;]+")
"""The end of a command, such as `2>`, `|` or `&&`; put_in writes END for it."""
ARRAY = re.compile(r"^[ \t]*\w+\+?=\([^)]{0,9999}\)", re.MULTILINE)
ASSIGNMENT = re.compile(
    r"[ \t]*(?:export[ \t]+|local[ \t]+|readonly[ \t]+|declare[ \t]+(?:-\w+[ \t]+)?)?(\w+)(\+?)="
    r"(\([^)]*\)|\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\s;\"']*)[ \t]*(?:;|#.*)?"
)
QUOTED = r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\."
SPAN = re.compile(rf"{QUOTED}|[^'\"\\]+", re.DOTALL)
"""A piece of shell text in quotes of one kind, or without."""
COMMENT = re.compile(rf"(?P<quoted>{QUOTED})|(?<!\S)#.*")
VARIABLE = re.compile(
    r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:\[[@*]\])?"
    r"(?::?-(?P<default>[^{}$`\"']*))?\})"
)
ONLY_VARIABLE = re.compile(r"\$(\w+|\{[^{}]*\})")
LARGEST_SCRIPT, LARGEST_VALUE = 100_000, 2000
"""Most characters of a script, and of a variable that is put in."""


@dataclass(frozen=True)
class Command:
    """A command of another trainer: its name (`dpo` of `trl dpo`) and its options."""

    trainer: str
    name: str
    values: dict[str, Any]
    notes: tuple[str, ...]


def is_script(source: Path, text: str) -> bool:
    """Return whether a file is a shell script."""
    return source.suffix in SUFFIXES or text.startswith("#!")


def read_command(source: Path, text: str) -> Command:
    """Return the first command of a shell script that trains.

    Raises:
        ConfigError: The script has no such command, its quotes do not match, or the configuration
            that the command names cannot be read.
    """
    if len(text) > LARGEST_SCRIPT:
        raise ConfigError(
            f"{source}: has {len(text):,} characters; expected a script of at most "
            f"{LARGEST_SCRIPT:,}"
        )
    variables = _Variables()
    found = []
    for line in _lines(text):
        if match := ASSIGNMENT.fullmatch(line):
            variables.set(match[1], match[3], is_more=bool(match[2]))
        elif any(known in line for known in (*PROGRAMS, ".py")):
            try:
                command = _command(shlex.split(variables.put_in(line)))
            except ValueError as error:
                raise ConfigError(f"{source}: cannot be read as a script: {error}") from None
            found += [command] if command is not None else []
    if not found:
        raise ConfigError(
            f"{source}: has no command that trains; expected one of: {', '.join(EXPECTED)}, or "
            "python with a script of these trainers",
            hint="Of a program of your own, try: tuneline init --data FILE --base MODEL",
        )
    trainer, name, words, before = found[0]
    values, file, notes = _options(words)
    exported = [f"{key}={variables.texts[key]}" for key in PROCESSES if key in variables.texts]
    notes += _launch_notes([*exported, *before], values)
    if len(found) > 1:
        notes.append(f"the script has {len(found)} commands that train: the first one is read")
    values = dict(_negated(*given) for given in values.items())
    if file:
        values = _merged(_configuration(source, file), values, is_nested=trainer == "torchtune")
    return Command(trainer, name, values, tuple(notes))


def _lines(text: str) -> list[str]:
    """Return the lines of a script without comments.

    A line that a backslash continues is one line, and so is an array.
    """
    whole = re.sub(
        r"^[ \t]*#.*$", "", text.replace("\r\n", "\n").replace(END, ""), flags=re.MULTILINE
    )
    plain = COMMENT.sub(lambda match: match["quoted"] or "", whole.replace("\\\n", " "))
    return ARRAY.sub(lambda match: match[0].replace("\n", " "), plain).splitlines()


class _Variables:
    """The variables that a script sets to one value; of others only the shell knows the value."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._arrays: dict[str, str] = {}
        self._seen: dict[str, str] = {}

    def set(self, name: str, written: str, *, is_more: bool) -> None:
        """Note an assignment; a second one with another value makes the variable unknown."""
        self.texts.pop(name, None)
        self._arrays.pop(name, None)
        if is_more or self._seen.setdefault(name, written) != written:
            self._seen[name] = ""
            return
        text = self.put_in(written)
        if len(text) > LARGEST_VALUE or "`" in text or "$" in text:
            return
        if text.startswith("("):
            self._arrays[name] = text[1:-1]
        elif text[:1] in ("'", '"'):
            self.texts[name] = text[1:-1] if text[0] == "'" else re.sub(r"\\(.)", r"\1", text[1:-1])
        else:
            self.texts[name] = text

    def put_in(self, text: str) -> str:
        """Return shell text with END for operators, and with the known variables put in.

        Single quotes hide both, and double quotes hide operators.
        """
        return SPAN.sub(self._span, text)

    def _span(self, match: re.Match[str]) -> str:
        span = match[0]
        if span[0] in ("'", "\\"):
            return span
        array = re.fullmatch(r'"?\$\{(\w+)\[@\]\}"?', span)
        if array and array[1] in self._arrays:
            return self._arrays[array[1]]
        if span[0] != '"':
            span = OPERATOR.sub(f" {END} ", span)
        special = r'(["\\])' if span[0] == '"' else r"""(["'\\])"""

        def value(found: re.Match[str]) -> str:
            name = found["plain"] or found["name"]
            known = self.texts.get(name, None if name in self._seen else found["default"])
            return found[0] if known is None else re.sub(special, r"\\\1", known)

        return VARIABLE.sub(value, span)


def _command(words: Sequence[str]) -> tuple[str, str, list[str], list[str]] | None:
    """Return trainer, name and words of a command, and the words before them."""
    for place, word in enumerate(words):
        before, rest = list(words[:place]), list(words[place + 1 :])
        trainer, names = PROGRAMS.get(word.rpartition("/")[2], ("", ()))
        if trainer and rest and rest[0] in names:
            # The words between `tune run` and the recipe are torchrun's.
            recipe = rest.index("--config") if trainer == "torchtune" and "--config" in rest else 1
            return trainer, rest[0], rest[recipe:], [*before, *rest[:recipe]]
        for pattern, title in FILES:
            if match := pattern.search(word):
                return title, match["name"], rest, before
    return None


def _options(words: Sequence[str]) -> tuple[dict[str, Any], str, list[str]]:
    """Return the options of a command, the configuration that it names, and what is not known.

    Values are YAML, and several make a list.
    """
    given: dict[str, list[str]] = {}
    notes: list[str] = []
    name, file = "", ""
    for text in words[: words.index(END)] if END in words else words:
        if text.startswith("--"):
            name, equals, value = text[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = [value] if equals else []
            name = "" if equals or name == "config" else name
        elif "config" in given and not given["config"]:
            given["config"] = [text]
        elif name and not (given[name] and ONLY_VARIABLE.fullmatch(text)):
            given[name].append(text)
        elif "=" in text and "$" not in text.partition("=")[0]:
            given[text.partition("=")[0]] = [text.partition("=")[2]]
        elif text.endswith(CONFIGURATIONS) and not file:
            file = text
        else:
            unknown = (
                "only the shell knows the options in it" if "$" in text else "is not an option"
            )
            notes.append(f"{text}: {unknown}")
    file = "".join(given.pop("config", [])[:1]) or file
    values: dict[str, Any] = {}
    for key, texts in given.items():
        if key not in WITHOUT_EFFECT and any("$" in text or "`" in text for text in texts):
            notes.append(f"{key}: {' '.join(texts)}: {SHELL}")
        else:
            read = [_yaml(text) for text in texts] or [True]
            values[key] = read if len(read) > 1 else read[0]
    return values, file, notes


def _yaml(text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _negated(name: str, value: Any) -> tuple[str, Any]:
    """Return an option; `--no_x` means that `x` is false."""
    return (name[3:], False) if name.startswith("no_") and value is True else (name, value)


def _launch_notes(before: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Say what becomes of several processes, of which the words before a command tell."""
    words = [word.lstrip("-").replace("-", "_") for word in before]
    given = {name: values.pop(name) for name in PROCESSES if name in values}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in PROCESSES:
            given[name] = value if equals else following
    return [
        f"{name}: {value}: there, a step has the rows of {value} processes. Here it has "
        "per_device_train_batch_size x gradient_accumulation_steps rows: multiply "
        "gradient_accumulation_steps for the same, and set training.launch.processes"
        for name, value in given.items()
        if str(value) not in ("1", "")
    ]


def _configuration(source: Path, file: str) -> dict[str, Any]:
    """Return the configuration that a command names; it is next to the script if not here."""
    places = [Path(file), source.parent / file]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ConfigError(
            f"{source}: its command names the configuration {file}, which is not here",
            hint="Run tuneline init in the folder from which the script runs; or give the file: "
            f"tuneline init --from {Path(file).name}",
        )
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: cannot be read as YAML or JSON: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options")
    return values


def _merged(file: dict[str, Any], options: Mapping[str, Any], *, is_nested: bool) -> dict[str, Any]:
    """Return the values of a configuration with those of the command line in their place."""
    for key, value in options.items():
        *sections, name = key.split(".") if is_nested else [key]
        inner = file
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[name] = value
    return file
