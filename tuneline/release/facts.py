"""The facts of a release that no gate judges: model, base, data, chain, and how to reproduce it."""

from __future__ import annotations

import shlex

from training.config.method import DistillationConfig
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ArtifactError
from tuneline.core.files import MANIFEST, file_sha256
from tuneline.core.release import (
    Base,
    Data,
    Link,
    Previous,
    ReleasedModel,
    Reproduce,
)
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.source import ModelSource, computed_dtype, is_of_hub
from tuneline.pipeline.server import model_source, served_stage, serves_adapter
from tuneline.pipeline.stage import DATASET
from tuneline.release.licenses import (
    License,
    base_license,
    data_license,
    data_paths,
    teacher_license,
)
from tuneline.release.proofs import Proofs


def released_model(proofs: Proofs) -> ReleasedModel:
    """Return the artifact that is served.

    Raises:
        ArtifactError: It is not made, so there is nothing to release.
    """
    artifact, config = proofs.served, proofs.run.config
    stage = served_stage(config)
    if artifact is None:
        raise ArtifactError(
            f"{proofs.run.path}: stage {stage}: {proofs.problems.get(stage, 'not made yet')}; "
            "expected a whole artifact to release",
            hint=proofs.up,
        )
    adapter = serves_adapter(config)
    return ReleasedModel(
        stage=stage,
        form="adapter" if adapter else "merged",
        kind=artifact.kind,
        digest=artifact.digest,
        directory=artifact.path.name,
        size_bytes=artifact.size_bytes,
        served_name=config.name,
        weights=_weights(proofs.base if adapter else model_source(artifact)),
        files=artifact.manifest.files,
        engine=proofs.measured_engine,
    )


def base_of(proofs: Proofs) -> Base:
    """Return the base model with its licence."""
    config = proofs.run.config
    found = base_license(proofs.run, proofs.base.path)
    return _made_from(proofs.base, config.base_model, config.base_revision, found)


def teacher_of(proofs: Proofs) -> Base | None:
    """Return the teacher of a distillation with its licence; None for another method."""
    method = proofs.run.config.training.method
    if not isinstance(method, DistillationConfig):
        return None
    (model,) = method.models(proofs.run.path.parent)
    name, revision = method.teacher_model_name_or_path, method.teacher_model_revision
    return _made_from(model, name, revision, teacher_license(proofs.run))


def _made_from(model: ModelSource, name: str, revision: str | None, found: License | None) -> Base:
    return Base(
        id=name,
        revision=revision,
        digest=model.digest,
        license=None if found is None else found.name,
        license_source="" if found is None else found.source,
        hub_id=name if is_of_hub(model) else None,
    )


def data_of(proofs: Proofs) -> Data:
    """Return the data with its licence.

    Raises:
        ArtifactError: The dataset is not made.
    """
    dataset = proofs.made.get(DATASET)
    if dataset is None:
        raise ArtifactError(
            f"{proofs.run.path}: stage {DATASET}: {proofs.problems.get(DATASET)}", hint=proofs.up
        )
    sha256 = {entry.path: entry.sha256 for entry in dataset.manifest.files}
    metrics = dataset.manifest.metrics
    found = data_license(proofs.run)
    return Data(
        paths=data_paths(proofs.run),
        inputs=dataset.manifest.inputs,
        digest=dataset.digest,
        num_train=metrics["num_train"],
        num_heldout=metrics["num_heldout"],
        train_sha256=sha256[TRAIN_FILE],
        heldout_sha256=sha256[HELDOUT_FILE],
        license=None if found is None else found.name,
        license_source="" if found is None else found.source,
    )


def chain_of(proofs: Proofs) -> list[Link]:
    """Return the artifacts in the order of their stages."""
    return [
        Link(
            stage=stage.name,
            title=stage.title,
            kind=artifact.kind,
            digest=artifact.digest,
            directory=artifact.path.name,
            manifest_sha256=file_sha256(artifact.path / MANIFEST),
            inputs=artifact.manifest.inputs,
            size_bytes=artifact.size_bytes,
            num_files=len(artifact.manifest.files),
            created_at=artifact.manifest.created_at,
        )
        for stage in proofs.stages
        if (artifact := proofs.made.get(stage.name)) is not None
    ]


def reproduce(proofs: Proofs) -> Reproduce:
    """Return the command and the environment that made the served model."""
    facts = environment_facts() if proofs.served is None else proofs.served.manifest.environment
    options = [part for override in proofs.run.overrides for part in ("--set", override)]
    return Reproduce(
        command=shlex.join(["tuneline", "up", proofs.run.path.name, *options]),
        python=facts["python"],
        git_commit=facts["git_commit"],
        libraries=facts["libraries"],
        hardware=facts["hardware"],
    )


def previous_of(proofs: Proofs) -> Previous | None:
    """Return the earlier release."""
    if proofs.earlier is None:
        return None
    release = proofs.earlier.release
    return Previous(
        name=release.name,
        digest=proofs.earlier.artifact.digest,
        model_digest=release.model.digest,
        created_at=release.created_at,
    )


def _weights(model: ModelSource) -> str:
    """Return the number format of a model's weights."""
    if read_json(model.path / CONFIG).get("quantization_config"):
        from export import weights_of_folder

        return weights_of_folder(model.path)
    return computed_dtype("auto", model)  # without torch, which takes seconds to import
