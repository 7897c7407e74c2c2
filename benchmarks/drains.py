"""Count the requests that a server loses while it ends: SIGTERM under load, again and again.

    python benchmarks/drains.py [--rounds 10] [--streams 32]

Each round starts `tuneline serve` on the tiny base, opens long streams, sends a short request every
8 ms across the signal, half of them as streams, and sends SIGTERM. Every answer that the server
began with 200 must be whole. A request may be refused with 503 and `Retry-After`, or find the port
closed after the server is gone; neither was accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
BODY = {"model": "tiny-base", "messages": [{"role": "user", "content": "The printer is jammed."}]}


async def one_request(
    client: httpx.AsyncClient,
    url: str,
    max_tokens: int,
    stream: bool,
    started: asyncio.Event | None = None,
) -> str:
    """Send a request; return whole, lost, refused, failed or closed."""
    body = {**BODY, "max_tokens": max_tokens, "stream": stream, "ignore_eos": max_tokens > 100}
    try:
        async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            if response.status_code == 503 and "retry-after" in response.headers:
                await response.aread()
                return "refused"
            if response.status_code != 200:
                return f"status {response.status_code}"
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if started is not None and '"content":"' in text:
                    started.set()
    except httpx.ConnectError:
        return "closed"
    except httpx.HTTPError as error:
        return f"lost ({type(error).__name__})"
    if stream:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        reasons = [
            choice["finish_reason"] for event in events for choice in event.get("choices", [])
        ]
        is_whole = bool(reasons) and reasons[-1] in ("stop", "length") and "[DONE]" in text
    else:
        choice = json.loads(text)["choices"][0]
        is_whole = choice["finish_reason"] in ("stop", "length") and choice["message"]["content"]
    return "whole" if is_whole else "lost (empty)"


async def one_round(url: str, pid: int, streams: int) -> tuple[Counter[str], Counter[str], float]:
    """Return what became of the open streams, of the short requests, and the seconds to the end of
    the last answer."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
        started = [asyncio.Event() for _ in range(streams)]
        long = [
            asyncio.create_task(one_request(client, url, 400, True, event)) for event in started
        ]
        await asyncio.gather(*(event.wait() for event in started))
        short: list[asyncio.Task[str]] = []
        for number in range(150):
            if number == 75:
                os.kill(pid, signal.SIGTERM)
                signalled_s = time.monotonic()
            task = one_request(client, url, 4, number % 2 == 0)
            short.append(asyncio.create_task(task))
            await asyncio.sleep(0.008)
        open_ones, short_ones = Counter(await asyncio.gather(*long)), await asyncio.gather(*short)
        return open_ones, Counter(short_ones), time.monotonic() - signalled_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=32)
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            program = (
                "import sys; from pathlib import Path; from serving import serve_model\n"
                "from serving.config import ServingConfig\n"
                "from tuneline.core.config import validate_config\n"
                "from tuneline.models.source import resolve_model\n"
                "values = dict(dtype='float32', enforce_eager=True, cpu_kvcache_space_gib=1,"
                " max_model_len=1024, shutdown_timeout=120)\n"
                "say = lambda server: print(server.endpoint.url, flush=True)\n"
                "sys.exit(serve_model(validate_config(ServingConfig, values, 'benchmark'),"
                " resolve_model('tiny-base'), name='tiny-base', log_path=Path(sys.argv[1]),"
                " on_ready=say))"
            )
            command = [sys.executable, "-P", "-c", program, f"{folder}/vllm.log"]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                assert url, "the server did not start"
                begun_s = time.monotonic()
                open_ones, short_ones, answered_s = asyncio.run(
                    one_round(url, server.pid, options.streams)
                )
                code = server.wait(timeout=180)
                gone_s = time.monotonic() - begun_s
        totals.update(open_ones)
        totals.update(short_ones)
        print(
            f"round {number + 1}: streams {dict(open_ones)}, short requests {dict(short_ones)}, "
            f"last answer {answered_s:.1f} s after the signal, all {gone_s:.1f} s, exit {code}",
            flush=True,
        )
    accepted = sum(count for what, count in totals.items() if what not in ("refused", "closed"))
    lost = accepted - totals["whole"]
    print(f"{options.rounds} drains: {accepted} accepted, {lost} lost; {dict(totals)}")
    sys.exit(0 if lost == 0 else 1)


if __name__ == "__main__":
    main()
