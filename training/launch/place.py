"""Where a process is among the others, by the variables of torchrun and Kubernetes."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from training.config.launch import LaunchConfig
from tuneline.core.errors import ConfigError

STORE_FILE = "TUNELINE_RENDEZVOUS_FILE"
"""The file in which processes of one host meet, in place of a port."""


@dataclass(frozen=True)
class Place:
    """One process of a training.

    Attributes:
        rank: Its number among all processes.
        local_rank: Its number on this host, which is the number of its GPU.
        size: The number of processes.
        address: Host and port of rank 0; None on a single host that has a file to meet in.
        file: That file.
    """

    rank: int
    local_rank: int
    size: int
    address: tuple[str, int] | None
    file: str | None = None

    @property
    def title(self) -> str:
        """The process in the words of messages."""
        return f"rank {self.rank} on {socket.gethostname()}"


def is_placed(launch: LaunchConfig | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process was started as one of several, each of which trains."""
    several = "RANK" in environment and environment.get("WORLD_SIZE", "1") != "1"
    return several and not _names_host(launch, environment)


def _names_host(launch: LaunchConfig | None, environment: Mapping[str, str]) -> bool:
    """Return whether RANK and WORLD_SIZE count hosts, each of which starts several processes."""
    return (
        launch is not None
        and launch.processes > 1
        and launch.nodes > 1
        and environment.get("WORLD_SIZE") == str(launch.nodes)
    )


def find_place(launch: LaunchConfig | None, environment: Mapping[str, str] = os.environ) -> Place:
    """Return the place of this process.

    Raises:
        ConfigError: The variables are incomplete, or name another number of processes than
            `training.launch`.
    """
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if launch is None or launch.world_size != size:
        given = "is not set" if launch is None else f"has {launch.world_size} processes"
        raise ConfigError(
            f"WORLD_SIZE is {size} in the environment; training.launch {given}",
            hint=f"Set training.launch: {{processes: {size}}}, or processes and nodes that make "
            f"{size}; or unset RANK and WORLD_SIZE.",
        )
    if not 0 <= rank < size:
        raise ConfigError(f"RANK is {rank} in the environment; expected 0 to {size - 1}")
    local_rank = rank % launch.processes
    if "LOCAL_RANK" in environment:
        local_rank = _number(environment, "LOCAL_RANK")
    if STORE_FILE in environment:
        return Place(rank, local_rank, size, None, environment[STORE_FILE])
    address = (_text(environment, "MASTER_ADDR"), _number(environment, "MASTER_PORT"))
    return Place(rank, local_rank, size, address)


def node_rank(launch: LaunchConfig, environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this host.

    Raises:
        ConfigError: There are several hosts, and NODE_RANK does not say which one this is.
    """
    if launch.nodes == 1:
        return 0
    name = "RANK" if _names_host(launch, environment) else "NODE_RANK"
    number = _number(environment, name)
    if not 0 <= number < launch.nodes:
        raise ConfigError(
            f"{name} is {number} in the environment; training.launch.nodes: {launch.nodes} "
            f"expects 0 to {launch.nodes - 1}"
        )
    return number


def meeting_point(
    launch: LaunchConfig, environment: Mapping[str, str] = os.environ
) -> tuple[str, int]:
    """Return host and port at which the processes of several hosts meet.

    Raises:
        ConfigError: Neither `training.launch.rendezvous` nor the environment names it.
    """
    if launch.rendezvous is not None:
        host, _, port = launch.rendezvous.rpartition(":")
        return host.strip("[]"), int(port)  # an IPv6 address has brackets in front of a port
    return _text(environment, "MASTER_ADDR"), _number(environment, "MASTER_PORT")


def is_follower(launch: LaunchConfig | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether another process runs the line, and this one helps it to train.

    Raises:
        ConfigError: A variable is not a number.
    """
    if is_placed(launch, environment):
        return _number(environment, "RANK") > 0
    return launch is not None and launch.nodes > 1 and node_rank(launch, environment) > 0


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ConfigError(
            f"{name} is missing in the environment; a process of several needs it",
            hint="Set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun does; or "
            "training.launch.rendezvous in run.yaml, and NODE_RANK on each host.",
        )
    return environment[name]


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment; expected a number")
    return int(text)
