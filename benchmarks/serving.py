# ruff: noqa: E402
"""Compare Tuneline's server with plain vLLM under load: `python benchmarks/serving.py`.

Starts plain vLLM and Tuneline's server on the tiny base with the same flags, side by side.
Tuneline's server knows two keys with limits of requests, tokens and streams, and reads the key of
every request. Closed loops of 1, 16 and 64 streams then ask both in turns, A B B A ..., by the
load-test client. The prompts are those of the shipped tickets, and an answer has 32 tokens.

Prints the medians over the rounds: output tokens per second, their ratio, the median TTFT of each
and their difference, with the smallest and the largest ratio and difference of a round. They say
what the machine can resolve: the servers and the client share its cores. One JSON document is on
the last line. Takes about ten minutes on two cores.

    python benchmarks/serving.py [--rounds 5] [--streams 1 16 64] [--model DIR] [--recorded]

With --recorded, both sides are Tuneline's servers, and the second one records every request.

With --saturate, it asks only Tuneline's server: two front ends, 48 streams of which 16 are computed
at once, and prompts that fill the context. `/ready` and `/health` are asked all the time, and the
engine is busy but well, so every answer but 200 is a false alarm. At the end the engine's processes
are stopped by SIGSTOP, and the seconds until both routes say 503 are printed.

    python benchmarks/serving.py --saturate MINUTES [--model DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The scripts of this folder would hide the packages of the same names.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest import compare_endpoints
from loadtest.config import LoadTestConfig
from loadtest.studies.schema import ComparisonReport
from serving import add_key, running_server
from serving.config import ServingConfig
from serving.middleware.settings import RECORDING_VARIABLE
from serving.supervisor.group import group_members
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import hardware_facts
from tuneline.models.source import resolve_model

ROOT = Path(__file__).resolve().parents[1]
MAX_TOKENS = 32
FLAGS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
SATURATED: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 16}
NUM_STREAMS = 48
PROMPT_TOKENS = 1024 - MAX_TOKENS
# No request comes near a limit, and each is counted for each limit.
KEY_LIMITS = {
    "requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000, "max_concurrency": 1000,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "tiny-base")
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--saturate", type=float, metavar="MINUTES")
    given = parser.parse_args()
    if given.saturate is not None:
        saturate(given.model, given.saturate)
        return
    tickets = (ROOT / "examples" / "support-tickets" / "heldout.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in tickets.splitlines()]
    prompts = [
        [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}] for row in rows
    ]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        if given.recorded:
            names = "Tuneline", "a recorder"
            plain = stack.enter_context(tuneline_server(given.model, folder))
            with recording(folder / "recorded"):
                ours = stack.enter_context(tuneline_server(given.model, folder, "recorder"))
        else:
            names = "vLLM", "Tuneline"
            plain = stack.enter_context(plain_server(given.model, folder))
            ours = stack.enter_context(tuneline_server(given.model, folder))
        print(f"{'streams':>7} {'tokens/s of ' + names[0]:>17} {'of ' + names[1]:>12} {'ratio':>6} "
              f"{'TTFT p50 of ' + names[0]:>17} {'of ' + names[1]:>12} {'difference':>11}"
        )  # fmt: skip
        measured = [
            measure(streams, given.rounds, plain, ours, prompts, folder)
            for streams in given.streams
        ]
        files = list((folder / "recorded").glob("*.jsonl"))
        num_recorded = sum(len(path.read_bytes().splitlines()) for path in files)
    if given.recorded:
        print(f"{num_recorded} requests recorded")
    print(json.dumps({"hardware": hardware_facts(), "rounds": given.rounds, "rows": measured}))


def measure(
    streams: int, rounds: int, plain: Endpoint, ours: Endpoint, prompts: Any, folder: Path
) -> dict[str, Any]:
    """Return the medians of one closed loop, and print them as a row."""
    config = LoadTestConfig.model_validate(
        {
            "scenarios": [
                {
                    "name": f"closed-{streams}",
                    "concurrency": streams,
                    "num_requests": max(60, 8 * streams),
                }
            ],
            "max_tokens": MAX_TOKENS,
            "slo": {"max_error_rate": 0.0},
            "max_client_lag_s": 1,
        }
    )
    made = compare_endpoints(
        config, plain, ours, folder / f"compared-{streams}", prompts=prompts, num_rounds=rounds
    )
    text = (made.path / "report.json").read_text(encoding="utf-8")
    (scenario,) = ComparisonReport.model_validate_json(text).scenarios
    all_rates, all_ttfts_ms = {}, {}
    for side, runs in scenario.runs.items():
        assert all(run.requests.failed == 0 for run in runs), f"{side}: requests failed"
        all_rates[side] = [run.throughput.output_tokens_per_s or 0.0 for run in runs]
        all_ttfts_ms[side] = [
            (run.latency["ttft_s"].percentiles["p50"] or 0.0) * 1000 for run in runs
        ]
    rates = {side: statistics.median(values) for side, values in all_rates.items()}
    ttfts_ms = {side: statistics.median(values) for side, values in all_ttfts_ms.items()}
    ratios = [b / a for a, b in zip(all_rates["a"], all_rates["b"], strict=True)]
    differences_ms = [b - a for a, b in zip(all_ttfts_ms["a"], all_ttfts_ms["b"], strict=True)]
    row = {
        "streams": streams,
        "output_tokens_per_s": rates,
        "throughput_ratio": rates["b"] / rates["a"],
        "throughput_ratios": ratios,
        "ttft_p50_ms": ttfts_ms,
        "ttft_p50_difference_ms": ttfts_ms["b"] - ttfts_ms["a"],
        "ttft_p50_differences_ms": differences_ms,
    }
    print(f"{streams:7} {rates['a']:17.1f} {rates['b']:12.1f} {row['throughput_ratio']:6.3f} "
          f"{ttfts_ms['a']:14.2f} ms {ttfts_ms['b']:9.2f} ms "
          f"{row['ttft_p50_difference_ms']:8.2f} ms "
          f"(ratios {min(ratios):.3f} to {max(ratios):.3f}, differences {min(differences_ms):.2f} "
          f"to {max(differences_ms):.2f} ms)", flush=True)  # fmt: skip
    return row


@contextlib.contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Let the servers that start now record; a server of the line's own never does."""
    settings = {"folder": str(folder), "share": 1.0, "max_bytes": 2**30, "keep_s": 86_400.0}
    os.environ[RECORDING_VARIABLE] = json.dumps(settings)
    try:
        yield
    finally:
        del os.environ[RECORDING_VARIABLE]


