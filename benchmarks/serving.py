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

    python benchmarks/serving.py [--rounds 5] [--streams 1 16 64] [--model DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
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
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import hardware_facts
from tuneline.models.source import resolve_model

ROOT = Path(__file__).resolve().parents[1]
MAX_TOKENS = 32
FLAGS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
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
    given = parser.parse_args()
    tickets = (ROOT / "examples" / "support-tickets" / "heldout.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in tickets.splitlines()]
    prompts = [
        [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}] for row in rows
    ]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        plain = stack.enter_context(plain_server(given.model, folder))
        ours = stack.enter_context(tuneline_server(given.model, folder))
        print(f"{'streams':>7} {'tokens/s of vLLM':>17} {'of Tuneline':>12} {'ratio':>6} "
              f"{'TTFT p50 of vLLM':>17} {'of Tuneline':>12} {'difference':>11}")  # fmt: skip
        measured = [
            measure(streams, given.rounds, plain, ours, prompts, folder)
            for streams in given.streams
        ]
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
def tuneline_server(model: Path, folder: Path) -> Iterator[Endpoint]:
    """Serve the model with two keys that have limits."""
    keys_file = folder / "keys.toml"
    add_key(keys_file, "other", KEY_LIMITS)
    key = add_key(keys_file, "benchmark", KEY_LIMITS)
    config = ServingConfig(**FLAGS, cpu_kvcache_space_gib=1, keys_file=str(keys_file))
    with running_server(
        config, resolve_model(str(model)), name="measured", log_path=folder / "tuneline.log"
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


if __name__ == "__main__":
    main()
