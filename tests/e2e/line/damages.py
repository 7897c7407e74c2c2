"""A copy of a finished line, and the ways in which a sabotage damages it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.integration.release.keys import write_key
from tests.integration.release.line import forgetting_files, rewrite
from tuneline.core.reference import REFERENCE_FILE

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Scene:
    """A copy of a finished line that a sabotage may damage.

    Attributes:
        folder: The copy.
        known: The URL of the server of known delays.
        url: The URL of the server of the line's own model.
        settings: The options with which the line was made.
    """

    folder: Path
    known: str
    url: str
    settings: tuple[str, ...]

    @property
    def run(self) -> Path:
        return self.folder / "line" / "run.yaml"

    @property
    def runs(self) -> Path:
        return self.folder / "line" / "runs" / "support-tickets"

    def artifact(self, stage: str) -> Path:
        (found,) = self.runs.glob(f"{stage}-" + "?" * 10)
        return found

    def copy_to(self, folder: Path) -> Scene:
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def typed(self, command: tuple[str, ...]) -> list[str]:
        """Return the words of a command, with this copy's places for the {names} in it."""
        places = {
            "run": self.run, "runs": self.runs.parent, "data": self.run.parent,
            "out": self.folder / "out",
            "reference": self.folder / "reference", "model": self.artifact("model"),
            "adapter": self.artifact("adapter"), "release": self.artifact("release"),
            "base": self.folder / "base", "key": self.folder / "release.pub",
            "previous": self.folder / "previous", "prompts": self.folder / "prompts.jsonl",
            "known": self.known, "url": self.url,
        }  # fmt: skip
        words: list[str] = []
        for word in command:
            words += self.settings if word == "{settings}" else [word.format(**places)]
        return words

    def edit_weights(self, stage: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Change the tensors of a folder, which is then a plain folder."""
        folder = self.artifact(stage)
        (folder / "manifest.json").unlink()
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    def edit_json(self, stage: str, name: str, **values: object) -> None:
        """Change a JSON file of a folder, which is then a plain folder."""
        folder = self.artifact(stage)
        (folder / "manifest.json").unlink(missing_ok=True)
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _times_delta(scene: Scene, factor: float) -> None:
    base = load_file(scene.folder / "base" / "model.safetensors")

    def edit(tensors: dict[str, Any]) -> None:
        changed = [
            name for name, value in tensors.items() if not torch.equal(value, base[name].float())
        ]
        assert len(changed) > 5
        for name in changed:
            before = base[name].float()
            tensors[name] = before + factor * (tensors[name] - before)

    scene.edit_weights("model", edit)


def lora_scale(scene: Scene) -> None:
    """alpha/√r in place of alpha/r: what an exporter does that takes LoRA for rsLoRA."""
    config = json.loads((scene.artifact("adapter") / "adapter_config.json").read_text())
    _times_delta(scene, float(config["r"]) ** 0.5)


def delta_twice(scene: Scene) -> None:
    _times_delta(scene, 2.0)


def lost_tensor(scene: Scene) -> None:
    scene.edit_weights("adapter", lambda tensors: tensors.pop(min(tensors)))


def other_base(scene: Scene) -> None:
    path = scene.folder / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors[Q_PROJ] = tensors[Q_PROJ] * 1.01
    save_file(tensors, path, metadata={"format": "pt"})


def other_template(scene: Scene) -> None:
    folder = scene.artifact("model")
    (folder / "manifest.json").unlink()
    path = folder / "chat_template.jinja"
    text = path.read_text()
    assert "\\n" in text
    path.write_text(text.replace("\\n", " ", 1))


def lost_stop_token(scene: Scene) -> None:
    scene.edit_json("model", "config.json", eos_token_id=None)
    scene.edit_json("model", "generation_config.json", eos_token_id=None)


def vocabulary_cut(scene: Scene) -> None:
    size = json.loads((scene.artifact("model") / "config.json").read_text())["vocab_size"] - 64

    def edit(tensors: dict[str, Any]) -> None:
        for name in (EMBEDDING, "lm_head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][:size].clone()

    scene.edit_weights("model", edit)
    scene.edit_json("model", "config.json", vocab_size=size)


def coarse_quantizer(scene: Scene) -> None:
    """15 steps for a whole tensor, which its largest weight decides."""

    def edit(tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            if name.endswith("_proj.weight"):
                step = value.abs().max() / 7
                tensors[name] = (value / step).round() * step

    scene.edit_weights("model", edit)


def nan(scene: Scene) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        name = min(tensors)
        tensors[name][0, 0] = torch.nan

    scene.edit_weights("adapter", edit)


def _change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def tampered_artifact(scene: Scene) -> None:
    _change_a_byte(scene.artifact("model") / "model.safetensors")


def tampered_release(scene: Scene) -> None:
    """Figure and manifest are forged together; the key is not."""
    release = scene.artifact("release")
    rewrite(release, "README.md", lambda text: text.replace("0.9", "0.99", 1))


def wrong_key(scene: Scene) -> None:
    write_key(scene.folder, "release")


def another_digest(scene: Scene) -> None:
    def edit(text: str) -> str:
        report = json.loads(text)
        report["endpoint"]["artifact_short_digest"] = "0123456789ab"
        return json.dumps(report)

    rewrite(scene.artifact("loadtest"), "report.json", edit, "load-report")


def regression(scene: Scene) -> None:
    """4 of 200 answers are lost: the share drops by 2 %, and the interval is wider."""

    def edit(text: str) -> str:
        rows = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
        right = [row for row in rows if row["scores"].get("exact_match") == 1]
        assert len(right) > 100
        for row in right[:4]:
            row["scores"]["exact_match"] = 0
        return "".join(json.dumps(row) + "\n" for row in rows)

    rewrite(scene.artifact("evaluation-served"), "predictions.jsonl", edit, "evaluation")


def leaked_rows(scene: Scene) -> None:
    rows = (scene.run.parent / "heldout.jsonl").read_text("utf-8").split("\n")
    with (scene.run.parent / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(rows[:3]) + "\n")


def forgotten_skill(scene: Scene) -> None:
    """The base of the example is too small to have a skill, so the answers are written."""
    files = forgetting_files("json")
    for name in files:
        rewrite(scene.artifact("forgetting"), name, lambda _, n=name: files[n], "forgetting")  # type: ignore[misc]


def repeated_prompts(scene: Scene) -> None:
    """One prompt for all: the prefix cache answers what the load says is new."""
    path = scene.folder / "prompts.jsonl"
    lines = path.read_text("utf-8").split("\n")
    path.write_text((lines[0] + "\n") * len(lines), "utf-8")


def write_short_reference(scene: Scene) -> None:
    """Write a reference of 8 prompts: damaged models answer at full length."""
    folder = scene.folder / "reference"
    shutil.copytree(scene.artifact("reference"), folder)

    def few_rows(text: str) -> str:
        rows = text.removesuffix("\n").split("\n")
        assert len(rows) == 64
        # Those with the rarest words: a vocabulary that was cut lacks their tokens.
        rows.sort(key=lambda row: -max(json.loads(row)["prompt_token_ids"]))
        return "\n".join(rows[:8]) + "\n"

    rewrite(folder, REFERENCE_FILE, few_rows, "reference")


def write_prompts(path: Path) -> None:
    """Write prompts of several cache blocks, of which no two begin alike."""
    texts = [f"{number} " + f"ticket {number} " * 90 for number in range(100, 140)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), "utf-8")


@contextmanager
def stopped_clients(run_s: float, stop_s: float) -> Iterator[None]:
    """Stop the processes of the load client again and again, as a host without CPU does."""
    ended = threading.Event()

    def disturb() -> None:
        while not ended.wait(run_s):
            clients = _clients()
            _signal(clients, signal.SIGSTOP)
            time.sleep(stop_s)
            _signal(clients, signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _clients() -> list[int]:
    """Return the worker processes of the load client that this process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == os.getpid() and b"loadtest.client" in words:
            found.append(int(folder.name))
    return found
