"""Planted credentials, and what a program that was started really received."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PLANTED = {
    "HF_TOKEN": "hf_planted_0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted_old_0123456789",
    "VLLM_API_KEY": "planted-vllm-key",
    "OPENAI_API_KEY": "planted-openai-key",
    "AWS_ACCESS_KEY_ID": "planted-aws-id",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "AWS_SESSION_TOKEN": "planted-aws-session",
    "AZURE_CLIENT_SECRET": "planted-azure",
    "GOOGLE_APPLICATION_CREDENTIALS": "/planted/google.json",
    "WANDB_API_KEY": "planted-wandb",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow",
    "GITHUB_TOKEN": "planted-github",
    "DATABASE_URL": "postgres://planted:planted-password@db/x",
}
HARMLESS = {"TUNELINE_TEST_HARMLESS": "kept"}


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put credentials, and one variable without any, into this process's environment."""
    for name, value in {**PLANTED, **HARMLESS}.items():
        monkeypatch.setenv(name, value)


def check_received(path: Path) -> None:
    """Check the environment that a program wrote down as JSON: no credential, and the rest."""
    received = json.loads(path.read_text())
    assert received["TUNELINE_TEST_HARMLESS"] == "kept"
    assert not PLANTED.keys() & received.keys()
    assert [value for value in received.values() if "planted" in value] == []
