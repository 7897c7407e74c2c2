"""A bar on a terminal and messages next to it."""

import io
import re
import sys
from pathlib import Path

import pytest

from tuneline.core import progress as progress_module
from tuneline.core.files import FileEntry, difference_lines
from tuneline.core.progress import logger, progress, set_up_logging
from tuneline.models.source import folder_digest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_message_has_a_line_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setenv("TERM", "xterm")
    set_up_logging()
    with progress("training", 4, "steps") as advance:
        advance(2)
        logger.warning("the held-out loss is 1.5")
    logger.warning("after the bar")
    text = terminal.getvalue()
    assert "training" in text
    assert re.search(r"(\x1b\[2K|\n)the held-out loss is 1\.5\n", text), text
    assert text.endswith("after the bar\n")


def test_a_long_read_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a model in files of gigabytes; here of one in files of bytes."""
    monkeypatch.setattr(progress_module, "SHOWN_BYTES", 1)
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(logger, "propagate", True)
    model = tmp_path / "my-base"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes(b"{}" * 2**19)
    with caplog.at_level("INFO", "tuneline"):
        folder_digest(model)
    assert caplog.messages == ["  reading my-base: 0/2 MiB ", "  reading my-base: 1/2 MiB "]
    caplog.clear()
    entries = [FileEntry(path=path.name, size_bytes=2**20, sha256="") for path in model.iterdir()]
    with caplog.at_level("INFO", "tuneline"):
        assert len(difference_lines(model, entries)) == 2
    assert caplog.messages == ["  checking my-base: 1/2 MiB ", "  checking my-base: 2/2 MiB "]
