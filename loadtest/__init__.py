"""Load testing: what an OpenAI-compatible endpoint does under a known load, and how sure that is.

A schedule of absolute arrival times is made first (`schedule.py`). Client processes (`worker.py`,
`client.py`) send pre-serialised requests at those times and keep every read with its time; what
was read is taken apart when the window is over (`http1.py`, `sse.py`). `statistics.py` turns the
records into figures, `verdict.py` holds them against the service level objectives and against the
client's own limits, and `run.py` writes the report. Needs no machine-learning library.
"""
