"""Other forms of a rendered server: a LeaderWorkerSet, an LLMInferenceService, a Helm chart."""