@contextlib.contextmanager
def tuneline_server(model: Path, folder: Path, name: str = "tuneline") -> Iterator[Endpoint]:
    """Serve the model with two keys that have limits."""
    keys_file = folder / f"{name}.toml"
    add_key(keys_file, "other", KEY_LIMITS)
    key = add_key(keys_file, "benchmark", KEY_LIMITS)
    config = ServingConfig(**FLAGS, cpu_kvcache_space_gib=1, keys_file=str(keys_file))
    with running_server(
        config, resolve_model(str(model)), name="measured", log_path=folder / f"{name}.log"
    ) as server:
        yield Endpoint(server.endpoint.url, "measured", key)


@contextlib.contextmanager
def plain_server(model: Path, folder: Path) -> Iterator[Endpoint]:
    """Serve the model with vLLM's own server and the same flags."""
    import httpx

    port = 18000 + os.getpid() % 1000
    command = [
        sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "measured", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", FLAGS["dtype"], "--max-model-len", str(FLAGS["max_model_len"]),
        "--enforce-eager",
    ]  # fmt: skip
    env = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    log = folder / "plain.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline_s = time.monotonic() + 300
            while True:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    sys.exit(f"plain vLLM is not ready:\n{log.read_text()[-3000:]}")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                        break
                time.sleep(0.2)
            yield Endpoint(f"http://127.0.0.1:{port}/v1", "measured")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def saturate(model: Path, minutes: float) -> None:
    """Count the false alarms of a saturated server, and time how long a stop is not seen."""
    options = {**SATURATED, "cpu_kvcache_space_gib": 2, "extra_args": {"api_server_count": 2}}
    with tempfile.TemporaryDirectory() as scratch:
        config = ServingConfig(**FLAGS | options)
        with running_server(
            config, resolve_model(str(model)), name="measured", log_path=Path(scratch) / "log"
        ) as server:
            row = asyncio.run(_saturated(server.endpoint.url, server.pid, minutes))
    for name, value in row.items():
        print(f"{name:24} {value}")
    print(json.dumps({"hardware": hardware_facts(), **row}))


