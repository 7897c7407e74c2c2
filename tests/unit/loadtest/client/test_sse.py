"""One recorded stream, cut in every possible way, holds the same answer."""

import itertools
import json
import random
from collections.abc import Iterable

import pytest

from loadtest.client.answer import Answer
from loadtest.client.sse import parse_response
from loadtest.client.sse_decoder import SseDecoder

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str, **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None} | more
    return {"choices": [choice]}


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}})
DONE = b"data: [DONE]\n\n"
TEXTS = ["안녕", " 🙂🙂", 'a"\\n']
EVENTS = [ROLE, *(event(delta(text)) for text in TEXTS), FINISH, USAGE, DONE]
STREAM = HEAD + b"".join(chunk(piece) for piece in EVENTS) + b"0\r\n\r\n"


def parse(pieces: Iterable[bytes], *, closed: bool = False) -> Answer:
    pieces = list(pieces)
    return parse_response(range(len(pieces)), pieces, closed=closed, keep_text=True)


def test_a_stream_cut_at_every_position_holds_the_same_answer() -> None:
    whole = parse([STREAM])
    assert whole.error is None and whole.done
    assert whole.text == "".join(TEXTS)
    assert (whole.completion_tokens, whole.prompt_tokens, whole.finish_reason) == (4, 5, "stop")
    assert whole.num_merged_events == 2
    for cut in range(1, len(STREAM)):
        answer = parse([STREAM[:cut], STREAM[cut:]])
        assert answer.error is None
        assert (answer.text, len(answer.token_times)) == (whole.text, 3)
        assert answer.completion_tokens == 4
    assert len(STREAM) > 500


def test_each_event_takes_the_time_of_the_read_that_ends_it() -> None:
    ends = []
    position = len(HEAD)
    for piece in EVENTS:
        position += len(chunk(piece)) - 2  # the event is whole before the chunk's own line end
        ends.append(position)
        position += 2
    answer = parse(STREAM[place : place + 1] for place in range(len(STREAM)))
    assert answer.token_times == [end - 1 for end in ends[1:4]]
    assert answer.finish_time == ends[4] - 1
    assert answer.num_merged_events == 0


def test_a_read_that_looks_like_a_whole_chunk_and_is_none() -> None:
    # An empty line inside of a chunk, at the end of a read; sizes in either case, and zeros before.
    two = event(delta("a")) + b"\r\n" + event(delta("b"))
    one = event(delta("c"))
    data = b"%X\r\n%b\r\n" % (len(two), two) + b"00%x\r\n%b\r\n" % (len(one), one)
    stream = body(ROLE) + data + body(DONE).removeprefix(HEAD) + END
    for cut in range(len(body(ROLE)), len(stream)):
        answer = parse([body(ROLE), stream[len(body(ROLE)) : cut], stream[cut:]])
        assert (answer.error, answer.text) == (None, "abc")
    # A carriage return ends a line, too: what follows is another field.
    one = b"data: " + json.dumps(delta("x")).encode() + b"\rid: 1\n\n"
    answer = parse([body(ROLE), chunk(one), chunk(DONE) + END])
    assert (answer.error, answer.text) == (None, "x")


TEXTS_OF_EVENTS = ["a", "b", "", "안녕", 'say "x"', "\n", "\\", "\x7f", "[DONE]", "assistant"]
SHAPES = [
    b'{"choices": [{"delta": {"content": %b}}]}',
    b'{"choices": [{"text": %b}]}',
    b'{"choices": [{"delta": {"content": null, "reasoning": %b}}]}',
    b'{"choices": [{"delta": {"content": "a", "reasoning": %b}}]}',
    b'{"id": "a", "choices": [{"delta": {"content": %b}}]}',
    b'{"choices": [{"logprobs": {"token": %b}, "delta": {"content": "a"}}]}',
    b'{"choices": [{"delta": {"content": %b}, "finish_reason": "length"}]}',
    b'{"choices": [{"delta": {"content": %b}}], "usage": {"completion_tokens": 7}}',
    b'{"choices": [{"delta":\ndata: {"content": %b}}]}',
]
ODD_EVENTS = [
    b'{"choices": [{"delta": {"content": "\xff"}}]}',
    b'{"choices": [{"delta": {"content": "a\tb"}}]}',
    b'{"choices": [{"delta": {"content": "a","content": "b"}}]}',
    b'{"choices": [{"delta":\n{"content": "a"}}]}',
    b'{"choices": [{"delta": {"content": "a"}}]} ',
    b'{"choices": [{"delta": {"content": \n"a"}}]}',
    b'{"choices": [{"delta": {"content": "a"}}], "error": {"message": "dead"}}',
    b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "abort"}]}',
]


