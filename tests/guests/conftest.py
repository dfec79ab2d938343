"""What tests of whole guests share: a web server on the loopback."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], int]]:
    """Has a server on the loopback give these bytes to everybody who asks; its port."""
    with ExitStack() as stack:
        yield lambda data: _serve(data, stack)


def _serve(data: bytes, stack: ExitStack) -> int:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return int(server.server_address[1])
