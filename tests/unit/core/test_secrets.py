from __future__ import annotations

import time

import pytest

from tuneline.core.secrets import (
    first_line,
    has_secrets,
    hide_flags,
    hide_secrets,
    is_secret_name,
    without_secrets,
)


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
        ("s3://AKIAEXAMPLE:ab/cd+ef@models/tickets", False),
        ("http://example.org:8000/a@b", True),
        ("abfss://container@account.dfs.core.windows.net/a:b", True),
        ("http://proxy.example.org:3128", True),
        ("https://user@example.org/simple", True),
        ("https://example.org/a:b@c", True),
    ],
)
def test_a_url_with_a_password_is_a_secret_by_any_name(value: str, is_kept: bool) -> None:
    assert without_secrets({"ADDRESS": value}) == ({"ADDRESS": value} if is_kept else {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HF_TOKEN=abc", "HF_TOKEN=***"),
        ("env: A=1 HF_TOKEN: abc, B=2", "env: A=1 HF_TOKEN: ***, B=2"),
        ("args: {'api_key': ['k1', 'k2'], 'port': 1}", "args: {'api_key': ***, 'port': 1}"),
        ('{"api-key": "a b", "model": "m"}', '{"api-key": ***, "model": "m"}'),
        ("vllm serve --api-key abc --port 1", "vllm serve --api-key *** --port 1"),
        ("vllm serve --api-key=abc m", "vllm serve --api-key=*** m"),
        ("sh -c 'X=1 vllm --hf-token abc'", "sh -c 'X=1 vllm --hf-token ***'"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("curl -H 'authorization: abcdefgh'", "curl -H 'authorization: ***'"),
        ("GET /?token=abc&x=1", "GET /?token=***&x=1"),
        ("env=HF_TOKEN=abc", "env=HF_TOKEN=***"),
        ("postgres://ana:secret@db/x", "postgres://***@db/x"),
        ("loaded with " + "hf_" + "a1" * 17, "loaded with ***"),
        ("password: hunter2", "password: ***"),
        ("https://b.example/m?sv=1&sig=a%2Fb&se=2", "https://b.example/m?sv=1&sig=***&se=2"),
        ("curl 'https://b/m?X-Amz-Signature=ab12'", "curl 'https://b/m?X-Amz-Signature=***'"),
    ],
)
def test_secrets_in_a_text_are_hidden(text: str, expected: str) -> None:
    assert hide_secrets(text) == expected
    assert hide_secrets(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: no kernel image is available",
        "KeyError: 'lm_head.weight'",
        "Missing key: lm_head.weight",
        "token: 5, eos_token='</s>', pad_token_id=0, token_ids=[1, 2]",
        "api_key=None, tokenizer='m', --api-key --port 1",
        "couldn't find key api-key in Secret tuneline/tuneline-api-key",
        'User "u" cannot list resource "secrets" in the namespace "n"',
    ],
)
def test_other_words_of_a_log_are_kept(text: str) -> None:
    assert hide_secrets(text) == text


@pytest.mark.parametrize("text", ["a" * 200_000, "a-" * 100_000, "'" * 200_000, 'key="' * 20_000])
def test_a_long_line_is_read_in_linear_time(text: str) -> None:
    begun_s = time.process_time()
    hide_secrets(text)
    assert time.process_time() - begun_s < 5


def test_the_values_of_secret_options_are_hidden() -> None:
    words = ["serve", "--api-key", "a", "b", "--port", "8", "--hf-token=z", "-c", "--api-key q"]
    expected = "serve --api-key *** *** --port 8 --hf-token=*** -c --api-key ***"
    assert " ".join(hide_flags(words)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n  no route to https://me:word@host/x  \nmore", "no route to https://***@host/x"),
        ("", "OSError"),
        ("x" * 400, "x" * 300),
    ],
)
def test_the_first_line_of_an_error_has_no_password(text: str, expected: str) -> None:
    assert first_line(OSError(text)) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("aws s3 cp --recursive s3://models/tickets /model", False),
        ("hf download --token abc123 org/name --local-dir /model", True),
        ("hf download --token $(HF_TOKEN) org/name --local-dir /model", False),
        ("hf download --token=$(HF_TOKEN) org/name --local-dir /model", False),
        ("hf download --token=abc123 org/name --local-dir /model", True),
        ("rclone copy --s3-access-key-id AKIA0000000000000000 r:models /model", True),
    ],
)
def test_a_command_may_name_the_variable_of_a_secret(command: str, expected: bool) -> None:
    assert has_secrets(command.split()) is expected
    assert has_secrets(["sh", "-c", command.replace("$(HF_TOKEN)", '"${HF_TOKEN}"')]) is expected
