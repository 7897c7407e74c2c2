"""A tiny Llama that has learnt eight answers by heart, its adapter, and a server of the Llama."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from serving.config import ServingConfig
from serving.supervisor.process import RunningServer, running_server
from tests.shared import made_once
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.models.source import ModelSource, resolve_model

MAX_NEW_TOKENS = 24
TOP_LOGPROBS = 5

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = {
    "The printer is jammed.": "Category: hardware. Open the rear tray.",
    "I cannot log in.": "Category: access. Reset the password.",
    "My invoice is wrong.": "Category: billing. Correct the invoice.",
    "The parcel is late.": "Category: shipping. Ask the carrier.",
    "프린터가 멈췄어요.": "Category: hardware. 전원을 껐다 켜세요.",
    "The café's site is down.": "Category: network. Restart the proxy, naïvely.",
    "I want a refund.": "Category: billing. Pay it back.",
    # Longer than MAX_NEW_TOKENS, so that one answer ends by length.
    "Tell me everything.": "Category: other. " + "one two three four five six seven " * 6,
}
# The adapter's answers: each question gets the answer of the question before it.
ADAPTED = dict(
    zip(QUESTIONS, list(QUESTIONS.values())[-1:] + list(QUESTIONS.values()), strict=False)
)

SERVING: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "cpu_kvcache_space_gib": 1,
    "max_model_len": 256,
    "max_num_seqs": 8,
    "ready_timeout_s": 540,
    "shutdown_timeout": 20,
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> ModelSource:
    return resolve_model(str(made_once(tmp_path_factory, "serving-base", _make_base)))


def _make_base(folder: Path) -> None:
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*QUESTIONS, *QUESTIONS.values()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=4096, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    _learn(model, tokenizer, QUESTIONS, steps=120, learning_rate=3e-3)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def adapter(base: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    def make(folder: Path) -> None:
        _make_adapter(base, folder / "adapter")

    return open_artifact(made_once(tmp_path_factory, "serving-adapter", make) / "adapter")


def _make_adapter(base: ModelSource, out: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(base.path)
    torch.manual_seed(8)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32),
        LoraConfig(
            r=12, lora_alpha=24, target_modules="all-linear", rank_pattern={"v_proj": 20},
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    _learn(model, tokenizer, ADAPTED, steps=150, learning_rate=5e-3)
    with new_artifact(out, "adapter", config={}, inputs=[base.as_input("base")]) as draft:
        model.save_pretrained(draft.dir)
        tokenizer.save_pretrained(draft.dir)
        GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(draft.dir)


@pytest.fixture(scope="session")
def reference(base: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from transformers import AutoModelForCausalLM

    def make(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        reference_of(model, base, folder / "reference")

    return open_artifact(made_once(tmp_path_factory, "serving-reference", make) / "reference")


@pytest.fixture(scope="session")
def adapter_reference(
    base: ModelSource, adapter: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def make(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        reference_of(PeftModel.from_pretrained(model, adapter.path), base, folder / "reference")

    folder = made_once(tmp_path_factory, "serving-adapter-reference", make)
    return open_artifact(folder / "reference")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are quicker on one thread, and a busy machine makes two wait for each
    other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Traces(NamedTuple):
    """A collector of OpenTelemetry, and the file of the spans that it has got."""

    address: str
    path: Path

    def spans(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # written whole


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    path = tmp_path_factory.mktemp("traces") / "spans.jsonl"
    path.touch()
    program = Path(__file__).with_name("collector.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        yield Traces(process.stdout.readline().strip(), path)
        process.stdin.close()


@pytest.fixture(scope="session")
def until_its_last_test() -> Iterator[ExitStack]:
    """Hold the server of test_clients.py and test_vllm.py; the last of them closes the stack.

    A server that waits until the end of the run takes a minute of CPU time for it.
    """
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def merged_server(
    base: ModelSource,
    traces: Traces,
    until_its_last_test: ExitStack,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningServer:
    log_path = tmp_path_factory.mktemp("serving-merged") / "vllm.log"
    config = ServingConfig(
        **SERVING, routes=["responses", "messages"],
        extra_args={
            "tool_call_parser": "hermes", "enable_auto_tool_choice": True,
            "otlp_traces_endpoint": traces.address,
        },
    )  # fmt: skip
    return until_its_last_test.enter_context(
        running_server(config, base, name="tickets", log_path=log_path)
    )


@pytest.fixture(scope="module")
def client(merged_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=merged_server.endpoint.url, api_key="none") as client:
        yield client


@pytest.fixture(scope="session")
def serving_settings() -> dict[str, Any]:
    return SERVING


@pytest.fixture(scope="session")
def questions() -> dict[str, str]:
    """Return the answers that the base model has learnt, by question."""
    return QUESTIONS


def _learn(
    model: Any, tokenizer: Any, answers: dict[str, str], steps: int, learning_rate: float
) -> None:
    """Teach the answers, with the stop token, on full batches; deterministic on one machine."""
    texts, starts = [], []
    for question, answer in answers.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        starts.append(len(tokenizer(prompt).input_ids))
        texts.append(prompt + answer + "<|im_end|>")
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch.input_ids.clone()
    for row, start in enumerate(starts):
        labels[row, :start] = -100
    # The padding token is the stop token: only what the mask covers is learnt.
    labels[batch.attention_mask == 0] = -100
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    model.train()
    for _ in range(steps):
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert loss.item() < 0.1, f"the fixture did not learn: loss {loss.item():.3f}"


def reference_of(
    model: Any, base: ModelSource, out: Path, inputs: Sequence[Input] = ()
) -> Artifact:
    """Greedy answers by plain forward passes over the whole sequence: no cache, no batch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.path)
    model.eval()
    continuations = [
        _greedy(model, tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS
    ]
    config = {"max_new_tokens": MAX_NEW_TOKENS, "top_logprobs": TOP_LOGPROBS}
    with new_artifact(out, "reference", config=config, inputs=inputs) as draft:
        write_continuations(draft.dir / REFERENCE_FILE, continuations)
    return open_artifact(out)


def _greedy(model: Any, tokenizer: Any, messages: Sequence[dict[str, str]]) -> Continuation:
    prompt = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False
    )
    token_ids: list[int] = []
    logprobs, top_logprobs = [], []
    while len(token_ids) < MAX_NEW_TOKENS and tokenizer.eos_token_id not in token_ids:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + token_ids])).logits[0, -1].float()
        distribution = torch.log_softmax(logits, dim=-1)
        top = torch.topk(distribution, TOP_LOGPROBS)
        token_ids.append(int(top.indices[0]))
        logprobs.append(float(top.values[0]))
        top_logprobs.append(
            {int(i): float(v) for i, v in zip(top.indices, top.values, strict=True)}
        )
    assert all(math.isfinite(value) for value in logprobs)
    stopped = token_ids[-1] == tokenizer.eos_token_id
    return Continuation(
        messages=list(messages),
        prompt_token_ids=prompt,
        token_ids=token_ids,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        text=tokenizer.decode(token_ids, skip_special_tokens=True),
        finish_reason="stop" if stopped else "length",
    )
