"""`tuneline verify` of releases: content, chain, model and signature."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.release.keys import write_key
from tests.integration.release.line import Answers, FinishedLine, rewrite, verify, write_line
from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.files import file_sha256
from tuneline.core.release import read_release


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        write_key(folder, name)
    return folder


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    return write_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def signed(line: FinishedLine, keys: Path) -> Path:
    return line.released("--sign-key", str(keys / "own.pem"))


@pytest.fixture
def shipped(line: FinishedLine, signed: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the release and of the model, without the run."""
    release = shutil.copytree(signed, tmp_path / "release")
    model = shutil.copytree(line.artifact("model"), tmp_path / "served-model")
    return Path(release), Path(model)


def test_a_signed_release_verifies_with_its_run(signed: Path, keys: Path) -> None:
    done = verify(signed, "--key", keys / "own.pub", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_artifacts_compared"] == 11
    assert found["verdict"] == "PASS"
    assert found["signed_by"] == f"the key {keys / 'own.pub'}"
    assert found["not_checked"] == []
    assert verify(signed, "--key", keys / "own.pub").stdout.endswith("verdict PASS\n")


def test_a_shipped_release_verifies_without_its_run(shipped: tuple[Path, Path], keys: Path) -> None:
    release, model = shipped
    done = verify(release, "--key", keys / "own.pub", "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_artifacts_compared"] == 0
    assert found["model_dir"] == str(model)
    assert found["not_checked"] == ["artifacts"]
    done = verify(release)
    assert done.returncode == 0
    assert "--  artifacts: none of 11 is here" in done.stdout
    assert "--  model: not here; give a copy of it with --model DIR" in done.stdout
    assert "--  signature: give the key that you trust" in done.stdout
    assert "release.json says PASS; not checked: artifacts, model, signature" in done.stdout
    assert "verdict PASS" not in done.stdout
    done = verify(release, "--key", keys / "own.pub")
    assert "ok  signature: the release is signed by" in done.stdout
    assert "--  signature of the model: the model is not here" in done.stdout


def test_model_signing_itself_accepts_the_signature(shipped: tuple[Path, Path], keys: Path) -> None:
    from model_signing import verifying

    release, model = shipped
    config: Any = verifying.Config  # its functions have no types
    config = config().use_elliptic_key_verifier(public_key=keys / "own.pub")
    config.verify(model, release / "model.sig")
    (model / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'config\.json'"):
        config.verify(model, release / "model.sig")


def test_a_wrong_key_is_refused(shipped: tuple[Path, Path], keys: Path) -> None:
    release, model = shipped
    done = verify(release, "--key", keys / "other.pub", "--model", model)
    assert done.returncode == 3
    assert f"release.sig: is not a signature by the key {keys / 'other.pub'}" in done.stderr


def test_an_unsigned_release_is_refused_where_a_key_is_given(
    line: FinishedLine, keys: Path
) -> None:
    done = verify(line.released(), "--key", keys / "own.pub")
    assert done.returncode == 3
    assert "release.sig: no such file: the release is not signed" in done.stderr
    assert "--sign-key KEY.pem" in done.stderr


def _change(folder: Path, name: str) -> str:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    return f"{name}: sha256 "


def _add(folder: Path, _: str) -> str:
    (folder / "notes.txt").write_text("hello")
    return "notes.txt: not in the manifest"


def _remove(folder: Path, name: str) -> str:
    (folder / name).unlink()
    return f"{name}: missing"


def _rename(folder: Path, name: str) -> str:
    (folder / name).rename(folder / "renamed")
    return f"{name}: renamed to renamed"


@pytest.mark.parametrize("damage", [_change, _add, _remove, _rename])
@pytest.mark.parametrize("part", ["release", "model"])
def test_a_changed_added_removed_or_renamed_file_is_named(
    shipped: tuple[Path, Path], keys: Path, part: str, damage: Callable[[Path, str], str]
) -> None:
    release, model = shipped
    folder, name = (release, "README.md") if part == "release" else (model, "tokenizer_config.json")
    words = damage(folder, name)
    done = verify(release, "--model", model)
    assert done.returncode == 3
    assert words in done.stderr
    assert verify(release, "--key", keys / "own.pub", "--model", model).returncode == 3


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("release.json", '"required": "', '"required": "not ', "statement.json: is about"),
        ("release.json", '"outcome": "passed"', '"outcome": "waived"', "the waivers are not those"),
        (
            "release.json",
            '"outcome": "passed"',
            '"outcome": "failed"',
            "the verdict PASS contradic",
        ),
        ("bom.json", '"content": "', '"content": "0', "bom.json: is about another model"),
        ("release.json", '"verdict":', '"verdict": "FAIL", "verdict":', "key 'verdict' appears"),
        ("statement.json", '"subject":', '"subject": [], "subject":', "key 'subject' appears"),
        ("bom.json", '"components":', '"components": [], "components":', "key 'components' appea"),
        ("README.md", "Verdict", "verdict", ""),
    ],
)
def test_a_change_with_a_manifest_that_fits_it_is_found(
    shipped: tuple[Path, Path], keys: Path, name: str, old: str, new: str, words: str
) -> None:
    release, _ = shipped
    rewrite(release, name, lambda text: text.replace(old, new))
    done = verify(release)
    assert done.returncode == (3 if words else 0)
    assert words in done.stderr
    done = verify(release, "--key", keys / "own.pub")
    assert done.returncode == 3
    assert words in done.stderr or f"Hash mismatch for '{name}'" in done.stderr


