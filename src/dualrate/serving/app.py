"""The page's server: a Starlette application, served by uvicorn.

    GET    /                  the page
    GET    /api/model         the model, its controls, its limits
    POST   /api/plan          a Request as JSON -> what would be drawn, and its cost
    POST   /api/samples       a Request as JSON -> 202 and a job, or 429 where too many wait; to who accepts
                              text/event-stream the reports of it, until it ends: whoever leaves ends it
    GET    /api/samples/ID    how far the job is, and its images as PNGs in data URIs; 504 where it took too long
    DELETE /api/samples/ID    stops it
    GET    /api/health        200 while it draws
    GET    /metrics           for Prometheus: the queue, requests by time and end, refusals, batches of calls

A refusal is a 4xx with {"error": name, "message": ..., "field": of the request, if it is one's}. On a loopback address
only requests to a loopback name are answered, and a request's body must call itself JSON: so no other page that the
browser shows can use this server.

A client that is slow, silent or gone costs one of a limited number of connections, for a limited time: where a further
one comes, the connection that waited longest for its client makes room. What clients do is never logged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dualrate.config.serial import from_json
from dualrate.report.html import TEMPLATES
from dualrate.serving.engine import KINDS, Full
from dualrate.serving.jobs import BUCKETS, Job, Jobs
from dualrate.serving.offer import Offer, Request
from dualrate.system.device import free_descriptors
from dualrate.system.progress import Interrupts

PARTS = Path(__file__).with_name("parts")
MOST_BYTES = 16_384  # of a request's body
RETRY = {"Retry-After": "5"}  # seconds after which a client that was refused may come again
CLIENT = 15.0  # seconds that a client may take for a request's body; twice as many between answers and for reading them
EVERY, CALM = 0.2, 8  # seconds between two reports of a stream; as long again for so many requests at work
MOST_CONNECTIONS, WAITING = 128, 1024  # at a time; that are not accepted yet
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
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


def html_page(described: Mapping[str, Any]) -> str:
    """The page, one document. described: an offer (`Offer.described`)."""
    environment = Environment(loader=FileSystemLoader([PARTS, TEMPLATES]), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("play.html").render(name=described["name"], model=described)


class _Stream(StreamingResponse):
    """Events. taken: what they take, left with them: at once where the client goes, be it before the first."""

    def __init__(self, events: AsyncIterator[str], taken: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.taken = taken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.taken:
            await super().__call__(scope, receive, send)


class _Page:
    """The application's answers. They all run on one event loop, so `jobs` needs no lock."""

    def __init__(self, offer: Offer, jobs: Jobs, streams: int) -> None:
        self.offer, self.jobs, self.streams = offer, jobs, streams
        self.described = offer.described()
        self.html = html_page(self.described)

    async def show(self, request: HTTPRequest) -> Response:
        return HTMLResponse(self.html)

    async def model(self, request: HTTPRequest) -> Response:
        return JSONResponse(self.described)

    async def plan(self, request: HTTPRequest) -> Response:
        sides = await asyncio.to_thread(self.offer.sides, await self._read(request))
        return JSONResponse({"sides": [side.described for side in sides]})

    async def submit(self, request: HTTPRequest) -> Response:
        wanted, host = await self._read(request), "" if request.client is None else request.client.host
        client, streams = "" if _is_loopback(host) else host, "text/event-stream" in request.headers.get("accept", "")
        with ExitStack() as place:  # what it takes is free again, unless a stream goes on with it
            try:
                self.jobs.require_place(client)  # before the cost is counted
                if streams:
                    place.enter_context(self._one_stream())
                sides = await asyncio.to_thread(self.offer.sides, wanted)
                job = self.jobs.submit(sides, client)
            except Full as error:
                raise Refused(429, "too-many-waiting", str(error), RETRY) from error
            if streams:
                place.callback(job.end)
                return _Stream(self._reports(job), place.pop_all())
        where = {"Location": f"/api/samples/{job.name}"}
        return JSONResponse(job.report(self.jobs.ahead(job)), 202, where)

    @contextmanager
    def _one_stream(self) -> Iterator[None]:
        """One of the streams that may be open. Raises Full where there is none."""
        if not self.streams:
            raise Full("too many streams are open: try again in a few seconds")
        self.streams -= 1
        try:
            yield
        finally:
            self.streams += 1

    async def _reports(self, job: Job) -> AsyncIterator[str]:
        """Yields events: the reports of a job, when there is news, until it ends."""
        ended, shown, drawing = False, None, asyncio.wrap_future(job.drawing)
        drawing.add_done_callback(lambda future: future.cancelled() or future.exception())  # the job tells of it
        while not ended:
            pause = EVERY * (1 + len(self.jobs.active()) // CALM)
            await asyncio.wait([drawing], timeout=pause if shown else 0)
            ended, ahead, _ = drawing.done(), self.jobs.ahead(job), self.jobs.find(job.name)
            news = job.status, ahead, [side.steps for side in job.sides]
            if news != shown:
                previews = any(side.previews for side in job.sides) and not ended  # pictures that are to be made
                report = await asyncio.to_thread(job.report, ahead) if previews else job.report(ahead)
                yield f"data: {json.dumps(report)}\n\n"
            shown = news

    async def health(self, request: HTTPRequest) -> Response:
        return JSONResponse({"drawing": self.jobs.engine.alive}, 200 if self.jobs.engine.alive else 503)

    async def metrics(self, request: HTTPRequest) -> Response:
        try:
            return Response(measurements(self.jobs), media_type="text/plain; version=0.0.4")
        except ModuleNotFoundError as error:
            raise Refused(501, "no-metrics", "metrics need prometheus-client: pip install 'dualrate[serve]'") from error

    async def job(self, request: HTTPRequest) -> Response:
        job = self.jobs.find(request.path_params["name"])
        if job is None:
            raise Refused(404, "no-such-samples", "there is no such request at work: it was given up, or forgotten")
        if request.method == "DELETE":
            job.end()
        if job.status == "late":
            raise Refused(504, "out-of-time", job.error)
        return JSONResponse(await asyncio.to_thread(job.report, self.jobs.ahead(job)))

    async def refuse(self, request: HTTPRequest | None, error: Exception) -> Response:
        """Count a refusal, and put it into words."""
        message, more = re.sub(r"^request(: |\.)", "", str(error)), {}
        if isinstance(error, HTTPException):
            name = error.name if isinstance(error, Refused) else NAMES.get(error.status_code, "bad-http")
            status, message = error.status_code, error.detail
        elif isinstance(error, ValueError):
            name, status, field = "bad-request", 400, re.match(rf"({FIELDS})\b", message)
            more = {"field": field[1] if field else None}
        else:  # a fault of the program
            traceback.print_exception(error)
            name, status, message = "server-error", 500, f"{type(error).__name__}: {message}"
        self.jobs.refused[name] += 1
        return JSONResponse({"error": name, "message": message, **more}, status, getattr(error, "headers", None))

    async def _read(self, request: HTTPRequest) -> Request:
        kind = request.headers.get("content-type", "nothing").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "not-json", f"send a request as Content-Type application/json, got {kind}")
        body, most = bytearray(), MOST_BYTES + self.offer.service.bytes
        try:
            async with asyncio.timeout(CLIENT):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise Refused(413, "too-long", f"a request has at most {most} bytes")
        except TimeoutError as error:
            close = {"Connection": "close"}
            raise Refused(408, "too-slow", f"a request comes within {CLIENT:g} s, this one did not", close) from error
        except ClientDisconnect as error:
            raise Refused(400, "cut-off", "the request ended in the middle") from error
        if len(body) <= MOST_BYTES:
            return from_json(Request, bytes(body), "request")
        return await asyncio.to_thread(from_json, Request, bytes(body), "request")


