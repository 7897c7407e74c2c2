from __future__ import annotations

import pytest

from tuneline.core.secrets import is_secret_name, without_secrets


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "OPENAI_API_KEY", "WANDB_API_KEY",
        "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CONNECTION_STRING",
        "GOOGLE_APPLICATION_CREDENTIALS", "AWS_CREDENTIAL", "PGPASSWORD", "GITHUB_PAT",
        "GPG_PASSPHRASE", "api_key", "hf_token",
    ],
)  # fmt: skip
def test_the_end_of_a_name_makes_a_secret(name: str) -> None:
    assert is_secret_name(name)
    assert without_secrets({name: "s3cret", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "HOME", "KEYBOARD", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES", "HF_HOME",
        "MAX_TOKENS", "SSH_AUTH_SOCK", "max_num_batched_tokens", "PATTERN", "XDG_CACHE_HOME",
    ],
)  # fmt: skip
def test_other_names_are_kept(name: str) -> None:
    assert not is_secret_name(name)
    assert without_secrets({name: "value"}) == {name: "value"}


@pytest.mark.parametrize(
    ("value", "is_kept"),
    [
        ("postgres://tuneline:s3cret@db.example.org/runs", False),
        ("http://user:s3cret@proxy.example.org:3128", False),
        ("redis://:s3cret@cache.example.org", False),
        ("http://proxy.example.org:3128", True),
        ("https://user@example.org/simple", True),
        ("https://example.org/a:b@c", True),
    ],
)
def test_a_url_with_a_password_is_a_secret_by_any_name(value: str, is_kept: bool) -> None:
    assert without_secrets({"ADDRESS": value}) == ({"ADDRESS": value} if is_kept else {})
