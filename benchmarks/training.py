"""Measure the speed of training: `python benchmarks/training.py [--quick] [--against CHECKOUT]`.

Trainers fit a LoRA adapter (r 16, seven modules) to the same rows, for the same number of
epochs and with the same learning rate, each in a process of its own, round by round:

- `tuneline`: `train_adapter` of this checkout, with batches as in examples/support-tickets, in
  the tickets' case in random order as the scripts;
- `against`: the same function of another checkout, with that checkout's own environment;
- `script`: the script that most tutorials show. TRL's SFTTrainer reads the messages, with batch 4,
  accumulation 4, `max_length` 512 and its other defaults. One of the defaults is bfloat16, which a
  processor without instructions for it emulates.
- `script-float32`: the same script with `bf16=False`.

Five cases: the shipped tickets on the tiny base, the same behind four worked examples in every
prompt (`long-start`), and, on a network of the shape of Qwen2.5-0.5B with random weights, rows of
50 to 1,000 tokens (`half-billion`), preference pairs with prompts of 600 tokens and answers of 60
(`pairs`, by `dpo`), and a prompt of 600 tokens with four answers of 32 tokens that the model
generates (`grpo`). With `long-start`, `pairs` and `grpo`, `whole-rows` is Tuneline without
`training.loop.shared_start`; the scripts train neither pairs nor prompts. Tuneline trains the last
three with `dtype: bfloat16` if the processor multiplies bfloat16. Tokens are those of the rows,
without padding; a token that a trainer cuts off does not count for it. With `grpo` they are those
of the prompt for each of its answers, and of the answers. Time is that of the training loop,
without held-out losses in between and without loading. The held-out loss is computed by one
function for all: nats per answer token, by transformers' own forward pass. `cpu_s` is the processor
time of the loop: other work on the machine changes it less than the wall time. The peak memory is
the process's.

`share_of_matmul_rate` is (multiplications and additions of the network for the tokens) / (time x
measured rate of a float32 matrix product). For each token it counts 4 for a weight of a frozen
layer (the output and the gradient of the input), and 6 for a weight of the adapter.

Prints a table for people, then one JSON document on the last line. The figures are medians of three
rounds, with two exceptions: `script`, which takes minutes, and `half-billion` run once. A whole
run takes about 40 minutes on two cores, --quick about two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneline.core.environment import hardware_facts

# benchmarks/training.py would be imported in place of the package.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

ROOT = Path(__file__).parents[1]
TICKETS = ROOT / "examples" / "support-tickets"
BASE = ROOT / "examples" / "tiny-base"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 4e-3
SCRIPT_MAX_LENGTH = 512
NUM_EXAMPLES = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round, tickets only")
    parser.add_argument("--against", type=Path, help="a second checkout, with its .venv")
    parser.add_argument("--rows", type=int, help="training rows of the tickets")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--cases", nargs="+", default=None, choices=list(MAKE_CASE))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        trainer, folder, out = given.child
        Path(out).write_text(json.dumps(run_child(trainer, Path(folder))))
        return
    cases = given.cases or (["tickets"] if given.quick else list(MAKE_CASE))
    rounds = given.rounds or (1 if given.quick else 3)
    figures: dict[str, Any] = {"hardware": hardware_facts(), "matmul_gflops": matmul_gflops()}
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            folder = Path(scratch) / case
            folder.mkdir()
            MAKE_CASE[case](folder, given.rows or (160 if given.quick else 480))
            figures[case] = measure(folder, given.against, 1 if case == "half-billion" else rounds)
    for case in cases:
        print_case(case, figures[case], figures["matmul_gflops"])
    print(json.dumps(figures))


def measure(folder: Path, against: Path | None, rounds: int) -> dict[str, Any]:
    """Return the medians over interleaved rounds for each trainer; `script` has one round."""
    pythons = dict.fromkeys(("tuneline", "script", "script-float32"), sys.executable)
    if folder.name in ("long-start", "pairs", "grpo"):
        pythons["whole-rows"] = sys.executable
    if folder.name in ("pairs", "grpo"):  # the scripts train neither
        del pythons["script"], pythons["script-float32"]
    if against is not None:
        pythons["against"] = str(against / ".venv" / "bin" / "python")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for number in range(rounds):
        for name, python in pythons.items():
            if name == "script" and number > 0:
                continue  # a run takes minutes
            out = folder / "result.json"
            directory = against if name == "against" and against is not None else ROOT
            subprocess.run(
                [python, __file__, "--child", name, str(folder), str(out)],
                cwd=directory, env={**os.environ, "PYTHONPATH": str(directory)},
                stdout=sys.stderr, check=True,
            )  # fmt: skip
            found[name].append(json.loads(out.read_text()))
            print(name, found[name][-1], file=sys.stderr)
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def print_case(case: str, figures: dict[str, Any], matmul_gflops: float) -> None:
    print(f"\n{case}: a matrix product reaches {matmul_gflops:.0f} GFLOP/s")
    print("trainer          tokens/s  tokens/cpu s  held-out loss  peak GiB  share of matmul rate")
    for name, run in figures.items():
        run["share_of_matmul_rate"] = (
            run["flops_per_token"] * run["tokens_per_s"] / (matmul_gflops * 1e9)
        )
        print(
            f"{name:14} {run['tokens_per_s']:10.0f} {run['tokens_per_cpu_s']:13.0f} "
            f"{run['heldout_loss']:14.4f} {run['peak_bytes'] / 2**30:9.2f} "
            f"{run['share_of_matmul_rate']:21.2f}"
        )
    for name in figures.keys() - {"tuneline"}:
        ratio = figures["tuneline"]["tokens_per_s"] / figures[name]["tokens_per_s"]
        memory = figures["tuneline"]["peak_bytes"] / figures[name]["peak_bytes"]
        print(f"tuneline is {ratio:.2f} times as fast as {name}, with {memory:.2f} of its memory")


def matmul_gflops() -> float:
    """Return the rate of a float32 matrix product of 1024 x 1024 on all cores, the best of 20."""
    import torch

    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(20):
        start_s = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start_s)
    return 2 * 1024**3 / min(times) / 1e9


def make_tickets(folder: Path, num_rows: int) -> None:
    """Write the first rows of the example; the settings are the example's, for one epoch."""
    for name, count in (("train", num_rows), ("heldout", 128)):
        lines = (TICKETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "learning_rate": LEARNING_RATE, "num_train_epochs": 1, "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1, "max_length": 256, "gradient_checkpointing": False,
        "train_sampling_strategy": "random",
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps({"base": str(BASE), "settings": settings}))


