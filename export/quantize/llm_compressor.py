"""Quantization with calibration: GPTQ and AWQ choose the codes that change the model's activations
on sample conversations least.

llm-compressor computes the codes, in an environment of its own. Tuneline takes its result only if
it has, tensor for tensor, the names, formats and shapes that the scheme stores of this model.
Tuneline writes the configuration and the companion files, as for any other quantized model.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from export.config import CalibratedConfig
from export.forms import CalibrationData
from export.quantize.llm_compressor_environment import PINS, calibration_python
from export.quantize.quantize import plan_quantized
from export.quantize.schemes import quantization_config
from export.weights.model_folder import read_base
from export.weights.tensor_file import (
    TORCH_DTYPES,
    Stored,
    TensorFile,
    is_finite,
    read_tensor,
    read_tensor_file,
)
from export.weights.writer import require_free
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError, DataError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger, progress
from tuneline.core.secrets import without_secrets
from tuneline.models.chat import conversation_token_ids
from tuneline.models.companion_files import check_companions, copy_companions
from tuneline.models.folder import CONFIG, INDEX, write_json
from tuneline.models.source import ModelSource
from tuneline.models.tokenizer import load_tokenizer

WORKER = Path(__file__).with_name("llm_compressor_worker.py")
IN_DECODER_LAYERS = r"re:.*\.layers\.\d+\..*"
STEP = re.compile(r"\((\d+)/(\d+)\): (Calibrating|Propagating)")
BLOCK_BYTES = 2**24
RENAMED = ("mixtral",)
"""Families whose experts have other names in the files that llm-compressor 0.14 writes."""


def quantize_calibrated(
    config: CalibratedConfig,
    model: ModelSource,
    out: Path,
    data: CalibrationData,
) -> Artifact:
    """Quantize a model folder by GPTQ or AWQ and write another.

    Args:
        data: Conversations such as the model's training rows; a fixed seed draws
            `config.num_calibration_samples` of them.

    Returns:
        An artifact of kind `model`, like that of `quantize_model`.

    Raises:
        MissingError: llm-compressor's environment is not installed, or the model does not exist.
        ArtifactError: The model is corrupt, quantized already or a Mixtral, or llm-compressor
            fails, or writes other tensors than this scheme stores.
        DataError: No conversation is given, or the model's chat template refuses one.
        DiskFullError: The disk has too little space for the result.
    """
    opened = read_base(model.path)
    files, schemes, ignore = plan_quantized(opened, config.scheme, config.group_size)
    if opened.config.get("model_type") in RENAMED:
        raise ArtifactError(
            f"{model.path}: llm-compressor stores the experts of a {opened.config['model_type']} "
            "under names that the model itself does not have",
            hint="Try: leave out --method",
        )
    check_companions(model.path, model.path)
    python = calibration_python()
    total_bytes = sum(file.size_bytes for file in files)
    require_free(out, total_bytes)
    samples = _samples(config, model, data.conversations)
    said = quantization_config(next(iter(schemes.values())), ignore)
    with (
        new_artifact(
            out, "model", config=config.model_dump(), inputs=[model.as_input("model"), data.source]
        ) as draft,
        tempfile.TemporaryDirectory(prefix="work-", dir=draft.dir) as folder,
    ):
        work = Path(folder)
        _write_job(work, config, model, samples, said)
        _run_worker(python, work, f"{config.method} of {model.name}")
        expected = {
            entry.name: (entry.dtype, entry.shape)
            for file in files
            for output in file.outputs
            for entry in output.written
        }
        made = _checked(work / "model", expected, config.method)
        if config.method == "gptq":
            outputs = [output for file in files for output in file.outputs if not output.scheme]
            _restore(made, {output.written[0].name: output.source for output in outputs})
        _take(work / "model", made, draft.dir)
        write_json(draft.dir / CONFIG, {**opened.config, "quantization_config": said})
        copy_companions(model.path, model.path, draft.dir)
        draft.metrics.update(
            num_tensors=len(opened.tensors), num_quantized_tensors=len(schemes),
            size_bytes=total_bytes, quantized_with=_versions(), num_samples=len(samples),
            num_sample_tokens=sum(map(len, samples)),
        )  # fmt: skip
    return open_artifact(out, kind="model")


def _write_job(
    work: Path,
    config: CalibratedConfig,
    model: ModelSource,
    samples: list[list[int]],
    said: dict[str, Any],
) -> None:
    """Write the job and the samples for the worker; `said` is the result's quantization_config."""
    group = {**said["config_groups"]["group_0"], "targets": [IN_DECODER_LAYERS]}
    del group["format"]  # llm-compressor chooses the format, and `_take` checks what it stores
    (work / "samples.jsonl").write_text("".join(f"{ids}\n" for ids in samples), "utf-8")
    job = {
        "model": str(model.path.resolve()),
        "out": str(work.resolve() / "model"),
        "samples": str(work.resolve() / "samples.jsonl"),
        "method": config.method,
        "group": group,
        "ignore": said["ignore"],
    }
    write_json(work / "job.json", job)


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that computed the codes, in the other environment."""
    pins = dict(line.split("==") for line in PINS.read_text("utf-8").split() if "==" in line)
    return {name: pins[name] for name in ("llmcompressor", "compressed-tensors", "transformers")}


def _samples(
    config: CalibratedConfig, model: ModelSource, conversations: Sequence[Messages]
) -> list[list[int]]:
    """Return conversations as token ids, by the model's own template, cut at `max_seq_length`."""
    import jinja2

    tokenizer = load_tokenizer(model.path)
    if not tokenizer.chat_template:
        raise ArtifactError(f"{model.path}: the tokenizer has no chat template")
    if not conversations:
        raise DataError("calibration: no conversation is given; expected at least 1")
    count = min(config.num_calibration_samples, len(conversations))
    drawn = random.Random(0).sample(list(conversations), count)
    try:
        samples = [conversation_token_ids(tokenizer, messages) for messages in drawn]
    except jinja2.TemplateError as error:
        raise DataError(
            f"calibration: the chat template of {model.name} refuses a conversation: {error}"
        ) from None
    return [ids[: config.max_seq_length] for ids in samples]


