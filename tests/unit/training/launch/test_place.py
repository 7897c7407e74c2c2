"""The variables of torchrun and Kubernetes say which of several processes this is."""

from __future__ import annotations

from typing import Any

import pytest

from training.config.launch import LaunchConfig
from training.launch.place import (
    find_place,
    is_follower,
    is_placed,
    meeting_point,
    node_rank,
)
from tuneline.core.errors import ConfigError

TWO = LaunchConfig(processes=2)
HOSTS = LaunchConfig(processes=1, nodes=2)
GPU_HOSTS = LaunchConfig(processes=8, nodes=2)
MEETING = {"MASTER_ADDR": "train-0-0.train", "MASTER_PORT": "29500"}


def test_a_pod_of_a_job_set_is_one_process() -> None:
    variables = {**MEETING, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert is_placed(HOSTS, variables)
    assert is_follower(HOSTS, variables)
    place = find_place(HOSTS, variables)
    assert (place.rank, place.local_rank, place.size) == (1, 0, 2)
    assert place.address == ("train-0-0.train", 29500)


def test_a_pod_with_several_gpus_starts_its_own_processes() -> None:
    variables = {**MEETING, "RANK": "1", "WORLD_SIZE": "2"}
    assert not is_placed(GPU_HOSTS, variables)
    assert node_rank(GPU_HOSTS, variables) == 1
    assert is_follower(GPU_HOSTS, variables)
    assert meeting_point(GPU_HOSTS, variables) == ("train-0-0.train", 29500)


def test_a_process_of_torchrun_joins_the_others() -> None:
    variables = {**MEETING, "RANK": "9", "WORLD_SIZE": "16"}
    assert is_placed(GPU_HOSTS, variables)
    assert find_place(GPU_HOSTS, variables).local_rank == 1


def test_the_first_host_runs_the_line() -> None:
    launch = GPU_HOSTS.model_copy(update={"rendezvous": "first:29400"})
    assert not is_follower(launch, {"NODE_RANK": "0"})
    assert is_follower(launch, {"NODE_RANK": "1"})
    assert meeting_point(launch, {}) == ("first", 29400)
    in_brackets = launch.model_copy(update={"rendezvous": "[::1]:29400"})
    assert meeting_point(in_brackets, {}) == ("::1", 29400)
    assert not is_follower(TWO, {})
    assert not is_follower(None, {})
    assert not is_placed(None, {"RANK": "0", "WORLD_SIZE": "1"})


@pytest.mark.parametrize(
    ("launch", "variables", "message"),
    [
        (None, {"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2 .* training.launch is not set"),
        (TWO, {"RANK": "0", "WORLD_SIZE": "3"}, "WORLD_SIZE is 3 .*launch has 2 processes"),
        (TWO, {"RANK": "2", "WORLD_SIZE": "2", **MEETING}, "RANK is 2 .* expected 0 to 1"),
        (TWO, {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is missing"),
        (TWO, {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        (
            TWO,
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "p"},
            "MASTER_PORT is 'p'",
        ),
    ],
)
def test_variables_that_do_not_fit_are_named(
    launch: LaunchConfig | None, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        find_place(launch, variables)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [({}, "NODE_RANK is missing"), ({"NODE_RANK": "2"}, "NODE_RANK is 2 .* expects 0 to 1")],
)
def test_a_host_must_know_its_number(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        node_rank(GPU_HOSTS, variables)