def make_long_start(folder: Path, num_rows: int) -> None:
    """Write a third of the tickets, each behind the same four tickets with their answers."""
    make_tickets(folder, num_rows // 3 + NUM_EXAMPLES)
    examples = read(folder / "train.jsonl")[:NUM_EXAMPLES]
    start = "\n\n".join(f"{row['input']}\n{row['output']}" for row in examples)
    for name, skipped in (("train", NUM_EXAMPLES), ("heldout", 0)):
        rows = read(folder / f"{name}.jsonl")[skipped:]
        lines = [
            json.dumps({**row, "instruction": f"{start}\n\n{row['instruction']}"}) for row in rows
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    case = json.loads((folder / "case.json").read_text())
    case["settings"]["max_length"] = SCRIPT_MAX_LENGTH
    del case["settings"]["train_sampling_strategy"]
    (folder / "case.json").write_text(json.dumps(case))


def make_half_billion(folder: Path, _num_rows: int) -> None:
    """Write four rows of 50 to 1,000 tokens, and a random network of the shape of Qwen2.5-0.5B."""
    make_random_base(folder)
    write_random_rows(folder, {"train": (60, 240, 480, 960), "heldout": (200,)})
    write_random_case(folder, per_device_train_batch_size=1, gradient_accumulation_steps=4)


def make_pairs(folder: Path, _num_rows: int) -> None:
    """Write two preference pairs with prompts of about 600 tokens and answers of 40 to 80."""
    make_random_base(folder)
    text = random_text()
    for name, lengths in (("train", (580, 620)), ("heldout", (600,))):
        rows = [
            {"prompt": " ".join(text(length)), "chosen": " ".join(text(80 - 20 * (index % 2))),
             "rejected": " ".join(text(40 + 20 * (index % 2)))}
            for index, length in enumerate(lengths)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    write_random_case(
        folder, per_device_train_batch_size=2, gradient_accumulation_steps=1,
        method={"type": "dpo"},
    )  # fmt: skip


def make_grpo(folder: Path, _num_rows: int) -> None:
    """Write a prompt of about 600 tokens, and a reward that tells random answers apart."""
    make_random_base(folder)
    write_random_rows(folder, {"train": (900,), "heldout": (200,)})
    (folder / "rewards.py").write_text(
        "def spread(completion_ids, **_):\n"
        "    return [sum(ids) % 97 / 97 for ids in completion_ids]\n"
    )
    write_random_case(
        folder, per_device_train_batch_size=4, gradient_accumulation_steps=1,
        method={"type": "grpo", "reward_funcs": f"{folder / 'rewards.py'}:spread",
                "num_generations": 4, "max_completion_length": 32},
    )  # fmt: skip


def write_random_rows(folder: Path, lengths: dict[str, tuple[int, ...]]) -> None:
    """Write rows of so many tokens to each file; two thirds of a row are its prompt."""
    text = random_text()
    for name, of_rows in lengths.items():
        rows = []
        for length in of_rows:
            words = text(length - 20)
            cut = len(words) * 2 // 3
            row = {"instruction": " ".join(words[:cut]), "output": " ".join(words[cut:])}
            rows.append(json.dumps(row) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


def make_random_base(folder: Path) -> None:
    import shutil

    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1) if "norm" in name else weight.normal_(std=0.02)
    model.save_pretrained(folder / "base")
    for name in (
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
    ):  # fmt: skip
        shutil.copy(BASE / name, folder / "base" / name)


def random_text() -> Callable[[int], list[str]]:
    """Return a function that returns random words of the tickets, of so many tokens."""
    import transformers

    draw, tokenizer = random.Random(0), transformers.AutoTokenizer.from_pretrained(BASE)
    known = (TICKETS / "train.jsonl").read_text(encoding="utf-8").split()[:2000]

    def text(num_tokens: int) -> list[str]:
        words: list[str] = []
        while len(tokenizer(" ".join(words))["input_ids"]) < num_tokens:
            words.append(draw.choice(known))
        return words

    return text


def write_random_case(folder: Path, **settings: Any) -> None:
    from tuneline.core.environment import multiplies_bfloat16  # an older checkout has none

    settings |= {
        "learning_rate": 2e-4, "num_train_epochs": 1, "max_length": 1024,
        # As TRL's default; the base is stored in it.
        "dtype": "bfloat16" if multiplies_bfloat16() else "float32",
    }  # fmt: skip
    case = {"base": str(folder / "base"), "settings": settings}
    (folder / "case.json").write_text(json.dumps(case))


MAKE_CASE = {
    "tickets": make_tickets, "long-start": make_long_start, "half-billion": make_half_billion,
    "pairs": make_pairs, "grpo": make_grpo,
}  # fmt: skip


def run_child(trainer: str, folder: Path) -> dict[str, Any]:
    """Train once in this process, and return its figures."""
    import resource

    case = json.loads((folder / "case.json").read_text())
    loop = watch_loop()
    with tempfile.TemporaryDirectory() as scratch:
        if trainer == "script":
            train_by_script(case, folder, Path(scratch))
        elif trainer == "script-float32":
            train_by_script(case, folder, Path(scratch), bf16=False)
        else:
            if trainer == "whole-rows":
                without_shared_start()
            train_by_tuneline(case, folder, Path(scratch))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trained_tokens = loop["num_tokens"] * case["settings"]["num_train_epochs"]
    model = loop.pop("model")
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    frozen = sum(
        p.numel()
        for name, p in model.named_parameters()
        if "base_layer" in name and p.ndim == 2 and "embed" not in name
    )
    return {
        "tokens_per_s": trained_tokens / loop["wall_s"],
        "tokens_per_cpu_s": trained_tokens / loop["cpu_s"],
        "flops_per_token": 4 * frozen + 6 * lora,
        "heldout_loss": heldout_loss(model, token_rows(case, folder / "heldout.jsonl")),
        "peak_bytes": peak_bytes,
        **loop,
    }


def watch_loop() -> dict[str, Any]:
    """Let transformers' loop record its time, without evaluations, and its model."""
    import transformers

    found: dict[str, Any] = {"wall_s": 0.0, "cpu_s": 0.0}

    def timed(function: Any, sign: int) -> Any:
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            result = function(self, *args, **kwargs)
            if sign > 0 or found.get("inside"):
                found["wall_s"] += sign * (time.perf_counter() - start_s)
                found["cpu_s"] += sign * (time.process_time() - start_cpu_s)
            found["model"] = self.model
            found["num_tokens"] = num_tokens(self)
            return result

        return run

    loop = timed(transformers.Trainer._inner_training_loop, 1)

    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        found["inside"] = True
        result = loop(self, *args, **kwargs)
        found.pop("inside")
        return result

    transformers.Trainer._inner_training_loop = inside
    transformers.Trainer.evaluate = timed(transformers.Trainer.evaluate, -1)
    return found


def num_tokens(trainer: Any) -> int:
    """Return the tokens of all rows; the sides of a pair are two rows, as are two answers."""
    dataset = trainer.train_dataset
    if hasattr(trainer, "num_sampled_tokens"):  # prompts that the model answers itself
        prompts = trainer.rows[: len(dataset)]
        tokens = sum(len(prompt.prompt_ids) for prompt in prompts)
        return int(trainer.num_generations * tokens + trainer.num_sampled_tokens)
    if "chosen_ids" not in dataset.column_names:
        return sum(len(ids) for ids in dataset["input_ids"])
    sides = ("prompt_ids", "prompt_ids", "chosen_ids", "rejected_ids")
    return sum(len(ids) for side in sides for ids in dataset[side])


def without_shared_start() -> None:
    from training.loop import shared_rows

    shared_rows.LEAST_TOKENS = sys.maxsize


def train_by_tuneline(case: dict[str, Any], folder: Path, scratch: Path) -> None:
    import importlib

    from training.config import DataConfig, TrainingConfig

    names = (
        "training:prepare_dataset",
        "training:train_adapter",
        "tuneline.models.source:resolve_model",
    )
    older = not (Path(importlib.import_module("training").__path__[0]) / "train.py").is_file()
    if older:
        names = (
            "training.data:prepare", "training.finetune:train",
            "tuneline.core.model_source:resolve_model",
        )  # fmt: skip
    prepare_dataset, train_adapter, resolve_model = (
        getattr(importlib.import_module(module), attribute)
        for module, _, attribute in (name.partition(":") for name in names)
    )
    out, data = scratch / "dataset", DataConfig(path="train.jsonl", heldout_path="heldout.jsonl")
    if older:
        files = {"path": folder / "train.jsonl", "heldout_path": folder / "heldout.jsonl"}
        dataset = prepare_dataset(data, **files, out=out)
    else:
        dataset = prepare_dataset(data, relative_to=folder, out=out)
    # An older checkout has no key for the order, which is random there.
    known = {key: v for key, v in case["settings"].items() if key in TrainingConfig.model_fields}
    config = TrainingConfig(r=16, lora_alpha=32, target_modules=MODULES, **known)
    train_adapter(config, dataset, resolve_model(case["base"]), scratch / "adapter")


def train_by_script(case: dict[str, Any], folder: Path, scratch: Path, **changes: Any) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": messages(row)} for row in read(folder / "train.jsonl")]
    SFTTrainer(
        model=case["base"],
        args=SFTConfig(
            output_dir=str(scratch),
            num_train_epochs=case["settings"]["num_train_epochs"],
            learning_rate=case["settings"]["learning_rate"],
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_length=SCRIPT_MAX_LENGTH,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),  # without it, TRL's bf16 is an error on a CPU
            **changes,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=MODULES, task_type="CAUSAL_LM"),
    ).train()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def messages(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return prompt and answer; of a preference pair, the chosen one."""
    parts = (row.get("prompt"), row.get("instruction"), row.get("input"))
    prompt, answer = "\n\n".join(filter(None, parts)), row.get("chosen") or row["output"]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def token_rows(case: dict[str, Any], path: Path) -> list[tuple[list[int], int]]:
    """Return the token ids of each row up to its stop token, and the length of its prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case["base"])
    rows = []
    for row in read(path):
        prompt, answer = messages(row)
        ids = tokenizer.apply_chat_template([prompt], add_generation_prompt=True, return_dict=False)
        text = tokenizer(answer["content"], add_special_tokens=False)["input_ids"]
        rows.append(([*ids, *text, tokenizer.eos_token_id], len(ids)))
    return rows


def heldout_loss(model: Any, rows: list[tuple[list[int], int]]) -> float:
    """Return nats per answer token, row by row, by transformers' own forward pass."""
    import torch

    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids, num_prompt in rows:
            logits = model(input_ids=torch.tensor([ids])).logits[0, num_prompt - 1 : -1].float()
            targets = torch.tensor(ids[num_prompt:])
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    return total / count


if __name__ == "__main__":
    main()
