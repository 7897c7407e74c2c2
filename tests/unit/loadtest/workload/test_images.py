"""Images in requests: their pixels, their places, their counts, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtest.client.prepare import make_plan
from loadtest.config import LoadTestConfig
from loadtest.workload import images as images_module
from loadtest.workload.build import Workload
from loadtest.workload.images import count_images, data_url, png
from loadtest.workload.prompts import read_prompts
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import messages_of

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(5)]
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
]
SMALL = data_url(png(2, 2, np.random.default_rng(0)))


def built(given: list[Any], num_requests: int = 10, **workload: Any) -> tuple[list[Any], Workload]:
    config = validate_config(
        LoadTestConfig,
        {
            "workload": workload, "num_warmup_requests": 0,
            "scenarios": [{"name": "x", "rate_rps": 5.0, "num_requests": num_requests}],
        },
        "test",
    )  # fmt: skip
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    plan, made = make_plan(config, config.scenarios[0], endpoint, given, seed=3)
    return plan.bodies, made


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4, 4), (5, 3), (512, 384), (17, 64)])
def test_pillow_reads_the_pixels_of_each_size(width: int, height: int) -> None:
    data = png(width, height, np.random.default_rng(7))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
        pixels = np.asarray(image)
    colours = np.random.default_rng(7).integers(
        0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8
    )
    rows, columns = np.arange(height) // 4, np.arange(width) // 4
    assert (pixels == colours[rows][:, columns]).all()
    assert len(data) < 200 + 0.35 * width * height


def test_each_request_brings_images_after_its_text() -> None:
    bodies, made = built(PROMPTS, images={"width": 8, "height": 6, "count": 2})
    contents = [json.loads(body)["messages"][0]["content"] for body in bodies]
    assert len(contents) == 5
    for content in contents:
        assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
        assert content[0]["text"].startswith("question ")
        for part in content[1:]:
            head, data = part["image_url"]["url"].split(",")
            assert head == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                assert image.size == (8, 6)
    urls = [part["image_url"]["url"] for content in contents for part in content[1:]]
    assert len(set(urls)) == 10
    assert made.images == [(2, sum(map(len, urls[n : n + 2]))) for n in range(0, 10, 2)]


def test_images_follow_the_seed_unless_prompts_are_unique() -> None:
    size = {"width": 8, "height": 8}
    (first, one), (again, two) = built(PROMPTS, images=size), built(PROMPTS, images=size)
    assert first == again
    assert one.digest == two.digest != built(PROMPTS)[1].digest
    unique, _ = built(PROMPTS, images=size, unique_prompts=True)
    other, _ = built(PROMPTS, images=size, unique_prompts=True)
    contents = [json.loads(body)["messages"][0]["content"] for body in [*unique, *other]]
    assert len({content[1]["image_url"]["url"] for content in contents}) == 20
    assert all(content[0]["text"].startswith("[") for content in contents)


def first_users(bodies: list[str]) -> list[str]:
    """Return the first message of the user in each body, as JSON."""
    asked = [json.loads(body)["messages"] for body in bodies]
    return [json.dumps(next(m for m in one if m["role"] == "user")) for one in asked]


def test_the_turns_of_a_conversation_have_the_same_images() -> None:
    other = [{"role": "user", "content": "another"}]
    bodies, _ = built([TALK, other], images={"width": 8, "height": 8}, multi_turn=True)
    first, third, second = first_users(bodies)  # the two conversations take turns
    assert first == second != third
    assert "image_url" in first


def test_a_prompt_that_repeats_has_its_image_again() -> None:
    size = {"width": 8, "height": 8}
    bodies, _ = built(PROMPTS[:1], images=size, output_tokens={"mean": 5})
    assert len(bodies) == 10
    assert len(set(first_users(bodies))) == 1
    bodies, _ = built(PROMPTS[:2], images=size, models={"a": 1, "b": 1})
    assert len(bodies) == 10
    assert len(set(first_users(bodies))) == 2


def test_a_conversation_has_its_images_in_its_first_turn_and_counts_them_in_each() -> None:
    bodies, made = built([TALK], images={"width": 4, "height": 4}, sessions={})
    system, first = json.loads(f"[{bodies[0]}]")
    assert system == TALK[0]
    assert [part["type"] for part in first["content"]] == ["text", "image_url"]
    assert json.loads(bodies[1]) == TALK[3]
    size = len(first["content"][1]["image_url"]["url"])
    assert made.images == [(1, size), (1, size)]


PARTS = [
    {"type": "text", "text": "what is it?", "cache_control": {"type": "x"}},
    {"type": "image_url", "image_url": {"url": SMALL, "detail": "low", "more": 1}},
    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
]


@pytest.mark.parametrize(
    ("route", "key", "expected"),
    [
        (
            "chat", "messages",
            [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": SMALL, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            ],
        ),
        (
            "responses", "input",
            [
                {"type": "input_text", "text": "what is it?"},
                {"type": "input_image", "image_url": SMALL, "detail": "low"},
                {
                    "type": "input_image", "image_url": "https://example.com/a.png",
                    "detail": "auto",
                },
            ],
        ),
        (
            "messages", "messages",
            [
                {"type": "text", "text": "what is it?"},
                {
                    "type": "image",
                    "source": {
                        "type": "base64", "media_type": "image/png", "data": SMALL.split(",")[1],
                    },
                },
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            ],
        ),
    ],
)  # fmt: skip
def test_parts_of_a_file_take_the_form_of_the_route(
    route: str, key: str, expected: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    path.write_text(json.dumps([{"role": "user", "content": PARTS}, answer]) + "\n")
    bodies, made = built(read_prompts(path), route=route)
    sent = json.loads(bodies[0])[key]
    assert sent[0]["content"] == expected
    assert sent[1]["content"] == ("a" if route != "chat" else [{"type": "text", "text": "a"}])
    assert made.images == [(2, len(SMALL) + len("https://example.com/a.png"))]
    assert count_images(messages_of(read_prompts(path)[0])) == made.images[0]


@pytest.mark.parametrize(
    "part",
    [
        "text", 5, {"type": "text"}, {"type": "text", "text": "\ud800"}, {"type": "input_audio"},
        {"type": "image_url", "image_url": "data:image/png;base64,"},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "data:text/html,x"}},
    ],
)  # fmt: skip
def test_parts_that_cannot_be_sent_are_refused(part: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps([{"role": "user", "content": [part]}]) + "\n")
    with pytest.raises(DataError, match="line 1: message 1: part 1 of content is not a") as caught:
        read_prompts(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("sessions", [None, {}])
def test_images_that_do_not_fit_into_memory_are_refused(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "MAX_TOTAL_BYTES", 2**20)
    given = [[{"role": "user", "content": f"q{number}"}] for number in range(20)]
    with pytest.raises(ConfigError, match="have over 1 MiB") as caught:
        built(given, images={"width": 512, "height": 512}, sessions=sessions)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("sessions", [None, {}])
def test_images_of_a_file_that_do_not_fit_into_memory_are_refused(
    sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"type": "image_url", "image_url": {"url": SMALL}}
    given = [[{"role": "user", "content": [sent]}] for _ in range(20)]
    monkeypatch.setattr(images_module, "MAX_TOTAL_BYTES", 20 * len(SMALL))
    built(given, sessions=sessions)
    monkeypatch.setattr(images_module, "MAX_TOTAL_BYTES", 20 * len(SMALL) - 1)
    with pytest.raises(ConfigError, match="have over 0 MiB") as caught:
        built(given, sessions=sessions)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "images", [{"width": 0, "height": 1}, {"width": 8}, {"width": 8, "height": 9999}]
)
def test_images_without_a_size_are_refused(images: Any) -> None:
    with pytest.raises(ConfigError, match="images"):
        built(PROMPTS, images=images)


def test_images_do_not_go_with_token_ids() -> None:
    with pytest.raises(ConfigError, match="images go with messages; synthetic has token ids"):
        built([], source="synthetic", input_tokens={"mean": 8}, images={"width": 8, "height": 8})
