"""A web server on this machine that serves files from memory and can be told to misbehave."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and how it is served; the faults hold until they are changed.

    cuts : after how many bytes of its body the next answers break off, one after another; then none
    cut_all : after how many bytes every answer breaks off
    """

    body: bytes
    etag: str | None = '"1"'
    last_modified: str | None = None
    statuses: deque[int] = field(default_factory=deque)  # answered first, one after another
    cuts: deque[int] = field(default_factory=deque)
    cut_all: int | None = None
    reset: bool = False  # break off with a TCP reset in place of an orderly end
    ranges: bool = True
    announced: int = 0  # added to Content-Length
    no_length: bool = False
    stall: float = 0.0  # seconds of silence before the body
    rate: float = 0.0  # seconds between two blocks of 4 KiB
    location: str | None = None


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    if_range: str | None


class FaultyServer(ThreadingHTTPServer):
    """Serves `files` (path -> Served) and keeps what was asked for in `requests`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def gets(self, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == ("GET", path)]

    def close(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        headers = self.headers
        self.server.requests.append(Request(self.command, self.path, headers.get("Range"), headers.get("If-Range")))
        self.close_connection = True
        served = self.server.files.get(self.path)
        if served is None:
            return self.send(404)
        if served.statuses:
            return self.send(served.statuses.popleft())
        if served.location:
            return self.send(302, {"Location": served.location})
        start, status, fields = 0, 200, {"Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        same = headers.get("If-Range") in (None, served.etag, served.last_modified)
        if asked and served.ranges and same:
            start = int(asked[1])
            if start >= len(served.body):
                return self.send(416, {"Content-Range": f"bytes */{len(served.body)}"})
            status = 206
            fields["Content-Range"] = f"bytes {start}-{len(served.body) - 1}/{len(served.body)}"
        body = served.body[start:]
        if not served.no_length:
            fields["Content-Length"] = str(len(body) + served.announced)
        optional = {"ETag": served.etag, "Last-Modified": served.last_modified}
        fields |= {name: value for name, value in optional.items() if value}
        self.send(status, fields)
        self.server.ended.wait(served.stall)
        cut = served.cuts.popleft() if served.cuts else served.cut_all
        self.write(body[:cut], served.rate)
        if cut is not None and served.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return None

    def send(self, status: int, fields: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Connection": "close"} | (fields or {"Content-Length": "0"})).items():
            self.send_header(name, value)
        self.end_headers()

    def write(self, body: bytes, rate: float) -> None:
        try:
            for start in range(0, len(body), 4096):
                self.wfile.write(body[start : start + 4096])
                if rate and self.server.ended.wait(rate):
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone: some tests kill it
