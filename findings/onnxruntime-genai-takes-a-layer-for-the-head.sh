#!/usr/bin/env bash
# onnxruntime-genai 0.18.0: the builder takes a layer as wide as the vocabulary for the output layer.
#
# The model builder walks through the layers and finds the output layer by its width: a linear layer with as
# many outputs as the vocabulary has tokens. A query or gate projection of the same width is found first.
# The graph then reads its logits from a norm inside the first block and leaves out all that follows. The
# weights of the output layer arrive there all the same, since both have one name. It happens to models
# that are small enough for a first test, and to byte-level ones, of 256 or 512 tokens. The model is built,
# loads and generates. Nothing warns. A vocabulary of one token more is built rightly.
#
# Seen for a random Llama of hidden width 128 and inner width 192 (tokens: largest difference of the logits
# to those of transformers 5.19.0, the largest logit, nodes that compute the logits):
#   127  0.00  6.07  33
#   128  9.88  5.87  26
#   129  0.00  7.26  33
#   192  6.43  5.90  26
#   193  0.00  7.04  33
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 \
  onnx-ir==1.1.0 transformers==5.19.0 torch==2.13.0 numpy==2.4.6
cd "$work"
cat >build.py <<'PYTHON'
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime_genai as genai
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TOKENS = list(range(3, 27))


def save(folder, vocabulary):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="2").save_pretrained(folder)


@torch.no_grad()
def expected(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.tensor([TOKENS])).logits[0, -1].numpy()


def built(folder):
    generator = genai.Generator(model := genai.Model(folder), genai.GeneratorParams(model))
    generator.append_tokens(np.array(TOKENS, dtype=np.int32))
    return np.array(generator.get_logits()).reshape(-1)


def nodes_before_logits(folder):
    nodes = onnx.load(f"{folder}/model.onnx", load_external_data=False).graph.node
    makers = {output: number for number, node in enumerate(nodes) for output in node.output}
    found, open_names = set(), ["logits"]
    while open_names:
        number = makers.get(open_names.pop())
        if number is not None and number not in found:
            found.add(number)
            open_names += nodes[number].input
    return len(found)


for vocabulary in (127, 128, 129, 192, 193):
    source, target = f"hf-{vocabulary}", f"built-{vocabulary}"
    save(source, vocabulary)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target]
    done = subprocess.run(
        [*command, "-p", "fp32", "-e", "cpu", "-c", "cache"], check=True, capture_output=True, text=True
    )
    assert "warn" not in done.stdout.lower()
    right, seen = expected(source), built(target)
    difference = float(abs(seen[-vocabulary:] - right).max())
    print(f"seen {vocabulary}  {difference:.2f}  {abs(right).max():.2f}  {nodes_before_logits(target)}")
    assert (difference > 1) if vocabulary in (128, 192) else (difference < 1e-3), "changed"
PYTHON
"$work/env/bin/python" build.py >out 2>log || { cat out log; exit 1; }
sed -n 's/^seen //p' out
