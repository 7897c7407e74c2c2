"""The bill of materials: CycloneDX 1.7, by cyclonedx-python-lib, checked against its schema.

The library knows neither a model's card nor the key `data` of a data set, so both are added to the
document that it writes (findings/cyclonedx-drops-model-card.sh).
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tuneline.core.digests import short_digest
from tuneline.core.environment import require
from tuneline.core.errors import ArtifactError
from tuneline.core.release import Figure, Release

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

MODEL, BASE, TEACHER = "model", "base-model", "teacher"
TRAIN, HELDOUT = "training-rows", "heldout-rows"
FIGURES = ("evaluation.tuned.", "evaluation.served.", "parity.served.")


def bom_text(release: Release) -> str:
    """Return the text of `bom.json`.

    Raises:
        MissingError: cyclonedx-python-lib is not installed.
        ArtifactError: The document does not fit the schema: a bug of ours.
    """
    require("cyclonedx", "release")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    document = json.loads(_written(release))
    for component in [document["metadata"]["component"], *document["components"]]:
        added = _added(release, component["bom-ref"])
        component.update(added)
    text = json.dumps(document, indent=2) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    if problem is not None:
        raise ArtifactError(f"bom.json does not fit the schema of CycloneDX 1.7: {problem}")
    return text


def _written(release: Release) -> str:
    """Return what the library writes: components, hashes, licences and dependencies."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot7
    from packageurl import PackageURL

    def component(
        ref: str, kind: ComponentType, name: str, sha256: str, license: str | None, version: str
    ) -> Component:
        return Component(
            bom_ref=ref, type=kind, name=name, version=version,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256.removeprefix("sha256:"))],
            licenses=_licenses(license),
        )  # fmt: skip

    model_type, data_type = ComponentType.MACHINE_LEARNING_MODEL, ComponentType.DATA
    model, base, data = release.model, release.base, release.data
    root = component(
        MODEL, model_type, release.name, model.digest, base.license, short_digest(model.digest)
    )
    files = {
        Component(
            bom_ref=f"file/{entry.path}", type=ComponentType.FILE, name=entry.path,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
        )
        for entry in model.files
    }  # fmt: skip
    models = {BASE: base} | ({} if release.teacher is None else {TEACHER: release.teacher})
    made_from = [
        *(
            component(ref, model_type, one.id, one.digest, one.license, one.revision or "unknown")
            for ref, one in models.items()
        ),
        component(TRAIN, data_type, "training rows", data.train_sha256, data.license, "1"),
        component(HELDOUT, data_type, "held-out rows", data.heldout_sha256, data.license, "1"),
    ]
    libraries = [
        Component(
            bom_ref=f"pkg/{name}", type=ComponentType.LIBRARY, name=name, version=version,
            purl=PackageURL("pypi", None, name.lower(), version),
        )
        for name, version in release.reproduce.libraries.items()
    ]  # fmt: skip
    bom = Bom(components=[*made_from, *files, *libraries])
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.fromisoformat(release.created_at)
    bom.metadata.tools.components.add(
        Component(
            bom_ref="tool/tuneline", type=ComponentType.APPLICATION, name="tuneline",
            version=release.tuneline_version,
        )
    )  # fmt: skip
    # Equal releases have equal bills.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{model.digest} {release.created_at}")
    bom.register_dependency(root, [*made_from, *files, *libraries])
    return str(JsonV1Dot7(bom).output_as_string())


def _licenses(name: str | None) -> list[Any]:
    if name is None:
        return []
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(name)]


def _added(release: Release, ref: str) -> dict[str, Any]:
    """Return the keys of a component that the library does not know."""
    if ref == MODEL:
        return {"modelCard": _model_card(release)}
    if ref in (TRAIN, HELDOUT):
        rows = release.data.num_train if ref == TRAIN else release.data.num_heldout
        sources = ", ".join(release.data.paths)
        return {"data": [{"type": "dataset", "name": f"{rows} rows from {sources}"}]}
    return {}


def _model_card(release: Release) -> dict[str, Any]:
    figures = [
        figure
        for figure in release.figures
        if figure.name.startswith(FIGURES) and figure.value is not None
    ]
    return {
        "modelParameters": {
            "task": release.task,
            "datasets": [{"ref": TRAIN}, {"ref": HELDOUT}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": release.gives}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [_metric(figure) for figure in figures]},
        "properties": [
            {"name": "tuneline:verdict", "value": str(release.verdict)},
            {"name": "tuneline:weights", "value": release.model.weights},
            *(
                {"name": f"tuneline:gate:{gate.name}", "value": str(gate.outcome)}
                for gate in release.gates
            ),
            *(
                {"name": f"tuneline:waiver:{waiver.said}", "value": waiver.why}
                for waiver in release.waivers
            ),
        ],
    }


def _metric(figure: Figure) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": figure.name, "value": f"{figure.value:.6g}"}
    if figure.interval is not None and None not in figure.interval:
        low, high = figure.interval
        metric["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
    return metric
