# ruff: noqa: E402
"""Compare load-test clients with a server of known delays: `python benchmarks/loadtest_peers.py`.

GuideLLM, AIPerf, inference-perf and `vllm bench serve` send the same closed loop as Tuneline to the
bundled server, in turns: 128 streams, 4 requests each, 32 tokens, TTFT 100 ms, 20 ms per token.
Each tool but vLLM lives in an environment of its own, which the script does not make:

    for tool in guidellm aiperf inference-perf; do
        python -m venv PEERS/$tool && PEERS/$tool/bin/pip install $tool
    done
    python benchmarks/loadtest_peers.py --environments PEERS --rounds 5

Bias is the percentile of TTFT that the tool reports minus the percentile by the server's own record
of the same run. CPU is that of all the tool's processes from the first request that the server
receives to the last token; Tuneline's includes the parsing afterwards. The script prints medians
over the rounds, then one JSON document on the last line. A tool that is absent or fails is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
# A script of this folder must not stand for a package of the same name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]

from loadtest.calibration.calibrate import ITL_S, NUM_TOKENS, TTFT_S
from loadtest.calibration.start import known_server
from tuneline.core.environment import hardware_facts

TOKENIZER = HERE.parent / "examples" / "tiny-base"
PROMPT_TOKENS = 60
TIMEOUT_S = 180.0


def _loadtest_benchmark() -> Any:
    """Return the script next to this one as a module; its name is also a package's."""
    spec = importlib.util.spec_from_file_location("loadtest_benchmark", HERE / "loadtest.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["loadtest_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _loadtest_benchmark()
ROUNDS: int = benchmark.ROUNDS


@dataclass(frozen=True)
class Run:
    """The load that a tool sends."""

    url: str
    """The server's root."""
    streams: int
    scratch: Path

    @property
    def num_requests(self) -> int:
        return ROUNDS * self.streams


@dataclass(frozen=True)
class Peer:
    """One tool: its program in its environment, how it is started, and the TTFT that it reports."""

    program: str
    words: Callable[[Run], Sequence[str]]
    ttft_s: Callable[[Path], tuple[float, float]]
    """Returns the median and the 99th percentile."""


def _guidellm(run: Run) -> list[str]:
    options = {
        "backend": {
            "kind": "openai_http", "target": run.url, "model": "known",
            "request_format": "/v1/chat/completions",
        },
        "profile": {"kind": "concurrent", "streams": run.streams},
        "constraint": {"kind": "max_requests", "count": run.num_requests},
        "tokenizer": {"kind": "huggingface_auto", "model": str(TOKENIZER)},
        "data": {
            "kind": "synthetic_text", "prompt_tokens": PROMPT_TOKENS, "output_tokens": NUM_TOKENS,
        },
        "output": {"kind": "json", "path": str(run.scratch / "found.json")},
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", json.dumps(value))]
    return ["run", *words, "--disable-console"]


def _guidellm_ttft_s(scratch: Path) -> tuple[float, float]:
    (found,) = json.loads((scratch / "found.json").read_text())["benchmarks"]
    values = found["metrics"]["time_to_first_token_ms"]["successful"]["percentiles"]
    return values["p50"] / 1e3, values["p99"] / 1e3


def _aiperf(run: Run) -> list[str]:
    return [
        "profile", "--model", "known", "--url", run.url, "--endpoint-type", "chat", "--streaming",
        "--concurrency", str(run.streams), "--request-count", str(run.num_requests),
        "--tokenizer", str(TOKENIZER), "--synthetic-input-tokens-mean", str(PROMPT_TOKENS),
        "--output-tokens-mean", str(NUM_TOKENS), "--extra-inputs", f"max_tokens:{NUM_TOKENS}",
        "--artifact-dir", str(run.scratch), "--ui", "none",
    ]  # fmt: skip


def _aiperf_ttft_s(scratch: Path) -> tuple[float, float]:
    (path,) = scratch.rglob("profile_export_aiperf.json")
    values = json.loads(path.read_text())["time_to_first_token"]
    assert values["unit"] == "ms"
    return values["p50"] / 1e3, values["p99"] / 1e3


def _inference_perf(run: Run) -> list[str]:
    config = {
        "load": {
            "type": "concurrent", "num_workers": 2,
            "stages": [{"num_requests": run.num_requests, "concurrency_level": run.streams}],
        },
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": "known", "base_url": run.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(TOKENIZER)},
        "data": {
            "type": "random",
            "input_distribution": _fixed(PROMPT_TOKENS, run.num_requests),
            "output_distribution": _fixed(NUM_TOKENS, run.num_requests),
        },
        "report": {"request_lifecycle": {"summary": True}},
        "storage": {"local_storage": {"path": str(run.scratch)}},
    }  # fmt: skip
    path = run.scratch / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return ["--config_file", str(path)]


def _fixed(mean: int, count: int) -> dict[str, Any]:
    return {"min": mean, "max": mean, "mean": mean, "std_dev": 0, "total_count": count}


def _inference_perf_ttft_s(scratch: Path) -> tuple[float, float]:
    (path,) = scratch.rglob("summary_lifecycle_metrics.json")
    values = json.loads(path.read_text())["successes"]["latency"]["time_to_first_token"]
    return values["median"], values["p99"]


PEERS = {
    "guidellm": Peer("guidellm", _guidellm, _guidellm_ttft_s),
    "aiperf": Peer("aiperf", _aiperf, _aiperf_ttft_s),
    "inference-perf": Peer("inference-perf", _inference_perf, _inference_perf_ttft_s),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=["tuneline", "vllm bench serve", *PEERS])
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    failures: dict[str, str] = {}
    for _ in range(arguments.rounds):
        for name in arguments.only:
            if name in failures:
                continue
            try:
                found = measured(name, arguments.streams, arguments.environments)
            except (Failed, SystemExit) as error:
                failures[name] = str(error)
                print(f"{name}: {error}", flush=True)
                continue
            rows.setdefault(name, []).append(found)
            print(f"{name:18} {found}", flush=True)
    document = {
        "hardware": hardware_facts(),
        "streams": arguments.streams,
        "versions": {name: version_of(name, arguments.environments) for name in rows},
        "failures": failures,
        "medians": {name: medians(found) for name, found in rows.items()},
        "rounds": rows,
    }
    for name, found in document["medians"].items():
        print(f"{name:18} {document['versions'][name]:12} {found}")
    print(json.dumps(document))


class Failed(Exception):
    """A tool is absent, or did not do its run."""


def measured(name: str, streams: int, environments: Path) -> dict[str, Any]:
    """Return one run's row.

    Raises:
        Failed: The tool is absent, ends with an error or takes too long.
    """
    if name == "tuneline":
        return dict(vars(benchmark.ours(streams, tls=False)))
    if name == "vllm bench serve":
        if importlib.util.find_spec("vllm") is None:
            raise Failed("not installed")
        return dict(vars(benchmark.vllm(streams)))
    return dict(vars(peer(name, PEERS[name], streams, environments / name / "bin")))


def peer(name: str, tool: Peer, streams: int, programs: Path) -> Any:
    """Run a tool once."""
    if not (programs / tool.program).is_file():
        raise Failed("not installed")
    with (
        tempfile.TemporaryDirectory() as scratch,
        known_server("--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S)) as server,
    ):
        run = Run(server.endpoint.url.removesuffix("/v1"), streams, Path(scratch))
        with (run.scratch / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / tool.program, *tool.words(run)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=scratch,
                env={**os.environ, "HOME": scratch},
            )  # fmt: skip
            samples: list[tuple[int, float]] = []
            watcher = threading.Thread(target=watch_family, args=(process, samples))
            watcher.start()
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"not ended after {TIMEOUT_S:g} s") from None
            finally:
                process.kill()
                watcher.join()
        if code:
            raise Failed(f"code {code}: {(run.scratch / 'log').read_text()[-600:]}")
        # Without requests that only try the server out, such as one of a single token.
        truths = [one for one in server.truths() if one["num_tokens"] == NUM_TOKENS]
        if len(truths) != run.num_requests:
            raise Failed(f"the server saw {len(truths)} requests; expected {run.num_requests}")
        p50_s, p99_s = tool.ttft_s(run.scratch)
    begin_ns = min(truth["received_ns"] for truth in truths)
    end_ns = max(truth["done_ns"] for truth in truths)
    true_s = [(truth["token_write_ns"][0] - truth["received_ns"]) / 1e9 for truth in truths]
    cpu_s = benchmark.cpu_at(samples, end_ns) - benchmark.cpu_at(samples, begin_ns)
    return benchmark.Row(
        client=name,
        streams=streams,
        num_requests=run.num_requests,
        num_succeeded=len(truths),
        true_ttft_p50_ms=1e3 * float(np.median(true_s)),
        ttft_bias_p50_ms=1e3 * (p50_s - float(np.median(true_s))),
        ttft_bias_p99_ms=1e3 * (p99_s - float(np.percentile(true_s, 99))),
        cpu_s_per_1000_tokens=1e3 * cpu_s / (NUM_TOKENS * len(truths)),
    )


def watch_family(process: subprocess.Popen[bytes], samples: list[tuple[int, float]]) -> None:
    """Note the CPU time of a process and its descendants ten times a second; what an ended process
    used counts on."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    used: dict[int, float] = {}
    while process.poll() is None:
        family = [process.pid]
        for pid in family:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    family += map(int, (task / "children").read_text().split())
            except OSError:
                continue
            used[pid] = (int(fields[11]) + int(fields[12])) / ticks_per_s
        samples.append((time.monotonic_ns(), sum(used.values())))
        time.sleep(0.1)


def version_of(name: str, environments: Path) -> str:
    """Return a tool's version."""
    if name == "tuneline":
        return "this checkout"
    package = "vllm" if name == "vllm bench serve" else name
    python = sys.executable if package == "vllm" else environments / name / "bin" / "python"
    code = (
        "from importlib.metadata import version, packages_distributions as p\n"
        f"print(version(p()['{package}'][0]) if '{package}' in p() else version('{package}'))"
    )
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False
    ).stdout.strip()


def medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    names = ("ttft_bias_p50_ms", "ttft_bias_p99_ms", "cpu_s_per_1000_tokens")
    return {name: round(statistics.median(row[name] for row in rows), 4) for name in names}


if __name__ == "__main__":
    main()
