"""Export: from an adapter to a model folder that any server loads, and the proof of it.

`merge` folds an adapter into its base by streaming safetensors, in memory that does not grow with
the model; `prove_model` holds the result against the reference of the trained model.
"""