def measurements(jobs: Jobs) -> bytes:
    """Text that Prometheus reads. Raises ModuleNotFoundError without prometheus-client."""
    from prometheus_client import core, generate_latest  # pyright: ignore[reportMissingImports]

    engine, active = jobs.engine, [job.status for job in jobs.active()]
    at_work = core.GaugeMetricFamily("dualrate_requests", "Requests, by what they do", labels=["status"])
    for status in ("waiting", "running"):
        at_work.add_metric([status], active.count(status))
    ended = core.CounterMetricFamily("dualrate_requests_ended", "Requests, by how they ended", labels=["status"])
    for status, count in sorted(jobs.ended.items()):
        ended.add_metric([status], count)
    lasted = core.HistogramMetricFamily(
        "dualrate_request_seconds", "Seconds of a request, from its arrival to its end", labels=["status"]
    )
    for status, count in sorted(jobs.ended.items()):
        within = [sum(jobs.lasting[status, i] for i in range(k + 1)) for k in range(len(BUCKETS))]
        buckets = list(zip([*map(str, BUCKETS), "+Inf"], [*within, count], strict=True))
        lasted.add_metric([status], buckets, jobs.seconds[status])
    refused = core.CounterMetricFamily("dualrate_refused", "Answers that were refusals", labels=["error"])
    for error, count in sorted(jobs.refused.items()):
        refused.add_metric([error], count)
    calls = core.GaugeMetricFamily(
        "dualrate_calls_waiting", "Calls that wait for the engine's next turn", engine.waiting
    )
    rows = core.SummaryMetricFamily("dualrate_batch_rows", "Rows of a batch", labels=["kind"])
    seconds = core.SummaryMetricFamily("dualrate_batch_seconds", "Seconds of a batch", labels=["kind"])
    for kind in KINDS:
        rows.add_metric([kind], engine.batches[kind], engine.rows[kind])
        seconds.add_metric([kind], engine.batches[kind], engine.seconds[kind])

    class Now:
        def collect(self) -> Iterator[core.Metric]:
            yield from (at_work, ended, lasted, refused, calls, rows, seconds)

    registry = core.CollectorRegistry()
    registry.register(Now())
    return generate_latest(registry)


