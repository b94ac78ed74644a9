"""A real S3 endpoint over HTTP (moto's server), which can be told to fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dagster_aws.s3 import S3Resource
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"


@dataclass
class Fault:
    """What a request meets instead of the server.

    Attributes:
        status: of the answer, such as "500 InternalError".
        method: of the requests that meet it.
        times: how many do.
        seconds: of silence before the answer.
    """

    status: str = "500 InternalError"
    method: str = "GET"
    times: int = 1
    seconds: float = 0.0


@dataclass
class S3Server:
    """The endpoint.

    Attributes:
        endpoint: its address.
        faults: that requests meet, while there are any left.
        met: (method, status) of each that was met.
    """

    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    met: list[tuple[str, str]] = field(default_factory=list)

    def resource(self, **options: Any) -> S3Resource:
        return S3Resource(endpoint_url=self.endpoint, region_name="us-east-1", **options)

    @property
    def client(self) -> Any:
        return self.resource().get_client()

    def keys(self, bucket: str) -> set[str]:
        listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {entry["Key"] for entry in listed}

    def middleware(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Any]:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            for fault in self.faults:
                if fault.times > 0 and environ["REQUEST_METHOD"] == fault.method:
                    fault.times -= 1
                    self.met.append((fault.method, fault.status))
                    time.sleep(fault.seconds)
                    code = fault.status.split(" ", 1)[1]
                    start_response(fault.status, [("Content-Type", "application/xml")])
                    return [_ERROR.format(code=code).encode()]
            return application(environ, start_response)

        return answer


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Serve S3 on a free port of this machine, with nothing in it."""
    server = S3Server()
    application = DomainDispatcherApplication(create_backend_app)
    http = make_server("127.0.0.1", 0, server.middleware(application), threaded=True)
    server.endpoint = f"http://127.0.0.1:{http.port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        application.get_application({"HTTP_HOST": "s3.localhost", "PATH_INFO": "/"})
        import requests

        requests.post(f"{server.endpoint}/moto-api/reset", timeout=30)
        yield server
    finally:
        http.shutdown()
        thread.join()
