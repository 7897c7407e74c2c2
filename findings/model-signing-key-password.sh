#!/usr/bin/env bash
# model-signing 1.1.1 takes the password of a key as text, and then refuses text.
#
# `use_elliptic_key_signer(private_key=..., password=...)` declares the password as `str`. It hands
# it to a function of the package cryptography that takes bytes, so every encrypted key ends in a
# TypeError. Bytes work, against the declared type.
#
# Seen: password as str: TypeError; as bytes: signed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet model-signing==1.1.1 pyopenssl==26.4.0
cd "$work"
mkdir model
echo '{}' >model/config.json
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:hunter2 \
  -out key.pem
"$work/env/bin/python" - <<'PYTHON'
import inspect
from pathlib import Path

from model_signing import signing

declared = inspect.signature(signing.Config.use_elliptic_key_signer).parameters["password"]
assert "str" in str(declared.annotation), declared


def sign(password: object) -> str:
    try:
        config = signing.Config().use_elliptic_key_signer(private_key="key.pem", password=password)
        config.sign("model", "model.sig")
    except TypeError as error:
        return f"TypeError: {str(error).splitlines()[0]}"
    return "signed" if Path("model.sig").stat().st_size else "nothing"


as_text, as_bytes = sign("hunter2"), sign(b"hunter2")
print(f"password as str: {as_text}; as bytes: {as_bytes}")
assert as_text.startswith("TypeError") and as_bytes == "signed", "the behaviour has changed"
PYTHON
