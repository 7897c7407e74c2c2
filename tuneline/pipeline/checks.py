"""Checks before anything expensive runs: `check` looks at a run, `doctor` at the machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tuneline.core.digests import short_digest
from tuneline.core.environment import hardware_facts, library_versions
from tuneline.core.errors import MissingError
from tuneline.pipeline.run import workload_file
from tuneline.pipeline.run_config import Run

ROOMS = {
    "train": ("torch", "transformers", "trl", "peft", "datasets"),
    "export": ("torch", "transformers", "peft", "safetensors", "onnx", "onnxruntime"),
    "serve": ("vllm", "openai", "prometheus_client"),
    "loadtest": ("uvloop", "numpy", "matplotlib"),
}
"""What each room imports, by the extra that brings it."""

FREE_DISK_GIB = 5.0


def check_run(run: Run) -> dict[str, str]:
    """Validate everything about a run that needs no training step.

    Returns:
        What was looked at, and what was found, in order.

    Raises:
        TunelineError: The first part that does not hold, with all its problems.
    """
    from export.weights.model_folder import read_base
    from training.data.rows import read_rows
    from training.model import load_tokenizer, quiet_libraries
    from training.rendering.chat import render_rows, require_chat_template, stop_token_ids
    from tuneline.models.source import resolve_model

    config = run.config
    found = {"configuration": f"{run.path} is valid"}
    base = resolve_model(
        config.base_model, relative_to=run.path.parent, revision=config.base_revision
    )
    found["base model"] = f"{base.name} ({short_digest(base.digest)})"
    weights = read_base(base.path)
    found["weights"] = f"{len(weights.tensors):,} tensors in {len(weights.shards):,} files"
    quiet_libraries()
    tokenizer = load_tokenizer(base.path)
    require_chat_template(tokenizer, base.name)
    stop_ids = stop_token_ids(base.path, tokenizer, config.training.eos_token)
    longest = 0
    last: set[str] = set()
    for name in filter(None, (config.data.path, config.data.heldout_path)):
        rows = read_rows(run.resolve(name), system_prompt=config.data.system_prompt)
        rendered = render_rows(
            tokenizer,
            rows,
            stop_ids=stop_ids,
            max_length=config.training.max_length,
            file=str(name),
        )
        longest = max(longest, *(len(row.input_ids) for row in rendered))
        last |= {tokenizer.decode(row.input_ids[-1]) for row in rendered}
        found[f"data {name}"] = f"{len(rows):,} rows"
    found["chat template"] = "every prompt is a prefix of its row"
    found["stop tokens"] = f"every answer ends with {' or '.join(sorted(last))}"
    found["longest row"] = f"{longest:,} of at most {config.training.max_length:,} tokens"
    workload = workload_file(run)
    if workload is not None:
        found["load test"] = f"{config.loadtest.workload.path} is there"
    return found


def examine_machine(runs_dir: Path) -> list[dict[str, Any]]:
    """What this machine has, one finding each: `what`, `found`, `ok`, `room`."""
    hardware = hardware_facts()
    versions = library_versions()
    findings: list[dict[str, Any]] = []

    def note(what: str, found: str, ok: bool, room: str | None = None) -> None:
        findings.append({"what": what, "found": found, "ok": ok, "room": room})

    python = sys.version_info
    note("python", sys.version.split()[0], (python.major, python.minor) == (3, 11))
    note("cpu", f"{hardware['cpu']}, {hardware['cpu_cores']} cores", True)
    note("memory", f"{hardware['memory_gib']} GiB", hardware["memory_gib"] >= 4)
    note("gpu", ", ".join(hardware["gpus"]) or "none; everything runs on the CPU", True)
    free_gib = shutil.disk_usage(runs_dir if runs_dir.exists() else Path()).free / 2**30
    note("free disk", f"{free_gib:.0f} GiB for {runs_dir}/", free_gib >= FREE_DISK_GIB)
    for room, modules in ROOMS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        have = ", ".join(
            f"{m} {version}"
            for m in modules
            # The CPU build of vLLM is a distribution of its own.
            if (version := versions.get(m) or versions.get(f"{m}-cpu"))
        )
        lack = f"missing {', '.join(missing)}; try, in the checkout: make setup"
        note(f"room {room}", lack if missing else have or "installed", not missing, room)
    for tool, purpose in {"kubectl": "renders and applies k8s manifests"}.items():
        path = shutil.which(tool)
        note(tool, path or f"not found; it {purpose}", path is not None, "k8s")
    from export.quantize.calibration_environment import INSTALL, READY, calibration_dir

    folder = calibration_dir()
    has = (folder / READY).is_file()
    lacks = f"not installed; gptq and awq alone need it: {INSTALL}"
    note("llm-compressor", str(folder) if has else lacks, True)
    key = "set" if os.environ.get("VLLM_API_KEY") else "not set; needed beyond loopback only"
    note("VLLM_API_KEY", key, True)
    return findings


def require_rooms(findings: list[dict[str, Any]]) -> None:
    """Fail where a room of the line lacks a library.

    Raises:
        MissingError: The first room that cannot work here.
    """
    for finding in findings:
        if not finding["ok"] and finding["room"] in ROOMS:
            raise MissingError(f"{finding['what']}: {finding['found']}")
