"""The release of a distillation: its teacher is one more model that the released one is made of."""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.release.line import FinishedLine, rewrite, verify, write_line
from tuneline.core.release import STATEMENT_FILE, read_release
from tuneline.models.source import embedded_base, folder_digest

METHOD = {"type": "distillation", "teacher_model_name_or_path": "teacher"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    folder = tmp_path_factory.mktemp("line")
    teacher = Path(shutil.copytree(embedded_base(), folder / "teacher"))
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    card = (teacher / "README.md").read_text()
    (teacher / "README.md").write_text(card.replace("license: apache-2.0", "license: mit"))
    return write_line(folder, config={"training": {"method": METHOD}})


@pytest.fixture(scope="module")
def released(line: FinishedLine) -> Path:
    return line.released()


def test_a_release_with_a_teacher_is_verified(line: FinishedLine, released: Path) -> None:
    adapter = json.loads((line.artifact("adapter") / "manifest.json").read_text())
    assert "teacher" in {entry["role"] for entry in adapter["inputs"]}
    done = verify(released)
    assert (done.returncode, "ok  chain" in done.stdout) == (0, True), done.stderr


def test_each_file_of_a_release_names_the_teacher(line: FinishedLine, released: Path) -> None:
    digest = folder_digest(line.run.path.parent / "teacher")
    teacher = read_release(released).teacher
    assert teacher is not None
    assert (teacher.id, teacher.digest, teacher.license) == ("teacher", digest, "MIT")
    components = json.loads((released / "bom.json").read_text())["components"]
    (found,) = [one for one in components if one["bom-ref"] == "teacher"]
    assert found["hashes"] == [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    assert found["licenses"] == [{"license": {"id": "MIT"}}]
    card = (released / "README.md").read_text()
    assert f"| teacher | teacher `{digest[7:19]}`, licence MIT |" in card
    assert "| method | distillation, LoRA r 16, alpha 32, targets all-linear |" in card
    page = (released / "report.md").read_text()
    assert f"| teacher | teacher `{digest[7:19]}`, licence MIT |" in page
    assert digest in page


def test_a_release_that_hides_its_teacher_is_refused(line: FinishedLine, released: Path) -> None:
    copy = released.with_name("hidden")
    shutil.copytree(released, copy)
    for name in ("release.json", STATEMENT_FILE):
        rewrite(copy, name, _without_teacher)
    done = verify(copy)
    assert done.returncode == 3
    assert "adapter was made from teacher" in done.stderr
    shutil.rmtree(copy)


def _without_teacher(text: str) -> str:
    document = json.loads(text)
    document.get("predicate", document)["teacher"] = None
    return json.dumps(document)


def test_a_release_of_an_earlier_tuneline_has_a_statement_with_fewer_keys(
    tmp_path: Path,
) -> None:
    released = write_line(tmp_path).released()

    def without_key(text: str) -> str:
        document = json.loads(text)
        assert document["predicate"].pop("teacher", "") is None
        return json.dumps(document)

    rewrite(released, STATEMENT_FILE, without_key)
    done = verify(released)
    assert (done.returncode, "ok  chain" in done.stdout) == (0, True), done.stderr
