"""`tuneline tune`: vLLM's flags for the highest rate that keeps the objectives."""
