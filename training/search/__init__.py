"""The search for settings: a study that several processes share and that survives a kill."""
