"""The access log: one line per request that runs the model, without prompts and without keys."""

from __future__ import annotations

import contextlib
import json
import sys
import time

from serving.middleware.exchange import Exchange


def write_access(exchange: Exchange, log_format: str) -> None:
    """Write one line to standard error, as text or as JSON."""
    seconds = round(time.monotonic() - exchange.started_s, 4)
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request": exchange.request_id,
        "key": exchange.key_name,
        "method": exchange.scope["method"],
        "path": exchange.scope["path"],
        "status": exchange.status,
        "seconds": seconds,
        "client_left": exchange.client_left,
        **({"adapter": exchange.adapter} if exchange.adapter else {}),
    }
    if log_format == "json":
        line = json.dumps(facts)
    else:
        left = f" adapter={exchange.adapter}" if exchange.adapter else ""
        left += " client left" if exchange.client_left else ""
        line = (
            f"{facts['time']} {facts['method']} {facts['path']} {exchange.status} {seconds:.4f}s"
            f" request={exchange.request_id} key={exchange.key_name}{left}"
        )
    say(line)


def say(line: str) -> None:
    """Write a line to standard error. A log that takes nothing, as on a full disk, fails no
    request."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
