"""The forgetting suite: skills that a base model has and that fine-tuning can damage."""
