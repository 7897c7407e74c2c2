"""The load client: processes that send requests and record every read."""
