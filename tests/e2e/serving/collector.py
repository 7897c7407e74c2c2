"""A collector of OpenTelemetry by gRPC, which appends the spans that it gets to a file.

It is a process of its own: a process in which gRPC runs may not fork, which other tests do.

Usage: python collector.py FILE; it prints its address and ends when its stdin is closed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector:
    """The service; a line of its file is a span as JSON, by the names of the protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def Export(self, request: Any, _context: Any) -> Any:
        with self.path.open("a") as file:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        line = MessageToJson(span, indent=None, preserving_proto_field_name=True)
                        file.write(line + "\n")
        return trace_service_pb2.ExportTraceServiceResponse()


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(Collector(Path(sys.argv[1])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"http://127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main()
