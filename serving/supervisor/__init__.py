"""vLLM's process: started, watched, ended."""