def _run_worker(python: Path, work: Path, label: str) -> None:
    """Run llm-compressor to its end and show the number of the model's layer that it works on.

    Raises:
        ArtifactError: llm-compressor failed; the message has the last line that it printed.
    """
    environment = without_secrets(os.environ)
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # The layer is read from its progress bars, which training in this process has turned off.
    environment.pop("TQDM_DISABLE", None)
    # -I: Python loads no module from this directory or from PYTHONPATH.
    command = [str(python), "-I", str(WORKER), str(work / "job.json")]
    last: deque[str] = deque(maxlen=20)
    with (
        subprocess.Popen(
            command, env=environment, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as worker,
        progress(label, unit="layers") as advance,
    ):
        assert worker.stdout is not None  # noqa: S101 (it was asked for)
        try:
            for line in _lines(worker.stdout):
                logger.debug("%s", line)
                if found := STEP.match(line):
                    advance(int(found[1]), f"of {found[2]}")
                else:
                    last.append(line)
        except BaseException:  # Ctrl-C, too, must not leave the worker behind
            worker.kill()
            raise
    if worker.returncode != 0:
        reason = next((line for line in reversed(last) if ":" in line), "no message")
        raise ArtifactError(
            f"llm-compressor failed with exit code {worker.returncode}: {reason}",
            hint="Try: tuneline --verbose export quantize ..., which shows all its output\n"
            "  Or leave out --method.",
        )


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield lines as they arrive; each redrawing of a progress bar counts as a line."""
    rest = b""
    while piece := os.read(stream.fileno(), 65536):
        *whole, rest = re.split(rb"[\r\n]+", rest + piece)
        yield from (line.decode(errors="replace").strip() for line in whole)
    yield rest.decode(errors="replace").strip()


def _checked(
    made: Path, expected: dict[str, tuple[str, tuple[int, ...]]], method: str
) -> list[TensorFile]:
    """Return the files of the weights that llm-compressor wrote.

    Raises:
        ArtifactError: The tensors are not the expected ones, or have values that are not finite.
    """
    files = [read_tensor_file(path) for path in sorted(made.glob("*.safetensors"))]
    found = {}
    for opened in files:
        found.update({entry.name: (entry.dtype, entry.shape) for entry in opened.entries})
        for entry in opened.entries:
            if entry.dtype in TORCH_DTYPES and not is_finite(read_tensor(opened, entry)):
                raise ArtifactError(
                    f"{method} by llm-compressor: {entry.name} has values that are not finite"
                )
    if found != expected:
        names = found.keys() | expected.keys()
        name = min(name for name in names if found.get(name) != expected.get(name))
        raise ArtifactError(
            f"{method} by llm-compressor stored {name} as {found.get(name, 'nothing')}; "
            f"expected {expected.get(name, 'nothing')}",
            hint="llm-compressor treats this family differently. Try: leave out --method",
        )
    return files


def _restore(files: Sequence[TensorFile], kept: Mapping[str, Stored]) -> None:
    """Write the model's own values over the tensors that GPTQ does not quantize.

    llm-compressor 0.14 adds one to the norms of families that compute with 1 + w (Gemma,
    Qwen3-Next), and takes it away again: in bfloat16 that rounds them.
    """
    for file in files:
        with file.path.open("r+b") as written:
            for entry in file.entries:
                if entry.name in kept:
                    written.seek(len(file.header) + entry.begin)
                    _copy_bytes(kept[entry.name], written)


def _copy_bytes(source: Stored, written: IO[bytes]) -> None:
    with source.file.path.open("rb") as opened:
        opened.seek(len(source.file.header) + source.entry.begin)
        left = source.entry.num_bytes
        while block := opened.read(min(left, BLOCK_BYTES)):
            written.write(block)
            left -= len(block)


def _take(made: Path, files: Sequence[TensorFile], out: Path) -> None:
    for file in files:
        file.path.rename(out / file.path.name)
    if (made / INDEX).is_file():
        shutil.copyfile(made / INDEX, out / INDEX)
