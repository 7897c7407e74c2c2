"""How many bytes an answer may have: more are not of the request that was sent. Pure.

The client keeps every read until the window is over. A server that never ends an answer would fill
the memory within seconds, and the run would be lost. So an answer is given up when it is several
times longer than the longest that the request asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.config import LoadTestConfig
    from loadtest.workload.build import Workload

BASE_BYTES = 2**20
"""The headers, a vector, what a gateway adds."""
BYTES_PER_TOKEN = 2048
"""An event of vLLM takes about 250 bytes, and a read of its own about 200 of memory."""
BYTES_PER_LOGPROB = 512
"""A token among the likely ones, with its bytes and its log-probability."""
WHOLE_VOCABULARY = 2**18
"""Log-probabilities for `logprobs: -1`."""
BYTES_PER_PROMPT_BYTE = 16
"""A server may repeat the prompt, and name its token ids."""
VECTOR_BYTES_PER_PROMPT_BYTE = 32 * 1024
"""`/pooling` may answer with a vector per token of the prompt."""
READ_COST_BYTES = 200
"""Memory that a read takes next to its bytes."""
KEPT_BYTES = 65536
"""Of an answer that is given up; its begin says what came."""


def most_answer_bytes(config: LoadTestConfig, workload: Workload) -> int:
    """Return how many bytes an answer to a request of the workload may have, READ_COST_BYTES for
    each read included."""
    extra = config.extra_body
    tokens = max([*workload.output_tokens, _number(extra.get("max_completion_tokens"))])
    said = max(map(_number, (extra.get("logprobs"), extra.get("top_logprobs"))))
    repeated = _number(extra.get("prompt_logprobs"))
    per_prompt_byte = BYTES_PER_PROMPT_BYTE + repeated * BYTES_PER_LOGPROB
    if config.workload.route == "pooling":
        per_prompt_byte = VECTOR_BYTES_PER_PROMPT_BYTE
    per_token = BYTES_PER_TOKEN + said * BYTES_PER_LOGPROB
    return BASE_BYTES + tokens * per_token + _prompt_bytes(workload) * per_prompt_byte


def _number(value: object) -> int:
    """Return a count that a request asks for; 0 without one."""
    if isinstance(value, bool) or not isinstance(value, int):
        return int(value is True)
    return value if value >= 0 else WHOLE_VOCABULARY


def _prompt_bytes(workload: Workload) -> int:
    """Return the bytes of the longest request; of sessions, those of the longest conversation."""
    sizes = [len(body.encode()) for body in workload.bodies]
    sessions = workload.sessions
    if sessions is None:
        return max(sizes, default=0)
    said = [len(answer.encode()) for answer in sessions.answers] or [0] * len(sizes)
    ends = [0, *accumulate(one + two for one, two in zip(sizes, said, strict=True))]
    spans = pairwise(sessions.offsets)
    return max(ends[end] - ends[begin] for begin, end in spans)


def num_kept(reads: Sequence[tuple[int, bytes | None, bytes]]) -> int:
    """Return how many of the first reads of an answer stay if it is given up."""
    ends = accumulate(len(data) + READ_COST_BYTES for _, _, data in reads)
    return sum(1 for end in ends if end <= KEPT_BYTES)
