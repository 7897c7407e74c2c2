"""The readers of conversations, by `workload.source`."""

from __future__ import annotations

from collections.abc import Callable

from loadtest.workload.content import Wanted
from loadtest.workload.sessions import messages, mooncake, otel, recorded, sharegpt, weka
from loadtest.workload.sessions.conversation import Conversation

Reader = Callable[[Wanted], list[Conversation]]

READERS: dict[str, Reader] = {
    "prompts": messages.read_given,
    "messages": messages.read_file,
    "sharegpt": sharegpt.read,
    "mooncake": mooncake.read,
    "otel": otel.read,
    "weka": weka.read,
    "recorded": recorded.read,
}
