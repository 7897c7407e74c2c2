import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.client.prepare import make_plan, plan_digest
from loadtest.config import LoadTestConfig, Scenario
from loadtest.workload.build import build_workload
from loadtest.workload.lengths import draw_lengths
from loadtest.workload.mooncake import mooncake
from loadtest.workload.prompts import read_prompts
from loadtest.workload.sharegpt import sharegpt
from loadtest.workload_config import Length, WorkloadConfig
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import ChatPrompt, Messages, messages_of

PROMPTS: list[Messages] = [
    [{"role": "user", "content": f"question {number}"}] for number in range(10)
]


def config(**workload: Any) -> LoadTestConfig:
    return validate_config(LoadTestConfig, {"workload": workload, "ignore_eos": True}, "test")


def build(
    num_requests: int = 50, seed: int = 0, is_shard: bool = False,
    permutation_seed: int | None = None, **workload: Any,
) -> Any:  # fmt: skip
    return build_workload(
        config(**workload), "m", PROMPTS, seed=seed, num_requests=num_requests, is_shard=is_shard,
        permutation_seed=permutation_seed,
    )  # fmt: skip


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
def test_lengths_follow_their_distribution(distribution: Any) -> None:
    length = Length(distribution=distribution, mean=200, stddev=30, min=2, max=2000)
    drawn = draw_lengths(length, np.random.default_rng(1), 20_000)
    assert np.mean(drawn) == pytest.approx(200, rel=0.01)
    assert np.std(drawn) == pytest.approx(30, rel=0.03)
    skew = np.mean((np.array(drawn) - np.mean(drawn)) ** 3) / np.std(drawn) ** 3
    # A lognormal of this variation has skew 3 cv + cv^3 = 0.45, a normal none.
    assert skew == pytest.approx(0.4534 if distribution == "lognormal" else 0, abs=0.1)
    assert draw_lengths(Length(mean=17), np.random.default_rng(1), 3) == [17, 17, 17]


def test_lengths_that_almost_never_fit_are_refused() -> None:
    length = Length(distribution="normal", mean=100, stddev=1e9, min=99, max=101)
    with pytest.raises(ConfigError, match="almost never"):
        draw_lengths(length, np.random.default_rng(1), 50)


def test_prompts_are_all_used_in_an_order_of_the_seed() -> None:
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    asked = [json.loads(body)["messages"] for body in first.bodies]
    assert sorted(map(str, asked)) == sorted(map(str, PROMPTS))
    assert first.digest == again.digest != other.digest
    assert first.bodies == again.bodies
    body = json.loads(first.bodies[0])
    assert body["stream_options"] == {"include_usage": True}
    assert (body["ignore_eos"], body["min_tokens"], body["max_tokens"]) == (True, 64, 64)


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object"}},
}