@pytest.mark.parametrize("seed", range(400))
def test_events_that_are_alike_are_taken_for_what_they_say(seed: int) -> None:
    rng = random.Random(seed)
    shapes = rng.sample(SHAPES, 2)
    payloads = []
    for _ in range(12):
        text = json.dumps(rng.choice(TEXTS_OF_EVENTS), ensure_ascii=rng.random() < 0.5)
        payloads.append(rng.choices(shapes, [4, 1])[0] % text.encode())
    if rng.random() < 0.5:
        payloads.insert(rng.randrange(12), rng.choice(ODD_EVENTS))
    events = [b"data: %b\n\n" % payload for payload in payloads]
    pieces = [HEAD, chunk(ROLE), *map(chunk, events), chunk(DONE), END]
    stream = b"".join(pieces)
    # An event to a read, against one byte to a read, where no event comes as a whole.
    by_event, by_byte = parse(pieces), parse(stream[at : at + 1] for at in range(len(stream)))
    ends = list(itertools.accumulate(map(len, pieces)))
    # Its own line end brings an event, two bytes before the chunk's.
    assert by_byte.token_times == [ends[place] - 3 for place in by_event.token_times]
    if by_event.finish_time is not None:
        assert by_byte.finish_time == ends[by_event.finish_time] - 3
    for name in ("error", "message", "text", "finish_reason", "done", "completion_tokens",
                 "token_counts", "num_merged_events"):  # fmt: skip
        assert getattr(by_event, name) == getattr(by_byte, name), name


def test_a_line_without_a_field_name_is_not_part_of_an_event() -> None:
    two_lines = b'data: {"choices": [{"delta":\ndata: {"content": "a"}}]}\n\n'
    broken = two_lines.replace(b"\ndata: ", b"\n")
    answer = parse([HEAD, chunk(ROLE), chunk(two_lines), chunk(broken), chunk(DONE), END])
    assert (answer.error, answer.text) == ("invalid_sse", "a")


def test_random_cuts_into_many_pieces() -> None:
    rng = random.Random(4)
    for _ in range(200):
        cuts = sorted(rng.sample(range(1, len(STREAM)), rng.randint(1, 40)))
        bounds = [0, *cuts, len(STREAM)]
        answer = parse(STREAM[a:b] for a, b in itertools.pairwise(bounds))
        assert answer.error is None
        assert answer.text == "".join(TEXTS)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_comments_and_data_of_several_lines(end: bytes) -> None:
    lines = [b": comment", b"event: x", b'data: {"a":', b"data:1}", b"", b"", b"data: [DONE]", b""]
    stream = b"".join(line + end for line in lines) + b": more" + end
    whole = SseDecoder()
    expected = [b'{"a":\n1}', b"[DONE]"]
    assert whole.feed(stream) == expected
    for cut in range(1, len(stream)):
        decoder = SseDecoder()
        assert decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) == expected


