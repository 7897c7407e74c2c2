"""A server of S3 on this machine, with one bucket, for the tests of object storage."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "models"
NO_LIMIT = "inf"


class Store:
    """The bucket as another library sees it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client: Any = boto3.client("s3", endpoint_url=endpoint)

    def names(self, bucket: str = BUCKET) -> list[str]:
        """Return the keys of all objects."""
        found = self.client.list_objects_v2(Bucket=bucket)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def take_credentials_after(self, requests: str) -> None:
        """Let the server refuse all requests after so many, because it does not know the key."""
        self.post("reset-auth", requests)

    def post(self, route: str, text: str = "") -> None:
        """Ask the server's own interface."""
        host = self.endpoint.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("POST", f"/moto-api/{route}", text)
        assert connection.getresponse().status == 200
        connection.close()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server and give its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def s3_store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Give an empty bucket, with its credentials in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    store = Store(endpoint)
    store.client.create_bucket(Bucket=BUCKET)
    yield store
    store.take_credentials_after(NO_LIMIT)
    store.post("reset")