async def _saturated(url: str, pid: int, minutes: float) -> dict[str, Any]:
    import httpx

    address = url.removesuffix("/v1")
    ended: Counter[str] = Counter()
    probes: Counter[str] = Counter()
    worst_s = 0.0
    over = asyncio.Event()

    async def stream(client: httpx.AsyncClient, number: int) -> None:
        # No two prompts begin alike, so that no prefix is in the cache.
        while not over.is_set():
            ids = [100 + (number * 31 + sum(ended.values()) * 7 + place) % 1500
                   for place in range(PROMPT_TOKENS)]  # fmt: skip
            body = {"model": "measured", "prompt": ids, "max_tokens": MAX_TOKENS, "stream": True,
                    "ignore_eos": True}  # fmt: skip
            async with client.stream("POST", f"{url}/completions", json=body) as answer:
                text = [line async for line in answer.aiter_lines()]
            ended["whole" if any('"length"' in line for line in text) else "not whole"] += 1

    async def probe(client: httpx.AsyncClient, path: str) -> int:
        nonlocal worst_s
        asked_s = time.monotonic()
        status = (await client.get(address + path)).status_code
        worst_s = max(worst_s, time.monotonic() - asked_s)
        return status

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        streams = [asyncio.create_task(stream(client, number)) for number in range(NUM_STREAMS)]
        until_s = time.monotonic() + 60 * minutes
        while time.monotonic() < until_s:
            for path in ("/ready", "/health"):
                probes[f"{path} {await probe(client, path)}"] += 1
            await asyncio.sleep(0.1)
        saturated, worst_of_saturated_s = dict(ended), worst_s
        found_s = await _stopped_until_seen(pid, lambda path: probe(client, path))
        over.set()
        await asyncio.gather(*streams, return_exceptions=True)
    return {
        "minutes": minutes, "streams": NUM_STREAMS, "prompt_tokens": PROMPT_TOKENS,
        "requests": saturated, "probes": dict(probes),
        "worst_probe_s": round(worst_of_saturated_s, 3), "seconds_until_503": found_s,
    }  # fmt: skip


async def _stopped_until_seen(pid: int, probe: Any) -> dict[str, float]:
    """Stop the engine and its worker; return when all front ends say so, and let them go on.

    A front end that has said 503 goes on to say it, and a probe reaches any of them.
    """
    engine = [member for member in group_members(pid) if _is_engine(member)]
    assert len(engine) >= 2, "the engine and its worker were not found"
    for member in engine:
        os.kill(member, signal.SIGSTOP)
    stopped_s = time.monotonic()
    found_s: dict[str, float] = {}
    try:
        while len(found_s) < 2 and time.monotonic() - stopped_s < 300:
            for path in {"/ready", "/health"} - found_s.keys():
                if {await probe(path) for _ in range(12)} == {503}:
                    found_s[path] = round(time.monotonic() - stopped_s, 1)
            await asyncio.sleep(0.1)
    finally:
        for member in engine:
            os.kill(member, signal.SIGCONT)
    return found_s


def _is_engine(process: int) -> bool:
    name = (
        Path(f"/proc/{process}/cmdline").read_bytes() + Path(f"/proc/{process}/comm").read_bytes()
    )
    return b"EngineCore" in name or b"Worker" in name


if __name__ == "__main__":
    main()
