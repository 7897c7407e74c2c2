"""A unit of systemd that runs `tuneline serve` on a machine without Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneline.core.vllm_limits import VLLM_EXIT_MARGIN_S

MARGIN_S = 15
"""For the end of the supervisor itself."""

UNIT = """\
[Unit]
Description=Tuneline: {name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
WorkingDirectory={directory}
ExecStart={command}
# Lines such as VLLM_API_KEY=...; the file is optional and belongs to its owner only.
EnvironmentFile=-{directory}/{name}.env
Restart=on-failure
RestartSec=10
# A configuration that cannot work is not tried again.
RestartPreventExitStatus=2 3
# Stopped while the model was loading.
SuccessExitStatus=143
# The supervisor ends its server after a drain.
KillMode=mixed
TimeoutStopSec={stop_s}
LimitNOFILE=65536
NoNewPrivileges=yes
UMask=0077

[Install]
WantedBy={target}
"""


def systemd_unit(
    name: str, command: Sequence[str], directory: Path, shutdown_timeout_s: int, *, is_root: bool
) -> str:
    """Return the text of a unit.

    Args:
        name: The name that the model is served as.
        command: The words of the command, which runs in `directory`.
        is_root: Whether the unit is of the system; it is of a user otherwise.
    """
    return UNIT.format(
        name=name.replace("%", "%%"),
        directory=str(directory).replace("%", "%%"),
        command=" ".join(_quoted(word) for word in command),
        stop_s=shutdown_timeout_s + VLLM_EXIT_MARGIN_S + MARGIN_S,
        target="multi-user.target" if is_root else "default.target",
    )


def _quoted(word: str) -> str:
    """Return a word for `ExecStart` (systemd.service(5)): no specifier, no variable, no escape."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$")}"'
