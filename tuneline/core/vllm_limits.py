"""Limits of vLLM 0.32, for the rooms that train, serve or deploy for it."""

from __future__ import annotations

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `--max-lora-rank`. An adapter of another rank takes the next higher value."""

MAX_LORA_RANK = LORA_RANKS[-1]

VLLM_EXIT_MARGIN_S = 15
"""Seconds that the process takes to exit after its shutdown timeout has passed."""