@pytest.mark.parametrize(
    ("workload", "tools", "choice"),
    [
        ({}, [TOOL], "none"),
        ({"multi_turn": True}, [TOOL], "none"),
        ({"route": "responses"}, [{"type": "function", **TOOL["function"]}], "none"),
        ({"route": "messages"}, None, {"type": "none"}),
        ({"tools": [{**TOOL, "function": {"name": "own"}}]}, None, None),
    ],
)
def test_a_prompt_is_sent_with_its_tools(
    workload: dict[str, Any], tools: list[Any] | None, choice: Any, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    line = {"messages": PROMPTS[0], "tools": [TOOL]}
    file.write_text(json.dumps(line) + "\n" + json.dumps(PROMPTS[1]) + "\n")
    chosen = validate_config(LoadTestConfig, {"workload": workload}, "test")
    made = build_workload(chosen, "m", read_prompts(file), seed=0, num_requests=2)
    with_own = [body for body in map(json.loads, made.bodies) if "question 0" in json.dumps(body)]
    (other,) = [body for body in map(json.loads, made.bodies) if "question 1" in json.dumps(body)]
    (sent,) = with_own
    assert len(sent["tools"]) == 1
    assert tools is None or sent["tools"] == tools
    assert sent.get("tool_choice") == choice
    assert "tool_choice" not in other and ("tools" in other) is ("tools" in workload)
    plain = build_workload(chosen, "m", PROMPTS[:2], seed=0, num_requests=2)
    assert made.digest != plain.digest


def test_sessions_send_the_tools_of_their_conversation() -> None:
    given: list[ChatPrompt] = [{"messages": PROMPTS[0], "tools": [TOOL]}, PROMPTS[1]]
    chosen = validate_config(
        LoadTestConfig,
        {
            "workload": {"sessions": {}},
            "scenarios": [{"name": "x", "concurrency": 1, "num_requests": 2}],
        },
        "test",
    )
    plan, _ = make_plan(
        chosen, chosen.scenarios[0], Endpoint("http://127.0.0.1:1/v1", "m"), given, seed=0
    )
    assert plan.sessions is not None
    closes = [json.loads("{" + close.removeprefix("], ")) for close in plan.sessions.closes]
    assert sorted(len(close.get("tools", [])) for close in closes) == [0, 1]


def test_tools_of_a_file_that_are_no_tools_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": PROMPTS[0], "tools": [{"name": "look"}]}) + "\n")
    with pytest.raises(
        DataError, match=r"line 1: tool 1 has no type: function with a function\.name"
    ):
        read_prompts(file)


def test_synthetic_prompts_have_exact_lengths_and_shared_prefixes() -> None:
    made = build(
        source="synthetic",
        input_tokens={"distribution": "normal", "mean": 100, "stddev": 10, "min": 60},
        output_tokens={"mean": 12},
        shared_prefix_tokens=40,
        num_prefix_groups=3,
    )
    assert made.path == "completions"
    prompts = [json.loads(body)["prompt"] for body in made.bodies]
    assert len(prompts) == 50
    assert {tuple(prompt[:40]) for prompt in prompts} == {tuple(p[:40]) for p in prompts[:12]}
    assert len({tuple(prompt[:40]) for prompt in prompts}) == 3
    assert len({tuple(prompt) for prompt in prompts}) == 50
    assert all(len(prompt) >= 60 for prompt in prompts)
    assert made.output_tokens == [12] * 50


def test_a_nonce_comes_first_and_differs_in_every_request_and_run() -> None:
    made, again = (build(unique_prompts=True) for _ in range(2))
    texts = [json.loads(body)["messages"][0]["content"] for body in made.bodies + again.bodies]
    assert len({text[:14] for text in texts}) == 2  # a run's own beginning
    assert len({text.split("]")[0] for text in texts}) == 100
    # The same is asked, so the runs can be compared.
    assert made.digest == again.digest
    # Shards have no permutation, and their nonces differ all the same.
    ids: dict[str, Any] = {"source": "synthetic", "input_tokens": {"mean": 20}}
    one, other = (build(**ids, unique_prompts=True, is_shard=True) for _ in range(2))
    begins = [tuple(json.loads(body)["prompt"][:8]) for body in one.bodies + other.bodies]
    assert len(set(begins)) == 100
    assert one.digest == other.digest


def test_token_ids_are_each_runs_own_and_their_shared_prefixes_stay() -> None:
    options: dict[str, Any] = {
        "source": "synthetic",
        "input_tokens": {"distribution": "normal", "mean": 50, "stddev": 5, "min": 30},
        "shared_prefix_tokens": 20,
        "num_prefix_groups": 2,
    }
    made, again, shard, other = (
        build(**options, is_shard=is_shard) for is_shard in (False, False, True, True)
    )
    prompts, more = ([json.loads(body)["prompt"] for body in one.bodies] for one in (made, again))
    assert {len(p) for p in prompts} == {len(p) for p in more}
    assert len({tuple(p[:20]) for p in prompts}) == 2
    assert not {tuple(p[:16]) for p in prompts} & {tuple(p[:16]) for p in more}
    assert all(100 <= one < 1000 for p in prompts + more for one in p)
    assert shard.bodies == other.bodies
    assert made.digest == again.digest == shard.digest
    one, same, third = (build(**options, permutation_seed=number) for number in (1, 1, 2))
    assert one.bodies == same.bodies != third.bodies


def test_adapters_are_mixed_by_their_weights() -> None:
    made = build(num_requests=4000, models={"a": 3, "b": 1})
    assert len(made.models) == 4000
    assert made.models.count("a") / 4000 == pytest.approx(0.75, abs=0.03)
    assert [json.loads(body)["model"] for body in made.bodies] == made.models


def test_turns_are_sent_with_their_history_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
    entry = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    path.write_text(json.dumps([entry, entry]), encoding="utf-8")
    made = build(source="sharegpt", path=str(path), multi_turn=True)
    asked = [json.loads(body)["messages"] for body in made.bodies]
    assert [len(messages) for messages in asked] == [1, 1, 3, 3]
    assert asked[2][1] == {"role": "assistant", "content": "a1"}
    single = build(source="sharegpt", path=str(path))
    assert [len(json.loads(body)["messages"]) for body in single.bodies] == [1, 1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{half", "not valid JSON"),
        ("{}", "expected a list of conversations"),
        ('[{"x": 1}]', "entry 0: expected a list as conversations"),
        ('[{"conversations": [{"from": "human"}]}]', "entry 0: expected turns"),
        ('[{"conversations": [{"from": "gpt", "value": "x"}]}]', "no human turn"),
        (
            '[{"conversations": [{"from": "human", "value": "\\ud83d"}]}]',
            "half of a surrogate pair",
        ),
    ],
)
def test_a_file_that_is_not_sharegpt_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        sharegpt(config(source="sharegpt", path=str(path)).workload, Counter())


@pytest.mark.parametrize(
    ("written", "count"),
    [("[{0}]", 1), ("{0}", 1), ("\ufeff{0}\n{0}\n", 2)],
    ids=["a list", "a single line", "lines with a byte order mark"],
)
def test_a_conversation_has_every_speaker_up_to_a_stranger(
    tmp_path: Path, written: str, count: int
) -> None:
    path = tmp_path / "x.json"
    who = ("Human", "chatgpt", "user", "bard", "human", "observation", "human")
    turns = [{"from": name, "value": name} for name in who]
    path.write_text(written.format(json.dumps({"conversations": turns})), encoding="utf-8")
    left_out: Counter[str] = Counter()
    found = sharegpt(config(source="sharegpt", path=str(path), multi_turn=True).workload, left_out)
    assert len(found) == count
    roles = [message["role"] for message in found[0]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert not left_out


def test_sharegpt_entries_without_a_human_turn_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    said = [[("human", "q")], [("gpt", "a")], [("tool", "t"), ("human", "q")], []]
    entries = [
        {"conversations": [{"from": who, "value": text} for who, text in one]} for one in said
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    found = build_workload(
        config(source="sharegpt", path=str(path)), "m", [], seed=0, num_requests=None
    )
    assert len(found.bodies) == 1
    assert found.left_out == {"the conversation has no turn of the user": 3}


def test_prompts_keep_their_tools_and_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
    ]
    path.write_text("\ufeff" + json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    (found,) = read_prompts(path)
    _, called, answered = messages_of(found)
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert answered == messages[2]
    path.write_text(json.dumps([{"role": "human", "content": "w?"}]), encoding="utf-8")
    with pytest.raises(DataError, match="role is 'human'; expected system"):
        read_prompts(path)
    path.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=1), encoding="utf-8")
    with pytest.raises(DataError, match=r"jq -c '\.\[\]'"):
        read_prompts(path)


@pytest.mark.parametrize(("duration_s", "ends"), [(1.0, False), (1.45, False), (5.0, True)])
def test_a_trace_that_ends_before_its_duration_is_known(
    tmp_path: Path, duration_s: float, ends: bool
) -> None:
    path = tmp_path / "trace.jsonl"
    record = {"input_length": 5, "output_length": 5}
    lines = [json.dumps({"timestamp": 100 * number, **record}) for number in range(20)]
    path.write_text("\n".join(lines), encoding="utf-8")
    scenario = {"name": "x", "arrival": "trace", "duration_s": duration_s}
    values = {"scenarios": [scenario], "num_warmup_requests": 2,
              "workload": {"source": "mooncake", "path": str(path)}}  # fmt: skip
    chosen = validate_config(LoadTestConfig, values, "test")
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, _ = make_plan(chosen, chosen.scenarios[0], endpoint, [], seed=0)
    assert plan.trace_ends is ends
    few = chosen.model_copy(update={"num_warmup_requests": 20})
    with pytest.raises(ConfigError, match="20 arrivals, and 20 of them are warm-up") as caught:
        make_plan(few, few.scenarios[0], endpoint, [], seed=0)
    assert "num_warmup_requests=0" in str(caught.value.hint)


@pytest.mark.parametrize(("streams", "processes"), [(1, 1), (3, 2), (4, 2), (5, 4), (2, 5)])
def test_a_closed_loop_has_its_requests_by_streams(streams: int, processes: int) -> None:
    scenario = Scenario(name="x", concurrency=streams, num_requests=90)
    chosen = LoadTestConfig(num_warmup_requests=10, num_workers=processes)
    plan, _ = make_plan(chosen, scenario, Endpoint("http://a/v1", "m"), PROMPTS, seed=0)
    found: list[int] = []
    for worker in range(processes):
        own = replace(plan, worker=worker)
        numbers = [own.number_of(begun) for begun in range(101 if own.streams else 0)]
        numbers = [number for number in numbers if number < 100]
        assert numbers == sorted(numbers)
        # Each stream has its share, so that no stream waits long for the others at the end.
        assert abs(len(numbers) - 100 / streams * len(own.streams)) < max(len(own.streams), 1)
        found += numbers
    assert sorted(found) == list(range(100))


def test_a_trace_keeps_its_times_lengths_and_shared_blocks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    records = [
        {"timestamp": 2000, "input_length": 700, "output_length": 5, "hash_ids": [1, 3]},
        {"timestamp": 500, "input_length": 1000, "output_length": 9, "hash_ids": [1, 2]},
        {"timestamp": 500, "input_length": 100, "output_length": 0},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    settings = validate_config(
        LoadTestConfig,
        {
            "workload": {"source": "mooncake", "path": str(path)},
            "scenarios": [{"name": "x", "arrival": "trace", "trace_speed": 2, "num_requests": 9}],
            "num_warmup_requests": 0,
        },
        "test",
    )
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, workload = make_plan(settings, settings.scenarios[0], endpoint, [], seed=0)
    assert plan.arrivals_s == [0.0, 0.0, 0.75]
    prompts = [json.loads(body)["prompt"] for body in plan.bodies]
    assert [len(prompt) for prompt in prompts] == [1000, 100, 700]
    assert prompts[0][:512] == prompts[2][:512]
    assert prompts[0][512:700] != prompts[2][512:700]
    assert workload.output_tokens == [9, 1, 5]
    path.write_text('{"timestamp": 1}\n{half\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: .*missing required field") as error:
        make_plan(settings, settings.scenarios[0], endpoint, [], seed=0)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hash_ids": ["x"]}, "hash_ids"),
        ({"hash_ids": [-1]}, "hash_ids"),
        ({"input_length": 10**400}, "line 1"),
        ({"input_length": -1}, "input_length"),
        ({"timestamp": None}, "timestamp"),
        ({"timestamp": float("nan")}, "line 1"),
        ({"timestamp": 1e300}, "timestamp"),
    ],
)
def test_a_line_that_is_not_part_of_a_trace(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    record = {"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]}
    path.write_text(json.dumps(record | change) + "\n")
    config = WorkloadConfig(source="mooncake", path=path)
    with pytest.raises(DataError, match=problem):
        mooncake(config, path)


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    odd = "one\u2028two\u0085three"
    path.write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\r\n\n", "utf-8")
    assert read_prompts(path) == [[{"role": "user", "content": odd}]]
    path.write_text(json.dumps({"prompt": "half a pair \ud800"}) + "\n", "utf-8")
    with pytest.raises(DataError, match="line 1: message 1: content is not text"):
        read_prompts(path)


def test_the_plans_digest_follows_requests_and_times_and_not_the_server() -> None:
    scenario = Scenario(name="x", rate_rps=5.0, num_requests=20)

    def digest(url: str = "http://a/v1", model: str = "m", seed: int = 0, **more: Any) -> str:
        plan, workload = make_plan(
            LoadTestConfig(**more), scenario, Endpoint(url, model), PROMPTS, seed=seed
        )
        return plan_digest(plan, workload)

    base = digest()
    assert base == digest(url="https://b:1/x/v1", model="other")
    assert len({base, digest(seed=1), digest(max_tokens=9), digest(num_warmup_requests=1)}) == 4


@pytest.mark.parametrize(
    ("workload", "problem"),
    [
        ({"source": "sharegpt"}, "path goes with"),
        ({"source": "synthetic"}, "input_tokens goes with"),
        ({"shared_prefix_tokens": 3}, "go together"),
        ({"models": {}}, "at least one name"),
        (
            {
                "source": "synthetic",
                "input_tokens": {"mean": 9},
                "shared_prefix_tokens": 9,
                "num_prefix_groups": 1,
            },
            "expected less than input_tokens.mean, 9",
        ),
        ({"source": "synthetic", "input_tokens": {"mean": 5}, "multi_turn": True}, "multi_turn"),
        ({"output_tokens": {"mean": 5, "stddev": 2}}, "fixed has none"),
        ({"output_tokens": {"mean": 5, "max": 4}}, "outside"),
    ],
)
def test_a_workload_that_contradicts_itself_is_refused(
    workload: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(**workload)
