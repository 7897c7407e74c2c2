#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 (JavaScript): three settings of a tokenizer.json give other tokens.
#
# The package reads the tokenizer.json of a model, so that a page or a server counts and sends the same
# tokens as in training. The pre-tokenizer Whitespace splits at letters with accents and between digits
# and Hangul, since its words are those of ASCII. An added token with single_word is found inside other
# words. A Split that is inverted and keeps what it isolates drops all text between the matches. The
# package lists what it cannot do and names none of them, and nothing warns. The script needs Node.js.
#
# Seen (setting, text: tokens by tokenizers 0.23.3, tokens by the package):
#   Whitespace      "café 300원"  café 300원      caf é 300 원
#   single_word     "scatter"     s c a t t e r   s cat t e r
#   inverted Split  "12 ab 3"     12 _ab_ 3       12 3        (a space is shown as _)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet tokenizers==0.23.3
cd "$work"
npm install --silent --no-fund --no-audit --prefix "$work" @huggingface/tokenizers@0.2.0 \
  > npm.log 2>&1 || { cat npm.log; exit 1; }
cat >encode.mjs <<'JAVASCRIPT'
import { Tokenizer } from "@huggingface/tokenizers";
import fs from "fs";

const cases = JSON.parse(fs.readFileSync("cases.json"));
const ids = cases.map(([file, text]) => Array.from(new Tokenizer(file, {}).encode(text).ids));
console.log(JSON.stringify(ids));
JAVASCRIPT
"$work/env/bin/python" - <<'PYTHON'
import json
import subprocess
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers


def trained(pre_tokenizer, *texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=80, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


whitespace = trained(pre_tokenizers.Whitespace(), "café 300원 café 300원")
single = trained(pre_tokenizers.Whitespace(), "scatter")
single.add_tokens([AddedToken("cat", single_word=True)])
split = pre_tokenizers.Split(Regex("[0-9]+"), behavior="isolated", invert=True)
inverted = trained(split, "12 ab 3", "12 ab 3")
CASES = {
    "Whitespace": (whitespace, "café 300원"),
    "single_word": (single, "scatter"),
    "inverted Split": (inverted, "12 ab 3"),
}
files = [[json.loads(tokenizer.to_str()), text] for tokenizer, text in CASES.values()]
Path("cases.json").write_text(json.dumps(files))
done = subprocess.run(["node", "encode.mjs"], capture_output=True, text=True, check=True)
seen = {}
for (name, (tokenizer, text)), ids in zip(CASES.items(), json.loads(done.stdout)):
    seen[name] = tokenizer.encode(text).tokens, [tokenizer.id_to_token(number) for number in ids]
    print(f"{name:15}", *[" ".join(token.replace(" ", "_") for token in side) for side in seen[name]],
          sep="  ")
assert "".join(seen["Whitespace"][0]) == "".join(seen["Whitespace"][1])
assert seen["Whitespace"][0] == ["café", "300원"]
assert seen["Whitespace"][1] != seen["Whitespace"][0], "changed"
assert "cat" not in seen["single_word"][0] and "cat" in seen["single_word"][1], "changed"
assert "".join(seen["inverted Split"][0]) == "12 ab 3"
assert "".join(seen["inverted Split"][1]) == "123", "changed"
PYTHON
