"""The chat page in a real Chromium, served by uvicorn through the middleware around a known app."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serving.middleware.app import TunelineMiddleware
from tests.browser import OVERFLOW, Opened
from tests.integration.serving.middleware.serving_app import Known, serving
from training import WantedRequests, collect_recorded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KEY = "key-of-a-reader"


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def url(known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[reader]\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    monkeypatch.setenv("TUNELINE_KEYS_FILE", str(keys))
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["page"]}))
    with serving(TunelineMiddleware(known)) as address:
        yield address


@contextmanager
def reading(
    browser: Browser, url: str, *, query: str = "", width: int = 1100, secret: str = KEY
) -> Iterator[Opened]:
    """Open the page as a reader who has typed the key."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        http_credentials={"username": "anyone", "password": secret},
    )
    page = context.new_page()
    shown = Opened(page)
    page.on("console", lambda said: shown.problems.append(said.text))
    page.on("pageerror", lambda error: shown.problems.append(str(error)))
    page.on("request", lambda request: shown.requests.append(request.url))
    page.goto(f"{url}/chat{query}")
    page.wait_for_selector("#model option", state="attached")
    yield shown
    context.close()


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def test_a_conversation_with_one_model(browser: Browser, url: str, known: Known) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        page.locator("summary").click()
        page.fill("#tokens", "77")
        say(page, "Where is my <i>order</i>?")
        answers = page.locator(".answer")
        figures = page.locator(".figures")
        figures.first.filter(has_text="4 tokens").wait_for()
        assert answers.first.locator("p:not(.thought)").inner_text() == (
            "tuned saw 1: Where is my <i>order</i>?"
        )
        assert figures.first.inner_text().startswith("first token after ")
        say(page, "And now?")
        figures.nth(1).filter(has_text="4 tokens").wait_for()
        assert answers.nth(1).locator("p:not(.thought)").inner_text() == "tuned saw 3: And now?"
        assert [len(body["messages"]) for body in known.bodies] == [1, 3]
        assert known.bodies[0] | {"messages": []} == {
            "model": "tuned", "messages": [], "stream": True, "temperature": 0, "max_tokens": 77,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        page.click("#new")
        assert answers.count() == 0
        say(page, "Again")
        figures.first.filter(has_text="4 tokens").wait_for()
        assert answers.first.locator("p:not(.thought)").inner_text() == "tuned saw 1: Again"
        assert shown.problems == []
        assert all(address.startswith(f"{url}/") for address in shown.requests)


def test_reasoning_is_shown_and_is_no_part_of_the_history(
    browser: Browser, url: str, known: Known
) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        say(page, "think")
        page.locator(".figures").first.filter(has_text="4 tokens").wait_for()
        assert page.locator(".thought").first.inner_text() == "Two and two"
        assert page.locator(".answer p:not(.thought)").inner_text() == "tuned saw 1: think"
        say(page, "And now?")
        page.locator(".figures").nth(1).filter(has_text="4 tokens").wait_for()
        assert known.bodies[1]["messages"][1] == {
            "role": "assistant", "content": "tuned saw 1: think",
        }  # fmt: skip
        assert shown.problems == []


def test_two_models_side_by_side_each_with_its_own_history(
    browser: Browser, url: str, known: Known
) -> None:
    with reading(browser, url, query="?model=tuned&compare=base") as shown:
        page = shown.page
        for number, question in enumerate(("One?", "Two?")):
            say(page, question)
            page.locator(".figures").nth(2 * number + 1).filter(has_text="4 tok").wait_for()
            page.locator(".figures").nth(2 * number).filter(has_text="4 tok").wait_for()
        texts = page.locator(".answer p:not(.thought)").all_inner_texts()
        assert texts == [
            "tuned saw 1: One?", "base saw 1: One?", "tuned saw 3: Two?", "base saw 3: Two?",
        ]  # fmt: skip
        for body in known.bodies[2:]:
            assert body["messages"][1]["content"] == f"{body['model']} saw 1: One?"
        boxes = [page.locator(".answer").nth(n).bounding_box() for n in (0, 1)]
        assert boxes[0] is not None and boxes[1] is not None
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("refuse", "This prompt is <b>too</b> long."),
        ("break", "The answer ended before its end."),
    ],
)
def test_an_answer_that_fails_is_said_and_its_question_forgotten(
    browser: Browser, url: str, known: Known, question: str, words: str
) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        say(page, question)
        page.locator(".answer .error").wait_for()
        assert page.locator(".answer .error").inner_text() == words
        assert page.input_value("#message") == question  # can be sent again
        say(page, "Next")
        page.locator(".figures").nth(1).filter(has_text="4 tokens").wait_for()
        assert [len(body["messages"]) for body in known.bodies] == [1, 1]


def test_stop_ends_an_answer_and_keeps_its_text(browser: Browser, url: str, known: Known) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        say(page, "wait")
        page.get_by_text("tuned saw 1: wait").wait_for()
        page.click("#stop")
        page.locator(".figures").filter(has_text="stopped").wait_for()
        assert page.locator("#send").is_enabled()
    deadline_s = time.monotonic() + 20
    while known.num_left == 0:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)  # polls; nothing is timed by it


