"""The text that the base model is trained on: generated help-desk conversations.

Every phrase in topics/ is written by hand for this folder. A conversation is a customer's message
(opening, problem, context, urgency, closing) and the assistant's reply in prose: what it is about,
which team takes it, how pressing it is and what is done. The customer's phrases have many
synonyms and the reply names the same thing in few words, so the model learns which words belong
together. Instructions, greetings and small talk fill the rest.

    python corpus.py        prints a few conversations
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TOPICS = Path(__file__).resolve().parent / "topics"
PROBLEM_FILES = (
    "money_and_access", "devices_and_network", "goods_and_sales",
    "software_and_mail", "data_and_security",
)  # fmt: skip
CONVERSATIONS = 40_000
SEED = 7
# Percent of the conversations: a plain message, an instruction with a message, small talk, a chain.
KINDS = (("message", 47), ("task", 45), ("talk", 5), ("chain", 3))
# Share of the messages that are a terse note of single words, and that have words left out.
TERSE = 0.4
CLIPPED = 0.25

Turn = dict[str, str]
Conversation = list[Turn]


def load(name: str) -> Any:
    """Read one phrase file."""
    with (TOPICS / f"{name}.yaml").open(encoding="utf-8") as stream:
        return yaml.safe_load(stream)


class Writer:
    """Draws phrases from the pools with one random generator."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.slots: dict[str, list[str]] = load("slots")
        self.urgency: dict[str, dict[str, list[str]]] = load("urgency")
        self.general: dict[str, Any] = load("general")
        self.problems: list[dict[str, Any]] = []
        more = load("more_wordings")
        for name in PROBLEM_FILES:
            for key, problem in load(name).items():
                problem["say"] += more[key]
                self.problems.append(problem)
        words = load("words")
        self.notes: list[str] = words["notes"]
        self.scraps = {key: text.split(", ") for key, text in words["urgency"].items()}
        for problem, text in zip(self.problems, self.word_lists(words["problems"]), strict=True):
            problem["words"] = text
        for level, wordings in load("more_urgency").items():
            self.urgency[level]["say"] += wordings

    @staticmethod
    def word_lists(texts: dict[str, str]) -> list[list[str]]:
        """Return the words of every problem, in the order of the problem files."""
        keys = [key for name in PROBLEM_FILES for key in load(name)]
        return [texts[key].split(", ") for key in keys]

    def number(self, slot: str) -> str:
        """Make up a value for a slot that is a number."""
        rng = self.rng
        makers = {
            "num": lambda: str(rng.randint(100, 9999)),
            "ext": lambda: str(rng.randint(20, 99)),
            "floor": lambda: str(rng.randint(1, 9)),
            "room": lambda: f"{rng.choice('ABC')}{rng.randint(1, 40)}",
            "count": lambda: str(rng.randint(3, 40)),
            "hour": lambda: f"{rng.randint(8, 18)}:{rng.choice(['00', '15', '30'])}",
            "invoice": lambda: f"INV-{rng.randint(1000, 9999)}",
            "order": lambda: f"A{rng.randint(10000, 99999)}",
            "amount": lambda: f"{rng.randint(12, 980)} {rng.choice(['euros', 'dollars'])}",
            "version": lambda: f"{rng.randint(2, 12)}.{rng.randint(0, 9)}",
        }
        return makers[slot]()

    def say(self, template: str, **given: str) -> str:
        """Resolve choices (a|b), inner ones first, and slots <x>."""
        rng = self.rng
        text = template
        while True:
            new = re.sub(r"\(([^()]*)\)", lambda m: rng.choice(m[1].split("|")), text)
            if new == text:
                break
            text = new

        def value(match: re.Match[str]) -> str:
            slot = match[1]
            if slot in given:
                return given[slot]
            return rng.choice(self.slots[slot]) if slot in self.slots else self.number(slot)

        while "<" in text:
            text = re.sub(r"<(\w+)>", value, text)
        return text[:1].upper() + text[1:]

    def pick(self, pool: list[str], **given: str) -> str:
        """Draw one template and resolve it."""
        return self.say(self.rng.choice(pool), **given)

    def topic(self, problem: dict[str, Any]) -> str:
        """Return a noun phrase for a problem, in lower case."""
        text = self.pick(problem["topic"])
        keep = text.split()[0].isupper()
        return text if keep and len(text.split()[0]) > 1 else text[0].lower() + text[1:]

    def message(self, problem: dict[str, Any], level: str) -> str:
        """Return a customer's message."""
        rng = self.rng
        if rng.random() < TERSE:
            return self.note(problem, level)
        if rng.random() < 0.88:
            what = self.pick(problem["say"])
        else:
            what = self.pick(self.general["problem_frames"], topic=self.topic(problem))
        cue = self.pick(self.urgency[level]["say"])
        body = [what, cue] if rng.random() < 0.75 else [cue, what]
        body.insert(rng.randint(0, 2), self.pick(self.general["contexts"]))
        if rng.random() < CLIPPED:
            body = [self.clip(part) for part in body]
        opening = rng.choice(self.general["openings"])
        closing = self.pick(self.general["closings"])
        return " ".join(part for part in [opening, *body, closing] if part)

    def clip(self, text: str) -> str:
        """Leave some words of a sentence out, as in a hasty message."""
        words = text.split()
        kept = [word for word in words if self.rng.random() > 0.2]
        return " ".join(kept or words)

    def note(self, problem: dict[str, Any], level: str) -> str:
        """Return a terse note made of words that go with the problem and its urgency."""
        rng = self.rng
        words = rng.sample(problem["words"], rng.randint(1, 4))
        scraps = rng.sample(self.scraps[level], rng.randint(1, 3))
        glue = [
            rng.choice([" ", ", ", " and ", " the ", " is ", " in ", " of ", " "]) for _ in words
        ]
        parts = "".join(word + mark for word, mark in zip(words, [*glue[1:], ""], strict=True))
        if rng.random() < 0.3:
            # Half a note and half a sentence: single words next to the full wording of one part.
            if rng.random() < 0.5:
                return self.pick(problem["say"]) + " " + ", ".join(scraps) + "."
            return parts + ". " + self.pick(self.urgency[level]["say"])
        joint = rng.choice([", ", " and ", " ", ", "])
        return self.pick(self.notes, words=parts, scraps=joint.join(scraps))

    def reply(self, problem: dict[str, Any], level: str) -> dict[str, str]:
        """Return the parts of the assistant's answer."""
        general = self.general
        return {
            "topic": self.pick(general["topic_frames"], topic=self.topic(problem)),
            "team": self.pick(general["team_frames"], team=problem["team"]),
            "urgency": self.pick(self.urgency[level]["take"]),
            "fix": self.pick(problem["fix"]),
        }

    def exchange(self) -> Conversation:
        """Return a plain message and its answer."""
        problem = self.rng.choice(self.problems)
        level = self.rng.choice(list(self.urgency))
        parts = self.reply(problem, level)
        order = ["topic", "team", "urgency", "fix"]
        return turns(self.message(problem, level), " ".join(parts[key] for key in order))

    def task(self) -> Conversation:
        """Return an instruction about a message and the answer to it."""
        rng = self.rng
        problem = rng.choice(self.problems)
        level = rng.choice(list(self.urgency))
        kind = rng.choice(["topic", "team", "urgency", "fix", "all", "all", "all", "rewrite"])
        message = self.message(problem, level)
        parts = self.reply(problem, level)
        if kind == "all":
            order = ["team", "urgency", "fix"]
            if rng.random() < 0.5:
                order.insert(0, "topic")
            answer = " ".join(parts[key] for key in order)
        elif kind == "rewrite":
            answer = self.pick(self.general["polite_frames"], topic=self.topic(problem))
        else:
            answer = parts[kind]
        instruction = rng.choice(self.general["tasks"][kind])
        return turns(f"{instruction}\n\n{message}", answer)

    def talk(self) -> Conversation:
        """Small talk and questions about the help desk."""
        pair = self.rng.choice(self.general["pairs"])
        return turns(self.say(pair["user"]), self.say(pair["assistant"]))

    def conversation(self) -> Conversation:
        """One conversation of a random kind."""
        kind = self.rng.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
        if kind == "message":
            return self.exchange()
        if kind == "task":
            return self.task()
        if kind == "talk":
            return self.talk()
        chain = self.talk()
        for _ in range(self.rng.randint(1, 4)):
            chain += self.exchange()
        return chain


def turns(user: str, assistant: str) -> Conversation:
    """Return a user turn and an assistant turn."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def conversations(count: int = CONVERSATIONS, seed: int = SEED) -> Iterator[Conversation]:
    """Generate the training text, always the same for the same count and seed."""
    writer = Writer(seed)
    for _ in range(count):
        yield writer.conversation()


def main() -> None:
    """Print a few conversations."""
    for conversation in conversations(12):
        for turn in conversation:
            print(f"{turn['role']}: {turn['content']}")
        print()


if __name__ == "__main__":
    main()
