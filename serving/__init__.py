"""Serving: vLLM's command line, its process from start to last signal, our routes and metrics
inside it, the proof that what it answers is what was trained, and a chat with it.

Imports `tuneline.core` alone of ours; vLLM is only ever run, in a process of its own.
"""
