"""A server of a thread a connection, within bounds: of the connections at once, and of the time that a client takes.

A connection beyond the bound is told so, 503, and closed. A request that is not there after `SLOWEST` seconds, be it
byte by byte, ends its connection, as does an answer that is not taken in as many.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_CONNECTIONS = 64  # at once, each with a thread; a browser keeps up to six
SLOWEST = 20.0  # seconds for a request to come, and for an answer to be taken
HURRY = 0.1  # seconds to wait for the request of a connection that is refused: unread, it would cut the answer off
RETRY = 5  # seconds after which a client that was refused may come again


class BoundedServer(ThreadingHTTPServer):
    """Serves `MOST_CONNECTIONS` at once."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._most = MOST_CONNECTIONS
        self._free = threading.BoundedSemaphore(self._most)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def _refuse(self, connection: socket.socket) -> None:
        """By the thread that accepts: while all places are taken it has nobody else to serve."""
        message = f"{self._most} connections are open, as many as this server takes: try again in a few seconds"
        told = json.dumps({"error": "too-many-connections", "message": message}).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"Content-Length: {len(told)}\r\nRetry-After: {RETRY}\r\nConnection: close\r\n\r\n"
        )
        connection.settimeout(HURRY)
        try:
            connection.sendall(head.encode() + told)
            connection.recv(2**16)
        except OSError:  # it has left, or says nothing
            pass
        finally:
            self.shutdown_request(connection)


class PunctualHandler(BaseHTTPRequestHandler):
    """Waits `SLOWEST` seconds for all of a request, and as long for an answer to be taken."""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.end = time.monotonic() + SLOWEST
        super().handle_one_request()

    def settle_patience(self) -> None:
        """Before an answer is sent: a connection has one timeout for both directions."""
        self.connection.settimeout(SLOWEST)


class _Incoming(io.RawIOBase):
    """What comes over a connection until a moment, `end` of `time.monotonic`; then TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.end = connection, time.monotonic() + SLOWEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long to come")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