def make_app(offer: Offer, jobs: Jobs, host: str, loopback: bool, streams: int = MOST_CONNECTIONS // 2) -> ASGIApp:
    """The application. loopback: whether `host`, where it listens, is of this machine alone; streams: at a time."""
    answers = _Page(offer, jobs, streams)
    routes = [
        Route("/", answers.show),
        Route("/api/model", answers.model),
        Route("/api/plan", answers.plan, methods=["POST"]),
        Route("/api/samples", answers.submit, methods=["POST"]),
        Route("/api/samples/{name}", answers.job, methods=["GET", "DELETE"]),
        Route("/api/health", answers.health),
        Route("/metrics", answers.metrics),
    ]
    kinds = HTTPException, ValueError, Exception
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, answers.refuse))

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses another site's name that was made to lead here, and adds headers."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":  # its beginning and its end, which some servers tell
            await app(scope, receive, send)
            return
        name = re.sub(r":\d+$", "", Headers(scope=scope).get("host", "")).strip("[]").lower()
        answer: ASGIApp = app
        if loopback and name != host.lower() and not _is_loopback(name):
            message = "this server is for its own machine alone; serve others with --host 0.0.0.0"
            answer = await answers.refuse(None, Refused(421, "wrong-host", message))
        await answer(scope, receive, with_headers)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connections(most: int, refused: Counter[str]) -> type[H11Protocol]:
    """A class of connections, one for each client, `most` of them at a time. refused: counts those that are too many"""

    class Connection(H11Protocol):
        ended = False
        timer: asyncio.TimerHandle | None = None

        @property
        def answering(self) -> bool:
            """Whether it is the server's turn: a request has come, and its answer is not written yet."""
            cycle = self.cycle
            return cycle is not None and not (cycle.more_body or cycle.response_complete or self.flow.write_paused)

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self.wait()
            alive = [client for client in self.connections if isinstance(client, Connection) and not client.ended]
            if len(alive) > most:
                slowest = min((client for client in alive if not client.answering), key=lambda client: client.since)
                if slowest is self:  # all others are being answered
                    refused["too-many-connections"] += 1
                    transport.write(FULL)
                slowest.end()

        def wait(self) -> None:
            """Begin to wait for the client."""
            self.since, self.unread = self.loop.time(), self.transport.get_write_buffer_size()
            self.look_later()

        def look_later(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = self.loop.call_later(2 * CLIENT, self.look)

        def look(self) -> None:
            """End it, unless it is the server's turn or the client has read more of its answer."""
            unread = self.transport.get_write_buffer_size()
            if self.answering or unread < self.unread:
                self.unread = unread
                self.look_later()
            else:
                self.end()

        def end(self) -> None:
            self.ended = True
            self.transport.abort()  # what cannot be sent at once is lost

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.ended:
                self.wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.ended = True
            if self.timer is not None:
                self.timer.cancel()

        def shutdown(self) -> None:
            super().shutdown() if self.answering else self.end()

    return Connection


class _Door(socket.socket):
    """A socket where many may wait to come in, however few are let in at once."""

    def listen(self, backlog: int = WAITING, /) -> None:
        super().listen(WAITING)


async def _run(server: uvicorn.Server, place: socket.socket) -> None:
    """Serve until it is to exit. Errors of connections are the clients' own, and no news."""

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), OSError):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(tell)
    await server.serve([place])


@contextmanager
def listening(offer: Offer, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves an offer in threads of its own while it lasts; yields its address. port: 0 for any that is free.

    Raises OSError where it cannot listen there, ValueError for an empty host.
    """
    if not host:
        raise ValueError("--host is an address, got an empty one: pass 0.0.0.0 for all of the network")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = _Door(fileno=socket.create_server((host, port), family=family, backlog=WAITING).detach())
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error}): choose another --port, 0 for any that is free, or an "
            "address of this machine as --host"
        ) from error
    with place, Jobs(offer.limits) as jobs:
        address, bound = place.getsockname()[:2]
        free = free_descriptors()
        most = max(1, min(MOST_CONNECTIONS, free // 4))
        app = make_app(offer, jobs, host, _is_loopback(address), most // 2)
        settings = uvicorn.Config(
            app,
            http=_connections(most, jobs.refused),
            ws="none",
            backlog=max(1, min(MOST_CONNECTIONS, free // 8)),  # as many are accepted before any of them makes room
            log_config=None,
            log_level="critical",
            access_log=False,
            forwarded_allow_ips="127.0.0.1,::1",  # a proxy of this machine names its clients
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=asyncio.run, args=(_run(server, place),), name="serving", daemon=True)
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
