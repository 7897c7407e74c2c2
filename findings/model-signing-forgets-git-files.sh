#!/usr/bin/env bash
# model-signing 1.1.1 signs git files on request, and then reports them as missing.
#
# `set_ignored_paths(ignore_git_paths=False)` puts .gitattributes into the signature. The signature
# records which paths are ignored, and not this choice. The default verifier reads its settings from
# the signature, leaves git files out, and calls the untouched model incomplete. A folder of the
# Hugging Face Hub holds such a file.
#
# Seen: an untouched model: Signature mismatch: ["Missing files in model 'model': .gitattributes"];
# with the same hashing settings given to the verifier: verified.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet model-signing==1.1.1 pyopenssl==26.4.0
cd "$work"
mkdir model
echo '{}' >model/config.json
echo '*.safetensors filter=lfs' >model/.gitattributes
openssl ecparam -genkey -name prime256v1 -noout -out key.pem
openssl ec -in key.pem -pubout -out key.pub 2>/dev/null
"$work/env/bin/python" - <<'PYTHON'
from model_signing import hashing, signing, verifying

whole = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
signer = signing.Config().set_hashing_config(whole).use_elliptic_key_signer(private_key="key.pem")
signer.sign("model", "model.sig")


def verify(config: verifying.Config) -> str:
    try:
        config.use_elliptic_key_verifier(public_key="key.pub").verify("model", "model.sig")
    except ValueError as error:
        return str(error)
    return "verified"


default = verify(verifying.Config())
same = verify(verifying.Config().set_hashing_config(whole))
print(f"an untouched model: {default}; with the same hashing settings: {same}")
assert "Missing files in model 'model': .gitattributes" in default, "the behaviour has changed"
assert same == "verified", "the behaviour has changed"
PYTHON
