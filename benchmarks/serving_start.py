"""The time to ready: `python benchmarks/serving_start.py MODEL [--rounds N] [--checkout DIR ...]`.

Starts plain vLLM and Tuneline's server in turn, with the same model, the same flags and a warm
cache, and ends each as soon as it is ready. `--cold` adds a start of Tuneline's server with an
empty cache to each round, and `--compiled` lets vLLM compile the model. `--checkout` names
checkouts of other commits, each with its own `.venv`, that take part in each round.

Prints the wall time and the CPU time (user and system, of all processes) of each start, then one
JSON document with the medians, their ratios to plain vLLM, and where the time goes, from the
timestamps of vLLM's log. Other work on the machine changes the wall time; the CPU time changes
less. The document names the load of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

FLAGS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}

# Any commit's server, by the names that the function has had.
SERVER = """
import json, sys, time
from pathlib import Path
try:
    from serving import running_server
except ImportError:
    try:
        from serving.supervisor.process import running as running_server
    except ImportError:
        from serving.server import running as running_server
try:
    from tuneline.models import resolve_model
except ImportError:
    try:
        from tuneline.models.source import resolve_model
    except ImportError:
        from tuneline.core.model_source import resolve_model
from serving.config import ServingConfig

model, port, log, flags = sys.argv[1:]
config = ServingConfig(**json.loads(flags))
with running_server(
    config, resolve_model(model), name="start", log_path=Path(log), port=int(port)
):
    print("ready", flush=True)  # the compile cache is recorded
    time.sleep(600)
"""
COLD = "tuneline, cold"
# The milestones of a start, as vLLM logs them.
MILESTONES = {
    "imports of the front end": r"non-default args",
    "start of the engine": r"Initializing a V1 LLM engine",
    "start of the worker": r"Starting to load model",
    "weights": r"Loading weights took",
    "cache and warm-up": r"init engine .* took",
    "routes": r"Starting vLLM server on",
}
STAMP = re.compile(r"(\d\d-\d\d \d\d:\d\d:\d\d) \[")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkout", type=Path, action="append", default=[])
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    checkouts = {"tuneline": here, **{str(path): path.resolve() for path in options.checkout}}
    if options.cold:
        checkouts[COLD] = here
    flags = {**FLAGS, "enforce_eager": not options.compiled}
    starts: dict[str, list[Start]] = {kind: [] for kind in ("plain", *checkouts)}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds + 1):
            for kind, measured in starts.items():
                home = Path(tempfile.mkdtemp(dir=scratch)) if kind == COLD else Path.home()
                start = time_to_ready(
                    checkouts.get(kind), options.model.resolve(), Path(scratch), flags, home
                )
                if number == 0:
                    continue  # fills the caches
                measured.append(start)
                print(f"{kind}: {start.wall_s:.1f} s wall, {start.cpu_s:.1f} s CPU", flush=True)
    plain = starts["plain"]
    document: dict[str, Any] = {kind: summary(measured, plain) for kind, measured in starts.items()}
    document["load_average"] = os.getloadavg()
    document["flags"] = flags
    print(json.dumps(document))


@dataclass(frozen=True)
class Start:
    wall_s: float
    cpu_s: float
    breakdown_s: dict[str, float]


def time_to_ready(
    checkout: Path | None, model: Path, scratch: Path, flags: dict[str, Any], home: Path
) -> Start:
    """Start a server of a checkout, or plain vLLM for None; measure until it is ready; end it."""
    port = free_port()
    log, output_path = scratch / "vllm.log", scratch / "output"
    if checkout is None:
        log = output_path
        command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(model), "--port", str(port), "--host", "127.0.0.1"]
        command += ["--dtype", flags["dtype"], "--max-model-len", str(flags["max_model_len"])]
        command += ["--enforce-eager"] if flags["enforce_eager"] else []
    else:
        command = [str(checkout / ".venv/bin/python"), "-P", "-c", SERVER]
        command += [str(model), str(port), str(log), json.dumps(flags)]
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
           "VLLM_CPU_KVCACHE_SPACE": "2", "PYTHONPATH": str(checkout or ""),
           "HOME": str(home)}  # fmt: skip
    with output_path.open("wb") as output:
        started_s = time.monotonic()
        process = subprocess.Popen(
            command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=scratch,
            start_new_session=True,
        )  # fmt: skip
        try:
            while not is_healthy(port):
                if process.poll() is not None:
                    sys.exit(f"the server ended:\n{output_path.read_text()[-3000:]}")
                time.sleep(0.05)
            wall_s = time.monotonic() - started_s
            start = Start(wall_s, cpu_of_tree(process.pid), milestones(log))
            while (
                checkout is not None
                and "ready\n" not in output_path.read_text()
                and process.poll() is None
            ):
                time.sleep(0.05)
            return start
        finally:
            # Tuneline's server is a group of its own and follows its supervisor.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def cpu_of_tree(root: int) -> float:
    """User and system seconds of a process and all its descendants, ended children included."""
    rows: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            # proc_pid_stat(5): parent, then utime, stime, cutime, cstime.
            rows[int(folder.name)] = int(fields[1]), sum(int(field) for field in fields[11:15])
    tree = {root}
    while more := {pid for pid, (parent, _) in rows.items() if parent in tree} - tree:
        tree |= more
    return sum(rows[pid][1] for pid in tree if pid in rows) / os.sysconf("SC_CLK_TCK")


def milestones(log: Path) -> dict[str, float]:
    """Seconds of wall time from each milestone of the log to the next, from whole seconds."""
    found: list[tuple[str, datetime]] = []
    for line in log.read_text(errors="replace").splitlines():
        stamp = STAMP.search(line)
        for name, pattern in MILESTONES.items():
            if stamp and re.search(pattern, line) and name not in dict(found):
                found.append((name, datetime.strptime(stamp[1], "%m-%d %H:%M:%S")))
    return {
        name: (at - before).total_seconds() for (_, before), (name, at) in itertools.pairwise(found)
    }


def summary(measured: list[Start], plain: list[Start]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for figure in ("wall_s", "cpu_s"):
        values = [getattr(start, figure) for start in measured]
        median = statistics.median(values)
        of_plain = statistics.median(getattr(start, figure) for start in plain)
        document[figure] = round(median, 2)
        document[f"{figure}_each"] = [round(value, 2) for value in values]
        document[f"{figure}_to_plain"] = round(median / of_plain, 3)
    document["breakdown_s"] = {
        name: statistics.median(start.breakdown_s[name] for start in measured)
        for name in MILESTONES
        if all(name in start.breakdown_s for start in measured)
    }
    return document


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
