#!/usr/bin/env bash
# transformers 5.19.0: a schedule-free optimizer saves other weights than those that are evaluated.
#
# A schedule-free optimizer trains at one point and answers at another, an average of the steps before.
# optimizer.eval() moves the weights there, and its authors ask for this call before a model is evaluated or
# saved. Trainer calls it at the start of an evaluation only. After train() the model has the weights of the
# training: save_model, a checkpoint without an evaluation in the same step and a prediction by the model
# itself take those. trainer.evaluate() afterwards gives the loss of another model than the saved one, and
# changes the model in memory. Nothing warns. With evaluations at the steps of the checkpoints both agree.
#
# Seen after 60 steps (optim: eval_loss of the trainer, loss of the saved model, loss of the model saved
# once more after the evaluation; distance of the two saved models over the distance trained):
#   adamw_torch          0.9887  0.9887  0.9887  0.00
#   schedule_free_adamw  1.2262  1.0947  1.2262  0.09
#   schedule_free_sgd    2.3456  2.2709  2.3456  0.07
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet transformers==5.19.0 accelerate==1.15.0 schedulefree==1.4.1 \
  torch==2.13.0 numpy==2.4.6
cd "$work"
cat >train.py <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ROWS = torch.stack([torch.arange(16) * step % 64 for step in range(1, 33)])
EXAMPLES = [{"input_ids": row, "labels": row} for row in ROWS]
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
)


@torch.no_grad()
def loss(model):
    return float(model.eval()(input_ids=ROWS, labels=ROWS).loss)


def vector(model):
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


RATES = {"adamw_torch": 0.01, "schedule_free_adamw": 0.01, "schedule_free_sgd": 0.5}
for optimizer, rate in RATES.items():
    transformers.set_seed(0)
    model = LlamaForCausalLM(CONFIG)
    start = vector(model)
    arguments = TrainingArguments(
        "run", optim=optimizer, max_steps=60, learning_rate=rate, per_device_train_batch_size=8,
        per_device_eval_batch_size=32, lr_scheduler_type="constant", save_strategy="no",
        logging_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=EXAMPLES, eval_dataset=EXAMPLES)
    trainer.train()
    trainer.save_model("after-training")
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.save_model("after-evaluation")
    first = LlamaForCausalLM.from_pretrained("after-training")
    second = LlamaForCausalLM.from_pretrained("after-evaluation")
    distance = float((vector(first) - vector(second)).norm() / (vector(second) - start).norm())
    print(f"seen {optimizer:19}  {evaluated:.4f}  {loss(first):.4f}  {loss(second):.4f}  {distance:.2f}")
    assert abs(loss(second) - evaluated) < 1e-3
    if optimizer == "adamw_torch":
        assert distance == 0
    else:
        assert distance > 0.02 and abs(loss(first) - evaluated) > 0.005, "changed"
PYTHON
"$work/env/bin/python" -W error::UserWarning train.py >out 2>log || { cat out log; exit 1; }
sed -n 's/^seen //p' out
! grep -i warn log
