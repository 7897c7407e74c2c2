from __future__ import annotations

import datetime
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.commands import tuneline_here
from tests.integration.training.conftest import ANSWER, Line
from tests.integration.training.methods.datasets import write_rows
from tests.integration.training.tiny import CHATML, color_rows, make_base, make_tokenizer
from training.config import EvaluationConfig, ReferenceConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.evaluation.evaluate import evaluate_endpoint, evaluate_model
from training.evaluation.prediction import Prediction
from training.reference import build_reference
from tuneline.core.artifact import (
    Artifact,
    Input,
    new_artifact,
    open_artifact,
    verify_artifact,
)
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import DataError, ServerError
from tuneline.core.reference import comparable_settings, read_reference

CONFIG = EvaluationConfig(fields="lines", max_new_tokens=24, batch_size=4)


def _predictions(evaluation: Artifact) -> list[Prediction]:
    lines = (evaluation.path / "predictions.jsonl").read_text().removesuffix("\n").split("\n")
    return [Prediction.model_validate_json(line) for line in lines]


@pytest.fixture(scope="module")
def reference(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    config = ReferenceConfig(num_prompts=6, max_new_tokens=24, top_logprobs=5)
    out = tmp_path_factory.mktemp("reference") / "reference"
    return build_reference(config, line.dataset, line.base, line.adapter, out)


def test_the_reference_equals_transformers_own_generation(line: Line, reference: Artifact) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    verify_artifact(reference)
    base = AutoModelForCausalLM.from_pretrained(line.base.path, dtype=torch.float32)
    base.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model = PeftModel.from_pretrained(base, str(line.adapter.path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(line.adapter.path)
    continuations = read_reference(reference)
    rows = dataset_rows(line.dataset, HELDOUT_FILE)
    assert len(continuations) == 6
    for row, continuation in zip(rows, continuations, strict=False):
        text = f"<|im_start|>user\n{row.prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(text, add_special_tokens=False)
        assert continuation.prompt_token_ids == prompt
        assert continuation.messages == list(row.prompt)
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24,
                do_sample=False, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        tokens = output.sequences[0, len(prompt) :].tolist()
        assert continuation.token_ids == tokens
        scores = torch.stack(output.logits)[:, 0].log_softmax(-1)
        expected = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        assert continuation.logprobs == pytest.approx(expected, abs=1e-5)
        for position, top in enumerate(continuation.top_logprobs):
            values, indices = scores[position].topk(5)
            assert list(top) == indices.tolist()
            assert list(top.values()) == pytest.approx(values.tolist(), abs=1e-5)
            assert top[tokens[position]] == continuation.logprobs[position]
        assert continuation.text == ANSWER and continuation.finish_reason == "stop"
        assert continuation.token_ids[-1] == 2


def test_the_reference_records_its_settings_and_its_own_noise(reference: Artifact) -> None:
    assert comparable_settings(reference) == {"max_new_tokens": 24, "top_logprobs": 5}
    assert 0 <= reference.manifest.metrics["repeat_max_logprob_difference"] < 1e-4
    assert [entry.role for entry in reference.manifest.inputs] == ["dataset", "base", "adapter"]


def test_a_reference_cut_short_says_so(line: Line, tmp_path: Path) -> None:
    config = ReferenceConfig(num_prompts=1, max_new_tokens=3)
    short = build_reference(config, line.dataset, line.base, line.adapter, tmp_path / "r")
    [continuation] = read_reference(short)
    assert len(continuation.token_ids) == 3 and continuation.finish_reason == "length"


TINY = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "state": ("mamba", TINY),
    "state of heads": ("mamba2", {**TINY, "head_dim": 16, "num_heads": 4, "n_groups": 1}),
    "none": ("openai-gpt", {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4}),
}


@pytest.mark.parametrize("cache", CACHES)
def test_a_model_without_keys_and_values_answers_as_without_a_cache(cache: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from training.evaluation.decoding import fitting_batch_size, greedy_answers
    from tuneline.models.greedy import cached_scores, greedy_answer

    torch.manual_seed(0)
    name, values = CACHES[cache]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    prompts = [list(range(3, 10)), [40, 41], list(range(90, 102))]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(6):
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        expected.append(ids[0, len(prompt) :].tolist())
    assert len({tuple(answer) for answer in expected}) == 3
    assert fitting_batch_size(model, 64) > 1
    assert greedy_answers(model, prompts, frozenset(), 6) == expected
    score = cached_scores(model)
    for prompt, answer in zip(prompts, expected, strict=True):
        for draft in ((), answer[:3], [*answer[:2], 5]):
            found, _, _ = greedy_answer(
                score, prompt, draft=draft, stop_ids=frozenset(), max_new_tokens=6, num_top=1
            )
            assert found == answer
    # The first answer's tokens begin the next conversation.
    longer = [*prompts[0], *expected[0], 7, 8, 9]
    fresh = cached_scores(model)(longer, 1)
    score(prompts[0] + expected[0], 1)
    assert torch.allclose(score(longer, 1), fresh, atol=1e-5)


def test_the_tools_of_a_row_are_recorded(line: Line, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "reset", "parameters": {"type": "object"}}}
    plain, other = dataset_rows(line.dataset, HELDOUT_FILE)[:2]
    with new_artifact(tmp_path / "tools", "dataset", config={}) as draft:
        write_rows(draft.dir / HELDOUT_FILE, [plain, replace(other, tools=(tool,))])
    config = ReferenceConfig(num_prompts=2, max_new_tokens=3)
    dataset = open_artifact(tmp_path / "tools")
    found = build_reference(config, dataset, line.base, line.adapter, tmp_path / "r")
    assert [one.tools for one in read_reference(found)] == [[], [tool]]


def test_plain_text_among_the_held_out_rows_is_not_asked(line: Line, tmp_path: Path) -> None:
    rows = dataset_rows(line.dataset, HELDOUT_FILE)[:2]
    with new_artifact(tmp_path / "mixed", "dataset", config={}) as draft:
        write_rows(draft.dir / HELDOUT_FILE, [Row(text="Once."), *rows, Row(text="Twice.")])
    mixed = open_artifact(tmp_path / "mixed")
    config = ReferenceConfig(num_prompts=2, max_new_tokens=3)
    found = build_reference(config, mixed, line.base, line.adapter, tmp_path / "r")
    assert [one.messages for one in read_reference(found)] == [list(row.prompt) for row in rows]
    with new_artifact(tmp_path / "text", "dataset", config={}) as draft:
        write_rows(draft.dir / HELDOUT_FILE, [Row(text="Once.")])
    text = open_artifact(tmp_path / "text")
    with pytest.raises(DataError, match="no row has a prompt") as caught:
        build_reference(config, text, line.base, line.adapter, tmp_path / "s")
    assert caught.value.exit_code == 2 and "data.heldout_path" in str(caught.value.hint)


def test_training_takes_the_model_from_none_right_to_all_right(
    line: Line, reference: Artifact, tmp_path: Path
) -> None:
    before = evaluate_model(CONFIG, line.dataset, line.base, None, tmp_path / "before")
    after = evaluate_model(CONFIG, line.dataset, line.base, line.adapter, tmp_path / "after")
    verify_artifact(after)
    assert before.manifest.metrics["num_rows"] == after.manifest.metrics["num_rows"] == 10
    assert before.manifest.metrics["exact_match"] == 0.0
    assert after.manifest.metrics["exact_match"] == 1.0
    assert after.manifest.metrics["field_accuracy"] == {"Color": 1.0, "Size": 1.0}
    assert after.manifest.metrics["stopped"] == 1.0
    scores = json.loads((after.path / "evaluation.json").read_text())
    assert scores["exact_match_interval"] == pytest.approx([0.7225, 1.0], abs=1e-4)
    # Batched with padding, the answers are those of the reference; the sampling defaults of the
    # base's generation_config play no part.
    answers = [prediction.answer for prediction in _predictions(after)]
    assert answers[:6] == [continuation.text for continuation in read_reference(reference)]
    assert [p.prompt for p in _predictions(after)] == [
        list(row.prompt) for row in dataset_rows(line.dataset, HELDOUT_FILE)
    ]


def test_padding_and_order_do_not_change_the_answers_of_the_base(
    line: Line, tmp_path: Path
) -> None:
    found = []
    for batch_size in (1, 7):
        config = CONFIG.model_copy(update={"batch_size": batch_size, "num_rows": 7})
        out = tmp_path / str(batch_size)
        evaluation = evaluate_model(config, line.dataset, line.base, None, out)
        found.append([prediction.answer for prediction in _predictions(evaluation)])
    assert len(found[0]) == 7
    assert found[0] == found[1]


def test_an_adapter_folder_of_peft_takes_the_tokenizer_and_stops_of_its_base(
    line: Line, tmp_path: Path
) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(line.adapter.path / name, folder)
    config = CONFIG.model_copy(update={"num_rows": 2, "metrics": ("exact_match",)})
    found = [
        evaluate_model(config, line.dataset, line.base, adapter, tmp_path / out)
        for adapter, out in ((line.adapter, "ours"), (folder, "theirs"))
    ]
    ours, theirs = map(_predictions, found)
    assert ours == theirs and len(ours) == 2
    assert ours[0].finish_reason == "stop"
    assert found[1].manifest.inputs[-1].kind == "peft-adapter"


Reply = Callable[[dict[str, Any]], tuple[int, str]]


@contextmanager
def _server(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server whose answers are known by construction, and the requests that it got."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**body, "path": self.path, "key": self.headers["Authorization"]})
            status, text = reply(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _completion(content: str, finish_reason: str = "stop") -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps(
        {
            "id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        }
    )  # fmt: skip


def test_answers_through_an_endpoint_are_scored_in_order(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "meant-for-someone-else")
    rows = dataset_rows(line.dataset, HELDOUT_FILE)
    number = {row.prompt[0]["content"]: index for index, row in enumerate(rows)}

    def reply(body: dict[str, Any]) -> tuple[int, str]:
        # Every second answer is right; the third is cut; the others have a wrong color.
        index = number[body["messages"][0]["content"]]
        if index == 3:
            return 200, _completion("Color:", "length")
        return 200, _completion(ANSWER if index % 2 == 0 else "Color: blue\nSize: small")

    given = Input(role="model", kind="model", digest="sha256:1")
    with _server(reply) as (url, requests):
        evaluation = evaluate_endpoint(
            CONFIG, line.dataset, Endpoint(url, "tickets@1"), tmp_path / "e", inputs=[given]
        )
    metrics = evaluation.manifest.metrics
    assert (metrics["num_rows"], metrics["num_correct"]) == (10, 5)
    assert metrics["field_accuracy"] == {"Color": 0.5, "Size": 0.9}
    assert metrics["stopped"] == 0.9
    assert metrics["served_model"] == "tickets@1"
    assert [p.correct for p in _predictions(evaluation)] == [True, False] * 5
    assert [entry.role for entry in evaluation.manifest.inputs] == ["dataset", "model"]
    assert len(requests) == 10
    for request in requests:
        assert request["path"] == "/v1/chat/completions"
        assert (request["model"], request["temperature"]) == ("tickets@1", 0)
        assert request["max_tokens"] == 24
        assert "meant-for-someone-else" not in request["key"]


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (404, '{"error": {"message": "The model does not exist."}}', "The model does not exist"),
        (401, '{"error": {"message": "no such key"}}', "needs a key; none was sent"),
        (200, '{"choices": []}', "failed"),
        (200, '{"unexpected": 1}', "failed"),
        (200, "not json", "failed"),
    ],
)
def test_a_server_that_answers_wrongly_is_an_error_with_a_count(
    line: Line, tmp_path: Path, status: int, text: str, message: str
) -> None:
    config = CONFIG.model_copy(update={"batch_size": 1})
    with (
        _server(lambda _: (status, text)) as (url, requests),
        pytest.raises(ServerError, match=message) as caught,
    ):
        evaluate_endpoint(config, line.dataset, Endpoint(url, "m"), tmp_path / "e")
    assert "1 requests to model 'm' failed, 0 of 10 prompts were answered" in caught.value.message
    assert len(requests) == 1
    assert not (tmp_path / "e").exists()


DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %B %Y') %}{% endif %}"
    "{{ date_string }}{% if brief is defined and brief %} Be brief.{% endif %}\n" + CHATML
)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "day of the dataset"])
def test_a_run_sets_its_template_variables_and_its_date_behind_a_url(
    fixed: bool, tmp_path: Path
) -> None:
    make_tokenizer(DATED).save_pretrained(make_base(tmp_path / "base"))
    rows = [{"instruction": row["input"], "output": row["output"]} for row in color_rows(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, Any] = {"path": "rows.jsonl", "chat_template_kwargs": {"brief": True}}
    if fixed:
        data["chat_template_date"] = "2020-02-01"
    run = {"name": "dated", "base_model": "base", "data": data}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    choice = {
        "index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop",
    }  # fmt: skip
    answer = {"id": "1", "object": "c", "created": 0, "model": "m", "choices": [choice]}
    with _server(lambda _: (200, json.dumps(answer))) as (url, requests):
        done = tuneline_here(
            "evaluate", str(tmp_path / "run.yaml"), "--url", url, "--model", "m",
            "--out", str(tmp_path / "out"), "--runs-dir", str(tmp_path / "runs"),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    today = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y")
    day = "01 February 2020" if fixed else today
    assert requests
    for request in requests:
        assert request["chat_template_kwargs"] == {"brief": True, "date_string": day}


def test_a_server_that_is_not_there_is_an_error(line: Line, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    server.server_close()
    with pytest.raises(ServerError, match="cannot be reached"):
        evaluate_endpoint(CONFIG, line.dataset, Endpoint(url, "m"), tmp_path / "e")