def usage(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": num_tokens}})


def body(*pieces: bytes) -> bytes:
    return HEAD + b"".join(chunk(piece) for piece in pieces)


END = b"0\r\n\r\n"


CLOSED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
GZIP_HEAD = HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer")


@pytest.mark.parametrize(
    ("response", "closed", "error"),
    [
        (body(*EVENTS[:3]), True, "truncated_stream"),
        (body(*EVENTS[:4]) + END, False, "truncated_stream"),
        (body(ROLE, FINISH, USAGE.replace(b"4", b"0")) + END, False, "truncated_stream"),
        (CLOSED_HEAD + b"".join(EVENTS[:-1]), True, "truncated_stream"),
        (GZIP_HEAD + chunk(b"\x1f\x8b\x08\x00\x1b[31m") + END, False, "compressed_body"),
        (
            body(*EVENTS[:3], event(delta("", finish_reason="error")), DONE) + END,
            False,
            "error_event",
        ),
        (body(ROLE, b"data: {half\n\n", DONE) + END, False, "invalid_sse"),
        (body(ROLE, b"data: [1]\n\n", DONE) + END, False, "invalid_sse"),
        (body(ROLE, b"data: \xff\n\n", DONE) + END, False, "invalid_sse"),
        (
            body(ROLE, b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', DONE) + END,
            False,
            "invalid_sse",
        ),
        (body(ROLE, b'data: {"object": "\xff"}\n\n', DONE) + END, False, "invalid_sse"),
        (body(ROLE, b'data: {"code": 1e999}\n\n', DONE) + END, False, "invalid_sse"),
        (body(ROLE, event({"object": "error"}), DONE) + END, False, "error_event"),
        (body(ROLE, event({"error": {"message": "dead"}}), DONE) + END, False, "error_event"),
        (body(ROLE, event({"code": 500, "message": "dead"}), DONE) + END, False, "error_event"),
        (body(*EVENTS[:3], event(delta("", finish_reason="abort")), DONE) + END, False, "aborted"),
        (body(ROLE, FINISH, DONE) + END, False, "empty_answer"),
        (body(ROLE, USAGE, DONE) + END, False, "empty_answer"),
        (body(ROLE, FINISH, usage(-5), DONE) + END, False, "empty_answer"),
        (body(ROLE, FINISH, usage(64), DONE) + END, False, "empty_answer"),
        (body(ROLE, FINISH, usage(10**400), DONE) + END, False, "empty_answer"),
        (body(ROLE, b'data: {"x": ' + b"[" * 20000 + b"\n\n", DONE) + END, False, "invalid_sse"),
        (b"HTTP/1.1 200" + b"0" * 5000 + b" OK\r\n\r\n", False, "protocol_error"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            False,
            "protocol_error",
        ),
        (body(ROLE) + b"0x3\r\nabc\r\n", False, "protocol_error"),
        (body(b'{"choices": []}') + END, False, "not_a_stream"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}", False, "http_500"),
        (b"", True, "connection_reset"),
        (b"SMTP ready\r\n", True, "protocol_error"),
    ],
)
def test_each_failure_has_its_class(response: bytes, closed: bool, error: str) -> None:
    for cut in range(1, max(len(response), 2), 1 + len(response) // 2000):
        pieces = [piece for piece in (response[:cut], response[cut:]) if piece]
        assert parse(pieces, closed=closed).error == error


def test_a_single_stop_token_is_an_answer() -> None:
    answer = parse([body(ROLE), chunk(FINISH), chunk(usage(1)), chunk(DONE), END])
    assert (answer.error, answer.token_times, answer.finish_time) == (None, [], 1)


def test_an_error_of_brackets_is_its_first_bytes() -> None:
    words = b"[" * 20000
    answer = parse([b"HTTP/1.1 500 X\r\nContent-Length: 20000\r\n\r\n" + words])
    assert (answer.error, answer.message) == ("http_500", "[" * 200)


def test_an_error_keeps_the_servers_words_and_its_retry_after() -> None:
    body = b'{"error": {"message": "slow down"}}'
    head = b"HTTP/1.1 429 X\r\nRetry-After: 2\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = parse([head + body])
    assert (answer.error, answer.message, answer.retry_after_s) == ("http_429", "slow down", 2.0)
    assert parse([b"HTTP/1.1 503 X\r\nRetry-After: Wed, 21 Oct\r\nContent-Length: 0\r\n\r\n"])


def test_reasoning_tool_calls_and_completions_are_tokens() -> None:
    documents = [
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]},
        {"choices": [{"text": "plain"}]},
        {"choices": [{"delta": {"refusal": "I will not"}}]},
        {"choices": [{"delta": {"function_call": {"arguments": "{"}}}]},
        {"choices": [{"delta": {"content": None}}]},
    ]
    answer = parse([body(*map(event, documents), DONE) + END])
    assert answer.error is None
    assert len(answer.token_times) == 5


def test_usage_in_every_event_gives_the_tokens_of_each() -> None:
    documents = [{**delta("ab"), "usage": {"completion_tokens": n}} for n in (3, 5, 9)]
    answer = parse([body(*map(event, documents), DONE) + END])
    assert answer.token_counts == [3, 5, 9]


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 1, 1), (4, 4, 4), (3, 5, 9), (2, 1, 4)], ids=str)
def test_a_usage_in_every_event_that_does_not_count_gives_no_counts(
    counts: tuple[int, ...],
) -> None:
    documents = [{**delta("ab"), "usage": {"completion_tokens": n}} for n in counts]
    answer = parse([body(*map(event, documents), FINISH, USAGE, DONE) + END])
    assert len(answer.token_times) == 3 and answer.completion_tokens == 4
    assert answer.token_counts == []


