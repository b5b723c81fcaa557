"""The page's server, of the standard library: what it answers, and how it ends.

    GET    /                  the page
    GET    /api/model         the model, its controls, its limits
    POST   /api/plan          a Request as JSON -> what would be drawn, and its cost
    POST   /api/samples       a Request as JSON -> 202 and a job, or 429 where too many wait
    GET    /api/samples/ID    how far the job is, and its images as PNGs in data URIs
    DELETE /api/samples/ID    stops it

A refusal is a 4xx, or a 503 where too many connections are open or too many costs are counted, with {"error": name,
"message": ..., "field": of the request, if it is one's}. Bound to loopback, only requests to a loopback name are
answered, and a request's body must call itself JSON: so no other page that the browser shows can use this server.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from http import HTTPStatus
from typing import Any

from dualrate.config.serial import from_json
from dualrate.serving.connections import RETRY, BoundedServer, PunctualHandler
from dualrate.serving.offer import Full, Jobs, Offer, Request
from dualrate.serving.page import play_page
from dualrate.system.progress import Interrupts

MOST_BYTES = 16_384  # of a request's body
COUNTING = 2  # requests whose cost is counted at once
WAITING = 5.0  # seconds that another one waits for that
JSON = "application/json"
FIELDS = "|".join(field.name for field in fields(Request))
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'"
    ),
}


class Refused(Exception):
    """A request that is not served. name: of the reason, for programs; the message says how to mend it."""

    def __init__(self, status: HTTPStatus, name: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.name, self.headers = status, name, headers


class _Server(BoundedServer):
    def __init__(self, offer: Offer, jobs: Jobs, host: str, port: int) -> None:
        if not host:
            raise ValueError("--host is an address, got an empty one, which would be all: say 0.0.0.0 for that")
        self.offer, self.jobs, self.host = offer, jobs, host
        self.described = offer.described()
        self.page = play_page(self.described).encode()
        self.counting = threading.BoundedSemaphore(COUNTING)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OSError(
                f"cannot listen on {host}, port {port} ({error}): choose another --port, 0 for any that is free, or an "
                "address of this machine as --host"
            ) from error

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_port}/"

    @property
    def loopback(self) -> bool:
        return _is_loopback(str(self.server_address[0]))  # of names too, whatever they stand for here

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no error of the server; what else goes wrong is answered by `_Handler`."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Handler(PunctualHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dualrate", ""
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page asks for progress several times a second."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, as JSON too."""
        self.close_connection = True
        self._send_json(HTTPStatus(code), {"error": "bad-http", "message": message or HTTPStatus(code).phrase})

    def _answer(self) -> None:
        try:
            body = self._body()
            self._check_host()
            self._route(body)
        except Refused as refusal:
            told = {"error": refusal.name, "message": str(refusal)}
            self._send_json(refusal.status, told, **refusal.headers)
        except ValueError as error:
            message = re.sub(r"^request(: |\.)", "", str(error))
            found = re.match(rf"({FIELDS})\b", message)
            told = {"error": "bad-request", "message": message, "field": found[1] if found else None}
            self._send_json(HTTPStatus.BAD_REQUEST, told)
        except OSError:  # the client has left
            self.close_connection = True
        except Exception as error:
            told = {"error": "server-error", "message": f"{type(error).__name__}: {error}"}
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, told)

    def _route(self, body: bytes) -> None:
        path = self.path.split("?")[0].split("#")[0]
        routes: list[tuple[str, dict[str, Callable[..., None]]]] = [
            (r"/", {"GET": self._page}),
            (r"/api/model", {"GET": self._model}),
            (r"/api/plan", {"POST": self._plan}),
            (r"/api/samples", {"POST": self._submit}),
            (r"/api/samples/([\w-]+)", {"GET": self._report, "DELETE": self._stop}),
        ]
        for pattern, methods in routes:
            if found := re.fullmatch(pattern, path):
                method = "GET" if self.command == "HEAD" else self.command
                if method not in methods:
                    allowed = ", ".join(methods)
                    message = f"{path} answers to {allowed}, not to {self.command}"
                    raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "wrong-method", message, Allow=allowed)
                methods[method](*found.groups(), *([body] if method == "POST" else []))
                return
        raise Refused(HTTPStatus.NOT_FOUND, "not-found", f"there is nothing at {path[:100]}: the page is at /")

    def _page(self) -> None:
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def _model(self) -> None:
        self._send_json(HTTPStatus.OK, self.server.described)

    def _plan(self, body: bytes) -> None:
        with self._counting():
            sides = self.server.offer.sides(self._request(body))
        self._send_json(HTTPStatus.OK, {"sides": [side.described() for side in sides]})

    def _submit(self, body: bytes) -> None:
        try:
            with self._counting():
                job = self.server.jobs.submit(self._request(body))
        except Full as error:
            retry = {"Retry-After": str(RETRY)}
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too-many-waiting", str(error), **retry) from error
        place = {"Location": f"/api/samples/{job.name}"}
        self._send_json(HTTPStatus.ACCEPTED, self.server.jobs.report(job), **place)

    def _report(self, name: str) -> None:
        job = self.server.jobs.job(name)
        if job is None:
            message = "there is no such request at work: it was given up, or forgotten; ask again"
            raise Refused(HTTPStatus.NOT_FOUND, "no-such-samples", message)
        self._send_json(HTTPStatus.OK, self.server.jobs.report(job))

    def _stop(self, name: str) -> None:
        if (job := self.server.jobs.job(name)) is not None:
            self.server.jobs.stop(job)
        self._report(name)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """For what runs through a sampling without its networks, to tell its cost: a few at once."""
        if not self.server.counting.acquire(timeout=WAITING):
            message = "too many requests are looked at: try again in a few seconds"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "busy", message, **{"Retry-After": str(RETRY)})
        try:
            yield
        finally:
            self.server.counting.release()

    def _request(self, body: bytes) -> Request:
        kind = self.headers.get_content_type()
        if kind != JSON:
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json", f"a request is sent as Content-Type {JSON}, got {kind}"
            )
        return from_json(Request, body, "request")

    def _body(self) -> bytes:
        """Read whatever is refused, so that the connection can go on; unless it is too long."""
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch(r"\d{1,12}", length) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "no-length", "a request's body needs a Content-Length in bytes")
        if int(length) > MOST_BYTES:
            self.close_connection = True
            message = f"a request has at most {MOST_BYTES} bytes, got {length}"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-long", message)
        return self.rfile.read(int(length))

    def _check_host(self) -> None:
        """Against another site's name that has been made to lead here."""
        host = re.sub(r":\d+$", "", self.headers.get("Host", "")).strip("[]")
        if self.server.loopback and not _is_loopback(host) and host.lower() != self.server.host.lower():
            message = (
                f"this server is for its own machine alone, at {self.server.url}; serve others with --host 0.0.0.0"
            )
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "wrong-host", message)

    def _send_json(self, status: HTTPStatus, value: Any, **headers: str) -> None:
        self._send(status, JSON, json.dumps(value).encode(), **headers)

    def _send(self, status: HTTPStatus, kind: str, content: bytes, **headers: str) -> None:
        self.settle_patience()
        self.send_response(status)
        own = {"Content-Type": kind, "Content-Length": str(len(content))}
        if self.server.loopback:  # a Space is shown in a frame of the Hub's
            own["X-Frame-Options"] = "DENY"
        for name, text in {**HEADERS, **own, **headers}.items():
            self.send_header(name, text)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def listening(offer: Offer, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves an offer in threads of its own while it lasts; yields where. port: 0 for any that is free.

    Raises OSError where it cannot listen there.
    """
    with Jobs(offer) as jobs, _Server(offer, jobs, host, port) as server:
        thread = threading.Thread(target=server.serve_forever, name="serving", daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def serve(offer: Offer, host: str, port: int, note: Callable[[str], None]) -> None:
    """Serves until a signal ends it: a sampling at work stops at its next step. Raises OSError as `listening`."""
    with Interrupts() as interrupts, listening(offer, host, port) as url:
        note(f"serving {offer.model} at {url} (Ctrl-C ends it)")
        never = threading.Event()
        while interrupts.received is None:
            never.wait(0.2)
    note(f"stopped by {interrupts.received.name}")