def test_another_signature_in_place_of_the_own_is_refused(
    shipped: tuple[Path, Path], keys: Path
) -> None:
    release, model = shipped
    rewrite(release, "release.sig", lambda _: (release / "model.sig").read_text())
    done = verify(release, "--key", keys / "own.pub", "--model", model)
    assert done.returncode == 3
    assert "differs from the signed files" in done.stderr


def test_a_signature_with_a_key_that_appears_twice_is_refused(
    shipped: tuple[Path, Path], keys: Path
) -> None:
    release, model = shipped
    signature = release / "model.sig"
    text = signature.read_text()
    twice = '{"dsseEnvelope": {},' + text[1:]
    assert json.loads(twice) == json.loads(text)
    signature.write_text(twice)
    done = verify(model, "--signature", signature, "--key", keys / "own.pub")
    assert done.returncode == 3
    assert "the key 'dsseEnvelope' appears twice" in done.stderr


def test_a_single_file_of_a_release_is_not_called_a_pass(
    shipped: tuple[Path, Path], tmp_path: Path
) -> None:
    release, _ = shipped
    lone = tmp_path / "ci" / "release.json"
    lone.parent.mkdir()
    shutil.copy(release / "release.json", lone)
    done = verify(lone)
    assert done.returncode == 3
    assert "is one file of a release, and nothing in it was checked" in done.stderr
    assert "PASS" not in done.stdout + done.stderr
    assert verify(release / "release.json").returncode == 0  # with the rest of it


def test_a_pod_that_has_only_the_model_checks_its_signature(
    shipped: tuple[Path, Path], keys: Path
) -> None:
    release, model = shipped
    options = ["--signature", release / "model.sig", "--key", keys / "own.pub"]
    done = verify(model, *options)
    assert done.returncode == 0, done.stderr
    assert "ok  signature: signed by the key" in done.stdout
    assert "--  digest: not compared" in done.stdout
    assert "--  release: not here" in done.stdout
    assert "PASS" not in done.stdout
    digest = read_release(release / "release.json").model.digest
    found = json.loads(verify(model, *options, "--digest", digest, "--json").stdout)
    assert found["not_checked"] == ["release"]
    other = verify(model, *options[:2], "--key", keys / "other.pub")
    assert other.returncode == 3
    assert "model.sig: is not a signature by the key" in other.stderr
    done = verify(model, *options[:2])
    assert done.returncode == 2
    assert "--signature: says nothing without the key that you trust" in done.stderr
    rewrite(model, "config.json", lambda text: text.replace("{", "{ ", 1), "model")
    assert verify(model).returncode == 0  # by its own manifest
    done = verify(model, *options)
    assert done.returncode == 3
    assert "differs from the signed files" in done.stderr


def test_a_git_file_that_is_put_into_a_release_is_found(
    shipped: tuple[Path, Path], keys: Path
) -> None:
    release, _ = shipped
    rewrite(release, ".gitignore", lambda _: "*")
    done = verify(release, "--key", keys / "own.pub")
    assert done.returncode == 3
    assert "holds .gitignore, which no signature covers" in done.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mediaType": 1}', "\x00"])
def test_a_signature_that_cannot_be_read_is_refused(
    shipped: tuple[Path, Path], keys: Path, text: str
) -> None:
    release, _ = shipped
    rewrite(release, "release.sig", lambda _: text)
    done = verify(release, "--key", keys / "own.pub")
    assert done.returncode == 3
    assert "release.sig: is not a signature by" in done.stderr


