# ruff: noqa: E402
"""Measure the load-test client's bias and CPU time: `python benchmarks/loadtest.py`.

Each client in turn sends a closed loop to the bundled server with known delays (TTFT 100 ms, 20 ms
per token, 32 tokens). The script compares the client's TTFT with the server's own record of the
same run. CPU is the client process's, from the first request to the last token; for Tuneline it
includes the parsing afterwards. Tuneline runs over plain TCP and over TLS, and `vllm bench serve`
runs if vLLM is installed. Then Tuneline delivers twenty Poisson schedules, and the script compares
their rate, coefficient of variation and index of dispersion with simulated Poisson processes. It
prints a table, then one JSON document on the last line.

With `--sessions`, it measures conversations only: 256 in flight for the bias, 128 in flight for CPU
time, and 10,000 open at once with a token per second each for the lags and the memory.

Client and server share the cores of one machine, so compare only rows of the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# This file must not stand for the package of the same name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest.arrivals.dispersion import dispersion
from loadtest.calibration.calibrate import ITL_S, NUM_TOKENS, TTFT_S
from loadtest.calibration.start import known_server
from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import SUCCEEDED
from loadtest.config import LoadTestConfig, Scenario
from loadtest.measure import judged
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import hardware_facts

TOKENIZER = Path(__file__).parents[1] / "examples" / "tiny-base"
STREAMS = (32, 128, 256)
ROUNDS = 4
PROMPT = "word " * 60

# The console script of the CPU distribution of vLLM does not start; its benchmark does.
VLLM = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@dataclass(frozen=True)
class Row:
    client: str
    streams: int
    num_requests: int
    num_succeeded: int
    true_ttft_p50_ms: float
    ttft_bias_p50_ms: float
    ttft_bias_p99_ms: float
    cpu_s_per_1000_tokens: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--streams", type=int, nargs="*", default=list(STREAMS))
    parser.add_argument("--without-vllm", action="store_true")
    parser.add_argument("--sessions", action="store_true", help="Measure conversations only.")
    arguments = parser.parse_args()
    if arguments.sessions:
        measure_sessions()
        return
    with_vllm = not arguments.without_vllm and importlib.util.find_spec("vllm") is not None
    rows = []
    for streams in arguments.streams:
        for tls in (False, True):
            rows.append(ours(streams, tls=tls))
            show(rows[-1])
        if with_vllm:
            rows.append(vllm(streams))
            show(rows[-1])
    arrivals = delivered_arrivals(arguments.seeds, arguments.rate)
    for name, found in arrivals.items():
        print(f"{name:22}", found)
    document = {
        "hardware": hardware_facts(),
        "rows": [vars(row) for row in rows],
        "cpu_ratio": ratios(rows),
        "arrivals": arrivals,
    }
    print(json.dumps(document))


def measure_sessions() -> None:
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    rows = []
    for streams in (128, 256):
        rows.append(conversations(streams))
        show(rows[-1])
    crowd = open_sessions(10_000, rate_rps=500.0)
    print(crowd, flush=True)
    document = {
        "hardware": hardware_facts(),
        "rows": [vars(row) for row in rows],
        "open_sessions": crowd,
    }
    print(json.dumps(document))


def talk(num_turns: int) -> list[dict[str, str]]:
    turns = [("user", PROMPT), ("assistant", "word " * NUM_TOKENS)] * num_turns
    return [{"role": role, "content": text} for role, text in turns[:-1]]


def conversations(streams: int) -> Row:
    """Conversations of four turns with short delays: nearly all of them are in flight."""
    config = LoadTestConfig.model_validate(
        {
            "num_warmup_requests": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True,
            "calibrate": False, "workload": {"sessions": {"think_s": {"mean": 0.03}}},
        }
    )  # fmt: skip
    scenario = Scenario(name="x", concurrency=streams, num_requests=streams)
    with known_server("--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S)) as server:
        plan, _ = make_plan(config, scenario, server.endpoint, [talk(ROUNDS)], seed=0)
        measured = run_workers(plan, None)
        truths = server.truths()
    ok = measured.records.select(measured.records.state == SUCCEEDED)
    cpu_s = sum(
        float(worker["self_check"]["cpu_s"]) + float(worker["parse_cpu_s"])
        for worker in measured.workers
    )
    return row("tuneline sessions", streams, truths, ok.first_token_s - ok.sent_s, cpu_s)


def open_sessions(num: int, rate_rps: float) -> dict[str, Any]:
    """Open conversations at a rate until `num` are open at once; each has two turns of twelve
    tokens, one per second, and thinks for eight seconds."""
    config = LoadTestConfig.model_validate(
        {
            "num_warmup_requests": 0, "max_tokens": 12, "ignore_eos": True, "calibrate": False,
            "timeout_s": 60.0, "workload": {"sessions": {"think_s": {"mean": 8.0}}},
        }
    )  # fmt: skip
    scenario = Scenario(name="x", rate_rps=rate_rps, arrival="constant", num_requests=num)
    with known_server("--ttft-s", "1.0", "--itl-s", "1.0") as server:
        plan, workload = make_plan(config, scenario, server.endpoint, [talk(2)], seed=0)
        measured = run_workers(plan, None)
    result = judged(config, scenario, plan, workload, measured)
    records, sessions = result.records, result.stats.sessions
    assert sessions is not None
    begins = records.intended_s[records.turn == 0]
    ends = np.sort(records.end_s[records.turn == 1])
    most = max(
        int(number + 1 - np.searchsorted(ends, time)) for number, time in enumerate(np.sort(begins))
    )
    return {
        "num_sessions": num,
        "most_open": most,
        "num_succeeded": sessions.succeeded,
        "verdict": str(result.judgement.verdict),
        "problems": result.judgement.problems,
        "send_lag_p99_ms": 1e3 * (result.client.send_lag_s.at(99) or 0.0),
        "loop_lag_p99_ms": 1e3 * (result.client.loop_lag_s.at(99) or 0.0),
        "cpu_s_per_1000_tokens": 1000
        * (result.client.cpu_s + result.client.parse_cpu_s)
        / max(result.stats.tokens.num_output_tokens, 1),
        "max_rss_mib": max(float(one["self_check"]["max_rss_mib"]) for one in measured.workers),
    }


def show(row: Row) -> None:
    print(
        f"{row.client:18}{row.streams:5} streams: TTFT bias p50 {row.ttft_bias_p50_ms:8.3f} ms, "
        f"p99 {row.ttft_bias_p99_ms:8.3f} ms; {row.cpu_s_per_1000_tokens:.4f} s CPU per 1,000 "
        f"tokens; {row.num_succeeded} of {row.num_requests} requests",
        flush=True,
    )


def ratios(rows: list[Row]) -> dict[str, float]:
    """CPU of the other client over ours, per number of streams, both over plain TCP."""
    cost = {(row.client, row.streams): row.cpu_s_per_1000_tokens for row in rows}
    return {
        str(streams): round(value / cost["tuneline", streams], 2)
        for (client, streams), value in cost.items()
        if client == "vllm bench serve"
    }


def ours(streams: int, *, tls: bool) -> Row:
    config = LoadTestConfig(
        num_warmup_requests=0, max_tokens=NUM_TOKENS, ignore_eos=True, calibrate=False
    )
    scenario = Scenario(name="x", concurrency=streams, num_requests=ROUNDS * streams)
    with known_server("--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S), tls=tls) as server:
        plan, _ = make_plan(
            config, scenario, server.endpoint, [[{"role": "user", "content": PROMPT}]], seed=0
        )
        measured = run_workers(replace(plan, ca_file=server.ca_file), None)
        truths = server.truths()
    ok = measured.records.select(measured.records.state == SUCCEEDED)
    cpu_s = sum(
        float(worker["self_check"]["cpu_s"]) + float(worker["parse_cpu_s"])
        for worker in measured.workers
    )
    client = "tuneline over TLS" if tls else "tuneline"
    return row(client, streams, truths, ok.first_token_s - ok.sent_s, cpu_s)


def vllm(streams: int) -> Row:
    with (
        tempfile.TemporaryDirectory() as scratch,
        known_server("--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S)) as server,
    ):
        data = Path(scratch) / "prompts.jsonl"
        data.write_text((json.dumps({"prompt": PROMPT}) + "\n") * (ROUNDS * streams))
        url = server.endpoint.url.removesuffix("/v1")
        options = {
            "backend": "openai-chat", "base-url": url, "endpoint": "/v1/chat/completions",
            "model": "known", "tokenizer": str(TOKENIZER), "dataset-name": "custom",
            "dataset-path": str(data), "custom-output-len": str(NUM_TOKENS),
            "num-prompts": str(ROUNDS * streams), "max-concurrency": str(streams),
            "result-dir": scratch, "result-filename": "result.json",
        }  # fmt: skip
        flags = ["--save-result", "--save-detailed", "--disable-tqdm", "--ignore-eos",
                 "--skip-chat-template", "--disable-shuffle"]  # fmt: skip
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        process = subprocess.Popen(
            [sys.executable, "-c", VLLM, *arguments, *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        samples: list[tuple[int, float]] = []
        watcher = threading.Thread(target=watch_cpu, args=(process, samples))
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
        result_path = Path(scratch) / "result.json"
        if not result_path.is_file():
            raise SystemExit(f"vllm bench serve wrote no result:\n{output[-2000:]}")
        result = json.loads(result_path.read_text())
        truths = server.truths()[-ROUNDS * streams :]  # without its readiness request
    ttft = np.array([one for one in result["ttfts"] if one > 0])
    begin_ns = min(truth["received_ns"] for truth in truths)
    end_ns = max(truth["done_ns"] or 0 for truth in truths)
    cpu_s = cpu_at(samples, end_ns) - cpu_at(samples, begin_ns)
    return row("vllm bench serve", streams, truths, ttft, cpu_s)


def row(client: str, streams: int, truths: list[dict[str, Any]], ttft_s: Any, cpu_s: float) -> Row:
    true_s = np.array(
        [(truth["token_write_ns"][0] - truth["received_ns"]) / 1e9 for truth in truths]
    )
    assert len(true_s) == ROUNDS * streams

    def bias_ms(q: float) -> float:
        return float(1e3 * (np.percentile(ttft_s, q) - np.percentile(true_s, q)))

    return Row(
        client, streams, len(true_s), len(ttft_s), float(1e3 * np.median(true_s)), bias_ms(50),
        bias_ms(99), 1000 * cpu_s / sum(int(truth["num_tokens"]) for truth in truths),
    )  # fmt: skip


def watch_cpu(process: subprocess.Popen[str], samples: list[tuple[int, float]]) -> None:
    """CPU time of a process, twenty times a second."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        samples.append((time.monotonic_ns(), (int(fields[11]) + int(fields[12])) / ticks_per_s))
        time.sleep(0.05)


