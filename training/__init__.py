"""From rows of text to a LoRA adapter: data intake, fine-tuning, evaluation and the reference.

`data.prepare` makes a `dataset` artifact of JSON Lines, `finetune.train` an `adapter`,
`reference.build_reference` the golden answers that every later form is held against, and
`evaluate` an `evaluation` of a model in this process or behind an endpoint.
"""
