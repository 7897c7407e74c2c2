"""The `data.checks` section: one entry per check of the rows.

An entry is an action, or a mapping with `action` and the check's options. `fix` changes or drops
the rows, `warn` keeps and lists them, `refuse` ends the command, and `ignore` turns a check off.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tuneline.core.config import StrictModel

Action = Literal["fix", "warn", "refuse", "ignore"]
Similarity = Annotated[float, Field(ge=0.6, le=1)]


class CheckConfig(StrictModel):
    """The action of a check on the rows that it finds."""

    action: Action = "warn"
    """`fix`, `warn`, `refuse` or `ignore`."""

    @model_validator(mode="before")
    @classmethod
    def _from_action(cls, value: Any) -> Any:
        """Take an action without options for a mapping with the action."""
        return {"action": value} if isinstance(value, str) else value


class DuplicatesCheck(CheckConfig):
    """Rows whose texts equal an earlier row's."""

    action: Action = "fix"
    """`fix` drops the later row."""


class NearDuplicatesCheck(CheckConfig):
    """Rows whose prompt and answer are both similar to an earlier row's."""

    action: Action = "warn"
    """`fix` drops the later row."""
    similarity: Similarity = 0.8
    """Least Jaccard similarity of two texts, by their runs of eight characters."""


class LeakageCheck(CheckConfig):
    """Training rows whose prompt is also held out; case and spacing do not count. The prompts
    before the earlier answers of a conversation count, too."""

    action: Action = "fix"
    """`fix` drops the training row."""


class NearLeakageCheck(CheckConfig):
    """Training rows whose prompt is similar to a held-out prompt, or that answer its question as
    the held-out row does, after other turns."""

    action: Action = "warn"
    """`fix` drops the training row."""
    similarity: Similarity = 0.8
    """Least Jaccard similarity of two prompts, by their runs of eight characters."""


class ContradictionsCheck(CheckConfig):
    """Prompts with different answers."""

    action: Action = "warn"
    """`fix` keeps the answer that most rows of the prompt give. Without a majority it drops all
    rows of the prompt."""


class EmptyAnswersCheck(CheckConfig):
    """Answers without a letter, a digit, a symbol or a tool call."""

    action: Action = "refuse"
    """`fix` drops the row."""


class RepetitionCheck(CheckConfig):
    """Answers that repeat one passage again and again."""

    action: Action = "warn"
    """`fix` drops the row."""


class TruncationCheck(CheckConfig):
    """Answers that end in the middle of a sentence, a code block or a JSON document."""

    action: Action = "warn"
    """`fix` drops the row."""


class RefusalsCheck(CheckConfig):
    """Answers that are a refusal's standard phrase, such as "As an AI language model"."""

    action: Action = "warn"
    """`fix` drops the row."""


class ToolCallsCheck(CheckConfig):
    """Calls of tools that the row does not list, arguments that its schema does not allow, and
    results that answer no call."""

    action: Action = "warn"
    """`fix` drops the row."""


class LengthCheck(CheckConfig):
    """Rows with more tokens than `training.max_length`."""

    action: Literal["fix", "refuse"] = "refuse"
    """`refuse` or `fix`; training has no third way to treat a row that does not fit."""
    by: Literal["drop", "cut_left"] = "drop"
    """`drop` drops the row. `cut_left` drops the oldest turns, then the beginning of the last
    question; system message and answer stay whole."""


class LanguagesCheck(CheckConfig):
    """Answers in another language than expected, or in another script than most answers."""

    action: Action = "warn"
    """`fix` drops the row."""
    expected: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    """Codes of ISO 639, such as `[ko, en]`. If empty, only a rare script is a finding."""


class WordsCheck(CheckConfig):
    """Rows with a word of a list."""

    action: Action = "warn"
    """`fix` drops the row."""
    words: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The words or phrases; case does not count."""


class PersonalDataCheck(CheckConfig):
    """Likely mail addresses, phone numbers, card numbers, resident numbers and bank accounts."""

    action: Action = "warn"
    """`fix` replaces each with its kind in brackets, such as `[email]`."""
    regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = ("KR", "US")
    """Countries whose national phone numbers are known, by ISO 3166. Resident numbers of BR, DE,
    ES, FR, IN, JP, PL, SE and US are known if the country is named, those of KR and CN always."""


class LabelsCheck(CheckConfig):
    """The balance of answers that come from a short list, and of good and bad labels."""

    action: Literal["warn", "refuse", "ignore"] = "warn"
    """`warn`, `refuse` or `ignore`."""
    max_ratio: Annotated[float, Field(gt=1)] = 20.0
    """Greatest ratio of the most frequent label's rows to the rarest label's."""


class ChecksConfig(StrictModel):
    """Checks of the rows. Each entry is `fix`, `warn`, `refuse`, `ignore`, or a mapping."""

    duplicates: DuplicatesCheck = DuplicatesCheck()
    """Rows that are equal."""
    near_duplicates: NearDuplicatesCheck = NearDuplicatesCheck()
    """Rows that are similar."""
    leakage: LeakageCheck = LeakageCheck()
    """Training rows whose prompt is held out."""
    near_leakage: NearLeakageCheck = NearLeakageCheck()
    """Training rows whose prompt is similar to a held-out prompt."""
    contradictions: ContradictionsCheck = ContradictionsCheck()
    """Different answers to one prompt."""
    empty_answers: EmptyAnswersCheck = EmptyAnswersCheck()
    """Answers without text."""
    repetition: RepetitionCheck = RepetitionCheck()
    """Answers that repeat themselves."""
    truncation: TruncationCheck = TruncationCheck()
    """Answers that end too early."""
    refusals: RefusalsCheck = RefusalsCheck()
    """Answers that are a standard refusal."""
    tool_calls: ToolCallsCheck = ToolCallsCheck()
    """Calls that do not fit the row's tools."""
    length: LengthCheck = LengthCheck()
    """Rows over `training.max_length`."""
    languages: LanguagesCheck = LanguagesCheck()
    """Languages and scripts of the answers."""
    words: WordsCheck = WordsCheck()
    """A list of words."""
    personal_data: PersonalDataCheck = PersonalDataCheck()
    """Likely personal data."""
    labels: LabelsCheck = LabelsCheck()
    """Balance of labels."""