def cpu_at(samples: list[tuple[int, float]], time_ns: int) -> float:
    return float(np.interp(time_ns, [at for at, _ in samples], [cpu for _, cpu in samples]))


def delivered_arrivals(num_seeds: int, rate_rps: float) -> dict[str, Any]:
    """Means over the seeds, how many seeds lie in the 99 % interval of a true Poisson process, and
    the interval of such means."""
    config = LoadTestConfig(num_warmup_requests=0, max_tokens=1, calibrate=False)
    scenario = Scenario(name="x", rate_rps=rate_rps, num_requests=600)
    found, differences, unaccounted = [], [], 0
    with known_server("--ttft-s", "0.005", "--itl-s", "0") as server:
        for seed in range(num_seeds):
            records = run_plan(config, scenario, server.endpoint, seed)
            sent = records.select(~np.isnan(records.sent_s))
            unaccounted += 600 - len(records)
            delivered, scheduled = dispersion(sent.sent_s), dispersion(sent.intended_s)
            found.append(delivered)
            assert delivered.rate_rps is not None and scheduled.rate_rps is not None
            differences.append(abs(delivered.rate_rps / scheduled.rate_rps - 1))
    rng = np.random.default_rng(1)
    simulated = [dispersion(np.cumsum(rng.exponential(1 / rate_rps, 600))) for _ in range(5000)]
    document: dict[str, Any] = {"seeds": num_seeds, "requests_each": 600, "rate_rps": rate_rps}
    for name in ("gap_cv", "index_of_dispersion"):
        truth = np.array([getattr(one, name) for one in simulated])
        values = np.array([getattr(one, name) for one in found])
        low, high = np.quantile(truth, [0.005, 0.995])
        means = rng.choice(truth, (5000, num_seeds)).mean(axis=1)
        document[name] = {
            "mean": round(float(values.mean()), 4),
            "interval99_of_mean": np.quantile(means, [0.005, 0.995]).round(4).tolist(),
            "interval99": [round(float(low), 4), round(float(high), 4)],
            "inside": int(np.sum((values >= low) & (values <= high))),
        }
    document["largest_rate_difference"] = float(max(differences))
    document["unaccounted"] = unaccounted
    return document


def run_plan(config: LoadTestConfig, scenario: Scenario, endpoint: Endpoint, seed: int) -> Any:
    plan, _ = make_plan(config, scenario, endpoint, [[{"role": "user", "content": "x"}]], seed=seed)
    return run_workers(plan, None).records


if __name__ == "__main__":
    main()