def test_an_artifact_changed_after_the_release_is_found(line: FinishedLine, tmp_path: Path) -> None:
    own = write_line(tmp_path)
    release = own.released()
    manifest = own.artifact("loadtest") / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "metrics": {"verdict": "PASS", "better": 1}}))
    done = verify(release)
    assert done.returncode == 3
    assert f"{manifest.parent.name}/manifest.json: was changed after the release" in done.stderr
    (own.artifact("reference") / "reference.jsonl").write_text("")
    assert "reference.jsonl: sha256" in verify(release).stderr


def test_a_failed_release_is_whole_and_exits_with_6(tmp_path: Path) -> None:
    line = write_line(tmp_path, Answers(parity_noise=0.5))
    assert line.release().returncode == 6
    (release,) = line.run.dir.glob("release-*")
    done = verify(release)
    assert done.returncode == 6
    assert "release.json says FAIL; not checked: signature" in done.stdout
    assert "FAIL: parity-served; expected a release that passes" in done.stderr


@pytest.mark.parametrize("name", ["statement.json", "release.json", "bom.json"])
def test_a_release_that_never_had_a_file_is_refused(shipped: tuple[Path, Path], name: str) -> None:
    """The manifest fits the files, so only their absence speaks."""
    release, _ = shipped
    before = open_artifact(release)
    old = release.rename(release.with_name("old"))
    (old / "manifest.json").unlink()
    (old / name).unlink()
    with new_artifact(release, "release", config={}, inputs=before.manifest.inputs) as draft:
        shutil.copytree(old, draft.dir, dirs_exist_ok=True)
    done = verify(release)
    assert done.returncode == 3
    assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", ["../elsewhere", ".."])
def test_a_symbolic_link_in_a_release_is_named(shipped: tuple[Path, Path], target: str) -> None:
    release, _ = shipped
    (release / "extra").symlink_to(target)
    done = verify(release)
    assert done.returncode == 3
    assert "extra: is a symbolic link" in done.stderr


def test_a_link_to_a_signed_model_is_followed_and_one_inside_is_named(
    shipped: tuple[Path, Path], keys: Path
) -> None:
    release, model = shipped
    linked = model.with_name("current")
    linked.symlink_to(model.name)
    options = ["--key", keys / "own.pub", "--model", linked]
    done = verify(release, *options)
    assert done.returncode == 0, done.stderr
    weights = model / "model.safetensors"
    weights.rename(model.with_name("blob"))
    weights.symlink_to("../blob")
    done = verify(release, *options)
    assert done.returncode == 3
    assert "is a symbolic link" in done.stderr or "holds a symbolic link" in done.stderr
    assert "another key" not in done.stderr and "is not a signature by" not in done.stderr


def test_a_waiver_is_said_by_verify(tmp_path: Path) -> None:
    line = write_line(tmp_path, Answers(parity_noise=0.5))
    release = line.released(*line.waiving("parity-served", "known rounding"))
    said = verify(release).stdout
    assert "waived parity-served:served/max_logprob_difference: known rounding" in said
    assert "release.json says PASS, waived: parity-served; not checked: signature" in said
    assert "Verdict: **PASS, waived: parity-served**." in (release / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--key", "absent.pub"], "--key absent.pub: cannot be read"),
        (["--identity", "me@example.com"], "--identity: needs the issuer"),
        (["--issuer", "https://id.example.com"], "--issuer: goes with the identity that it"),
        (["--key", "k", "--identity", "i"], "expected one of --key, --certificate and --identity"),
    ],
)
def test_wrong_options_of_trust_are_refused(signed: Path, options: list[str], message: str) -> None:
    done = verify(signed, *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_options_of_a_release_have_no_meaning_for_other_artifacts(
    line: FinishedLine, keys: Path
) -> None:
    done = verify(line.artifact("model"), "--key", keys / "own.pub")
    assert done.returncode == 2
    assert "--key: has no meaning without a release" in done.stderr


def test_a_model_of_another_release_is_refused(
    shipped: tuple[Path, Path], line: FinishedLine
) -> None:
    release, model = shipped
    assert file_sha256(model / "config.json")
    done = verify(release, "--model", line.artifact("adapter"))
    assert done.returncode == 3
    assert "is not the released model" in done.stderr
    assert "model.safetensors: missing" in done.stderr
    done = verify(release, "--model", model / "absent")
    assert done.returncode == 3
    assert "no such directory" in done.stderr
