"""The content of requests, by source."""