def test_a_lost_server_is_said(browser: Browser, url: str) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        page.route("**/v1/chat/completions", lambda route: route.abort())
        say(page, "Hello")
        assert page.locator(".answer .error").inner_text() == "The server does not answer."
        assert page.input_value("#message") == "Hello"


def test_the_end_is_in_view_unless_the_reader_looks_back(browser: Browser, url: str) -> None:
    at_end = (
        "() => { const m = at('turns'); return m.scrollHeight - m.scrollTop - m.clientHeight; }"
    )
    with reading(browser, url) as shown:
        page = shown.page
        for number in range(6):
            say(page, "line\n" * 10)
            page.locator(".figures").nth(number).filter(has_text="4 tokens").wait_for()
        say(page, "refuse")
        page.locator(".answer .error").wait_for()
        assert page.evaluate(at_end) <= 1
        say(page, "wait")
        page.get_by_text("tuned saw 13: wait").wait_for()
        page.evaluate("() => { at('turns').scrollTop = 0; }")
        page.click("#stop")
        page.locator(".figures").filter(has_text="stopped").wait_for()
        assert page.evaluate("() => at('turns').scrollTop") == 0


def test_a_field_without_a_number_leaves_the_choice_to_the_server(
    browser: Browser, url: str, known: Known
) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        page.locator("summary").click()
        page.fill("#tokens", "")
        page.fill("#temperature", "")
        say(page, "Hello")
        page.locator(".figures").first.filter(has_text="4 tokens").wait_for()
    assert not {"max_tokens", "temperature"} & known.bodies[0].keys()


def test_a_wrong_password_does_not_open_the_page(browser: Browser, url: str) -> None:
    context = browser.new_context(http_credentials={"username": "me", "password": "wrong"})
    response = context.new_page().goto(f"{url}/chat")
    assert response is not None and response.status == 401
    context.close()


def test_the_system_message_and_the_training_row(browser: Browser, url: str, known: Known) -> None:
    with reading(browser, url) as shown:
        page = shown.page
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        page.locator("summary").click()
        page.fill("#system", "Be brief.")
        say(page, "Hello")
        page.locator(".figures").first.filter(has_text="4 tokens").wait_for()
        page.click("#copy")
        page.locator("#note").filter(has_text="clipboard").wait_for()
        row = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert row == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "tuned saw 2: Hello"},
        ]
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_by_everyone(browser: Browser, url: str, scheme: str) -> None:
    with reading(browser, url, query="?compare=base", width=360) as shown:
        page = shown.page
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        say(page, "refuse")
        page.locator(".answer .error").nth(1).wait_for()
        say(page, "word " * 40 + "x" * 200)
        page.locator(".figures").nth(3).filter(has_text="4 tokens").wait_for()
        assert page.evaluate(OVERFLOW) <= 0
        # A page without the policy's permission cannot run axe-core's injected script.
        found = shown.violations()
        assert found == []


@pytest.fixture
def recorded(known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "recorded"
    recording = {"folder": str(folder), "share": 0.0, "max_bytes": 2**30, "keep_s": 1e6}
    monkeypatch.setenv("TUNELINE_RECORDING", json.dumps(recording))
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["page"]}))
    middleware = TunelineMiddleware(known)
    assert middleware.recorder is not None
    middleware.recorder.start()
    with serving(middleware) as address:
        yield address


def test_a_reader_rates_answers_and_writes_better_ones(
    browser: Browser, recorded: str, tmp_path: Path
) -> None:
    with reading(browser, recorded) as shown:
        page = shown.page
        page.locator("#note").filter(has_text="This server records what is said here.").wait_for()
        for number, question in enumerate(("One?", "Two?", "Three?")):
            say(page, question)
            page.locator(".rating").nth(number).wait_for()
        first, second, third = (page.locator(".rating").nth(place) for place in range(3))
        first.get_by_role("button", name="Good").click()
        first.filter(has_text="recorded").wait_for()
        second.get_by_role("button", name="Bad").click()
        second.filter(has_text="recorded").wait_for()
        assert second.get_by_role("button", name="Bad").get_attribute("aria-pressed") == "true"
        third.get_by_role("button", name="Better answer").click()
        wanted = third.get_by_label("The answer that you want")
        assert wanted.input_value() == "tuned saw 5: Three?"
        wanted.fill("Three <b>it is</b>.")
        third.get_by_role("button", name="Keep").click()
        third.filter(has_text="recorded").wait_for()
        assert page.evaluate(OVERFLOW) <= 0
        assert shown.problems == []
    folder = tmp_path / "recorded"
    wanted_rows = [("One?", "tuned saw 1: One?"), ("Three?", "Three <b>it is</b>.")]
    found = collect_recorded(folder, tmp_path / "rows.jsonl", wanted=WantedRequests(is_rated=True))
    assert found.counts.dropped == {"rated bad, without a better answer": 1}
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(r["messages"][-2]["content"], r["messages"][-1]["content"]) for r in rows] == (
        wanted_rows
    )


def test_a_server_that_does_not_record_takes_no_rating(browser: Browser, url: str) -> None:
    with reading(browser, url) as shown:
        say(shown.page, "One?")
        shown.page.locator(".figures").first.filter(has_text="4 tokens").wait_for()
        assert shown.page.locator(".rating").count() == 0
