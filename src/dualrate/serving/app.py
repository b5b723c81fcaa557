"""The page's server: a Starlette application, served by uvicorn.

    GET    /                  the page
    GET    /api/model         the model, its controls, its limits
    POST   /api/plan          a Request as JSON -> what would be drawn, and its cost
    POST   /api/samples       a Request as JSON -> 202 and a job, or 429 where too many wait
    GET    /api/samples/ID    how far the job is, and its images as PNGs in data URIs
    DELETE /api/samples/ID    stops it

A refusal is a 4xx with {"error": name, "message": ..., "field": of the request, if it is one's}. On a loopback address
only requests to a loopback name are answered, and a request's body must call itself JSON: so no other page that the
browser shows can use this server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dualrate.config.serial import from_json
from dualrate.report.html import TEMPLATES
from dualrate.serving.offer import Full, Jobs, Offer, Request
from dualrate.system.progress import Interrupts

PARTS = Path(__file__).with_name("parts")
MOST_BYTES = 16_384  # of a request's body
RETRY = {"Retry-After": "5"}  # seconds after which a client that was refused may come again
FIELDS = "|".join(field.name for field in fields(Request))
NAMES = {404: "not-found", 405: "wrong-method"}
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'"
    ),
}


class Refused(HTTPException):
    """A request that is not served. name: of the reason, for programs; the message says how to mend it."""

    def __init__(self, status: int, name: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.name = name


def page(described: Mapping[str, Any]) -> str:
    """The page, one document. described: an offer (`Offer.described`)."""
    environment = Environment(loader=FileSystemLoader([PARTS, TEMPLATES]), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("play.html").render(name=described["name"], model=described)


class _Page:
    """The application's answers. They all run on one event loop, so `jobs` needs no lock."""

    def __init__(self, offer: Offer, jobs: Jobs) -> None:
        self.offer, self.jobs = offer, jobs
        self.described = offer.described()
        self.html = page(self.described)

    async def show(self, request: HTTPRequest) -> Response:
        return HTMLResponse(self.html)

    async def model(self, request: HTTPRequest) -> Response:
        return JSONResponse(self.described)

    async def plan(self, request: HTTPRequest) -> Response:
        sides = await asyncio.to_thread(self.offer.sides, await _read(request))
        return JSONResponse({"sides": [side.described() for side in sides]})

    async def submit(self, request: HTTPRequest) -> Response:
        asked = await _read(request)
        try:
            self.jobs.require_place()  # before the cost is counted
            sides = await asyncio.to_thread(self.offer.sides, asked)
            job = self.jobs.submit(range(asked.seed, asked.seed + self.offer.images(asked)), sides)
        except Full as error:
            raise Refused(429, "too-many-waiting", str(error), RETRY) from error
        place = {"Location": f"/api/samples/{job.name}"}
        return JSONResponse(job.report(self.jobs.ahead(job)), 202, place)

    async def job(self, request: HTTPRequest) -> Response:
        job = self.jobs.find(request.path_params["name"])
        if job is None:
            raise Refused(404, "no-such-samples", "there is no such request at work: it was given up, or forgotten")
        if request.method == "DELETE":
            job.end()
        return JSONResponse(await asyncio.to_thread(job.report, self.jobs.ahead(job)))


async def _read(request: HTTPRequest) -> Request:
    kind = request.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "not-json", f"send a request as Content-Type application/json, got {kind}")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, "too-long", f"a request has at most {MOST_BYTES} bytes")
    return from_json(Request, body, "request")


def _refusal(request: HTTPRequest, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        name = error.name if isinstance(error, Refused) else NAMES.get(error.status_code, "bad-http")
        return JSONResponse({"error": name, "message": error.detail}, error.status_code, error.headers)
    message = re.sub(r"^request(: |\.)", "", str(error))
    if not isinstance(error, ValueError):
        return JSONResponse({"error": "server-error", "message": f"{type(error).__name__}: {message}"}, 500)
    found = re.match(rf"({FIELDS})\b", message)
    return JSONResponse({"error": "bad-request", "message": message, "field": found[1] if found else None}, 400)


def make_app(offer: Offer, jobs: Jobs, host: str, loopback: bool) -> Starlette:
    """The application. loopback: whether `host`, where it listens, is of this machine alone."""
    answers = _Page(offer, jobs)

    async def guard(request: HTTPRequest, answer: RequestResponseEndpoint) -> Response:
        """Refuses another site's name that was made to lead here, and adds headers."""
        name = re.sub(r":\d+$", "", request.headers.get("host", "")).strip("[]").lower()
        if loopback and name != host.lower() and not _is_loopback(name):
            message = "this server is for its own machine alone; serve others with --host 0.0.0.0"
            response: Response = JSONResponse({"error": "wrong-host", "message": message}, 421)
        else:
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    routes = [
        Route("/", answers.show),
        Route("/api/model", answers.model),
        Route("/api/plan", answers.plan, methods=["POST"]),
        Route("/api/samples", answers.submit, methods=["POST"]),
        Route("/api/samples/{name}", answers.job, methods=["GET", "DELETE"]),
    ]
    kinds = (HTTPException, ValueError, Exception)
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=guard)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=dict.fromkeys(kinds, _refusal))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def listening(offer: Offer, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves an offer in threads of its own while it lasts; yields its address. port: 0 for any that is free.

    Raises OSError where it cannot listen there, ValueError for an empty host.
    """
    if not host:
        raise ValueError("--host is an address, got an empty one: pass 0.0.0.0 for all of the network")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error}): choose another --port, 0 for any that is free, or an "
            "address of this machine as --host"
        ) from error
    with place, Jobs(offer.limits) as jobs:
        address, bound = place.getsockname()[:2]
        app = make_app(offer, jobs, host, _is_loopback(address))
        settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, name="serving", daemon=True)
        thread.start()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{bound}/"
        finally:
            server.should_exit = True
            thread.join()


def serve(offer: Offer, host: str, port: int, note: Callable[[str], None]) -> None:
    """Serves until a signal ends it: a sampling at work stops at its next step. Raises as `listening`."""
    with Interrupts() as interrupts, listening(offer, host, port) as url:
        note(f"serving {offer.model} at {url} (Ctrl-C ends it)")
        while interrupts.received is None:
            time.sleep(0.2)
    note(f"stopped by {interrupts.received.name}")
