from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest

from serving.config import ServedParityConfig
from serving.parity import (
    proof_fields,
    prove_served,
    require_whole,
    room_of,
    served_continuation,
)
from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.core.tolerances import ARITHMETIC_TOLERANCES

MESSAGES = [{"role": "user", "content": "I cannot log in."}]


def step(token: int, logprob: float, rival: int) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": f"token_id:{token}", "logprob": logprob, "bytes": None}

    return entry(token, logprob) | {"top_logprobs": [entry(token, logprob), entry(rival, -7.5)]}


# The fields of a chat completion of vLLM 0.32 that count here, with return_token_ids and
# return_tokens_as_token_ids; 0 is the stop token.
RESPONSE: dict[str, Any] = {
    "prompt_token_ids": [1, 5, 6],
    "choices": [
        {
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": [9, 8, 0],
            "message": {"role": "assistant", "content": "Reset it."},
            "logprobs": {"content": [step(9, -0.5, 3), step(8, -0.25, 4), step(0, -0.125, 2)]},
        }
    ],
}


def test_a_completion_becomes_a_continuation_with_its_stop_token() -> None:
    assert served_continuation(RESPONSE, MESSAGES, "http://x/v1") == Continuation(
        messages=MESSAGES,
        prompt_token_ids=[1, 5, 6],
        token_ids=[9, 8, 0],
        logprobs=[-0.5, -0.25, -0.125],
        top_logprobs=[{9: -0.5, 3: -7.5}, {8: -0.25, 4: -7.5}, {0: -0.125, 2: -7.5}],
        text="Reset it.",
        finish_reason="stop",
    )


def test_a_request_has_the_calls_of_its_prompt_with_ids_and_text() -> None:
    call = {"type": "function", "function": {"name": "reset", "arguments": {"user": 7}}}
    talk: list[dict[str, Any]]
    talk = [*MESSAGES, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "done"}]  # fmt: skip
    asked = served_continuation(RESPONSE, talk, "http://x/v1")
    sent = proof_fields(asked, {}, max_new_tokens=8, top_logprobs=5)["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"user": 7}'
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]


def test_a_request_shows_the_tools_of_its_prompt() -> None:
    tool = {"type": "function", "function": {"name": "reset", "parameters": {"type": "object"}}}
    plain = served_continuation(RESPONSE, MESSAGES, "http://x/v1")
    with_tools = plain.model_copy(update={"tools": [tool]})
    fields = proof_fields(with_tools, {}, max_new_tokens=8, top_logprobs=5)
    assert fields["tools"] == [tool] and fields["tool_choice"] == "none"
    assert not {"tools", "tool_choice"} & proof_fields(
        plain, {}, max_new_tokens=8, top_logprobs=5
    ).keys()  # fmt: skip


@pytest.mark.parametrize("field", ["prompt_token_ids", "token_ids", "logprobs"])
def test_a_server_that_reports_no_ids_is_refused(field: str) -> None:
    response = copy.deepcopy(RESPONSE)
    holder = response if field == "prompt_token_ids" else response["choices"][0]
    del holder[field]
    with pytest.raises(ServerError, match="no token ids or no log-probabilities"):
        served_continuation(response, MESSAGES, "http://x/v1")


def test_logprobs_that_lack_the_stop_token_are_refused_rather_than_padded() -> None:
    response = copy.deepcopy(RESPONSE)
    response["choices"][0]["logprobs"]["content"].pop()
    with pytest.raises(ServerError, match="2 log-probabilities, 3 tokens"):
        served_continuation(response, MESSAGES, "http://x/v1")


def test_an_answer_cut_off_by_an_error_is_refused() -> None:
    response = copy.deepcopy(RESPONSE)
    response["choices"][0]["finish_reason"] = "abort"
    with pytest.raises(ServerError, match="'abort'"):
        served_continuation(response, MESSAGES, "http://x/v1")


def test_logits_in_place_of_log_probabilities_are_refused() -> None:
    """vLLM's `--logprobs-mode raw_logits` gives them under the same name."""
    response = copy.deepcopy(RESPONSE)
    response["choices"][0]["logprobs"]["content"][1]["logprob"] = 7.25
    with pytest.raises(ServerError, match="log-probability is above 0") as caught:
        served_continuation(response, MESSAGES, "http://x/v1")
    assert "--logprobs-mode raw_logprobs" in str(caught.value.hint)


def test_an_answer_that_the_context_cuts_off_is_refused() -> None:
    whole = served_continuation(RESPONSE, MESSAGES, "http://x/v1")
    cut = whole.model_copy(update={"token_ids": [9, 8], "finish_reason": "length"})
    longer = whole.model_copy(update={"prompt_token_ids": [1, 5, 6, 7, 8]})
    room = room_of([whole, longer], 64)
    require_whole(whole, 64, room)
    require_whole(cut, 2, room)
    with pytest.raises(ServerError, match=r"ends at 5 tokens; expected room for 69") as caught:
        require_whole(cut, 64, room)
    assert "max_model_len=69" in str(caught.value.hint)


def test_a_module_left_out_lies_above_what_a_servers_arithmetic_may_cost() -> None:
    """Measured: vLLM in bfloat16, and the median of the modules left out, by the tables of
    docs/parity.md; maximum, mean and KL."""
    limits = ARITHMETIC_TOLERANCES["bfloat16"]
    assert limits.max_logprob_difference and limits.mean_logprob_difference and limits.mean_kl
    assert 7 * 0.068 < limits.max_logprob_difference < 0.61
    assert 7 * 9.6e-4 < limits.mean_logprob_difference < 0.035 / 4
    assert 7**2 * 1.1e-5 < limits.mean_kl < 6.8e-3 / 4
    assert limits.max_accuracy_drop is not None


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with new_artifact(
        tmp_path / "reference", "reference", config={"max_new_tokens": 4, "top_logprobs": 2}
    ) as draft:
        continuation = served_continuation(RESPONSE, MESSAGES, "")
        write_continuations(draft.dir / REFERENCE_FILE, [continuation])
    with socket.socket() as holder:  # bound, so nobody else listens there
        holder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{holder.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match="cannot be reached") as caught:
            prove_served(
                ServedParityConfig(), open_artifact(tmp_path / "reference"),
                Endpoint(url, "tickets"), tmp_path / "out",
            )  # fmt: skip
    assert url in str(caught.value)
    assert not (tmp_path / "out").exists()