def test_a_byte_order_mark_at_the_start_is_not_part_of_the_event() -> None:
    stream = b"\xef\xbb\xbfdata: one\n\ndata: two\n\n"
    for cut in range(len(stream) + 1):
        decoder = SseDecoder()
        assert decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) == [b"one", b"two"]
    # Only one, and only at the start.
    assert SseDecoder().feed(b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n") == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_whole_with_its_last_line_end(end: bytes) -> None:
    pieces = [piece.replace(b"\n", end) for piece in EVENTS]
    assert [len(SseDecoder().feed(piece)) for piece in pieces] == [1] * len(EVENTS)
    answer = parse([body(*pieces) + END])
    assert (answer.error, answer.text) == (None, "".join(TEXTS))
    answer = parse([HEAD, *(chunk(piece) for piece in pieces), END])
    assert answer.token_times == [2, 3, 4]


def test_words_of_the_server_can_be_written_to_a_file() -> None:
    words = b'{"error": {"message": "half a pair: \\ud800"}}'
    head = b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n" % len(words)
    assert parse([head + words]).message.encode() == b"half a pair: ?"
    answer = parse([body(b'data: {"error": "\\ud800"}\n\n', DONE) + END])
    assert answer.error in ("error_event", "invalid_sse")
    answer.message.encode()
    answer = parse([body(b'data: {"choices": [{"text": "a\\ud800"}]}\n\n', DONE) + END])
    answer.text.encode()
    answer.message.encode()


@pytest.mark.parametrize(
    "end", [END, chunk(b"data: [DONE]") + END, chunk(b"data: [DONE]\n") + END], ids=str
)
def test_a_finish_reason_and_a_whole_body_make_an_answer_without_done(end: bytes) -> None:
    answer = parse([body(*EVENTS[:-1]) + end])
    assert (answer.error, answer.without_done, answer.text) == (None, True, "".join(TEXTS))
    with_done = parse([STREAM])
    assert (with_done.error, with_done.without_done) == (None, False)


@pytest.mark.parametrize("done", [b"data: [DONE] \n\n", b"data:[DONE]\n\n", b"data:  [DONE]\t\n\n"])
def test_blanks_around_done_do_not_count(done: bytes) -> None:
    answer = parse([body(*EVENTS[:-1], done) + END])
    assert (answer.error, answer.done, answer.without_done) == (None, True, False)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (6, 6), (6.0, 6), (0, 0), (-1, None), (6.5, None), ("6", None), (True, None), (None, None),
        (2**60, None), ([6], None),
    ],
)  # fmt: skip
def test_a_count_that_is_no_whole_number_is_unknown(sent: object, read: int | None) -> None:
    usage = {"completion_tokens": sent, "prompt_tokens": sent}
    usage["prompt_tokens_details"] = {"cached_tokens": sent}
    answer = parse([body(*EVENTS[:4], event({"choices": [], "usage": usage}), DONE) + END])
    assert answer.error is None
    assert (answer.completion_tokens, answer.prompt_tokens) == (read, read)
    assert answer.cached_tokens == read


def test_text_in_parts_is_text() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": " yes"}]
    answer = parse([body(event({"choices": [{"delta": {"content": parts}}]}), DONE) + END])
    assert (answer.error, answer.text) == (None, "hm yes")


def test_words_of_the_server_hold_no_control_characters() -> None:
    words = b"<html>\x1b[31mBad\r\nGateway\x07</html>"
    head = b"HTTP/1.1 502 X\r\nContent-Length: %d\r\n\r\n" % len(words)
    message = parse([head + words]).message
    assert message == "<html>\ufffd[31mBad  Gateway\ufffd</html>"
    answer = parse([GZIP_HEAD + chunk(b"\x1f\x8b\x1b[31m") + END])
    assert answer.message == "compressed (gzip), although the request asks for identity"


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 64 tokens. However, your prompt contains 90.",
        "request (9412 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.",
        "The input (99 tokens) is longer than the model's context length (64 tokens).",
    ],
)
def test_a_prompt_beyond_the_context_has_its_class(words: str) -> None:
    said = json.dumps({"error": {"message": words, "code": 400}}).encode()
    head = b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n" % len(said)
    answer = parse([head + said])
    assert (answer.error, answer.message) == ("context_exceeded", words[:200])
    assert parse([head.replace(b"400", b"500") + said]).error == "http_500"


def test_an_answer_names_its_model() -> None:
    answer = parse(
        [body(*(event({**delta("a"), "model": name}) for name in ("m1", "m2")), DONE) + END]
    )
    assert (answer.error, answer.model) == (None, "m1")
    assert parse([STREAM]).model == ""


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [2, 3, 0, 1, 4]])
def test_the_content_of_an_answer_has_no_reasoning_and_no_tool_call(order: list[int]) -> None:
    deltas: list[dict[str, object]] = [
        {"reasoning_content": "think"}, {"reasoning_content": "more"}, {"content": "yes "},
        {"content": "sir"}, {"tool_calls": [{"index": 0}]},
    ]  # fmt: skip
    reads = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for delta in deltas:
        event = b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"
        reads.append(b"%x\r\n%b\r\n" % (len(event), event))
    taken = [reads[0], *(reads[1 + place] for place in order)]
    answer = parse_response(range(len(taken)), taken, keep_text=True)
    assert answer.content == "yes sir"
    assert len(answer.token_times) == 5
