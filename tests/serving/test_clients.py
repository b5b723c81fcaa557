"""Clients that are many, slow, or gone take nothing from others, and leave no trace in the log."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from reader import ROOT
from serving.made import Held, ask, finished, model

from dualrate.serving.app import listening
from dualrate.serving.offer import Limits, Offer

POST = b"POST /api/plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


@dataclass(frozen=True)
class Server:
    url: str
    log: Path
    process: subprocess.Popen

    def open(self, first: bytes = b"") -> socket.socket:
        place = urlsplit(self.url)
        opened = socket.create_connection((place.hostname, place.port), timeout=20)
        opened.sendall(first)
        return opened

    def answers(self) -> None:
        """A client that does as it should is served."""
        assert ask(self.url, "GET", "/").status == 200
        assert ask(self.url, "POST", "/api/plan", {"steps": 2}).status == 200

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log"
    places = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    command = [sys.executable, Path(__file__).with_name("patient.py")]
    environment = {**os.environ, "PYTHONPATH": places}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
    with process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            found = re.search(r"http://\S+", first)
            assert found, log.read_text()
            yield Server(found[0], log, process)
            held = [Server(found[0], log, process).open(POST) for _ in range(3)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0  # over a second of CPU time, of a machine that others use
            assert process.stdout.read() == "stopped by SIGTERM\n"
            assert log.read_text() == ""
            for one in held:
                one.close()
        finally:
            process.kill()


def reset(one: socket.socket) -> None:
    """Close without a farewell: whatever the server sends then is an error."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def ended(one: socket.socket) -> bytes:
    """All that the server sends until it ends the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(2**16):
            content += part
    one.close()
    return content


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: lo", POST, POST + b"{"])
def test_many_clients_that_send_nothing_more_keep_none_from_being_answered(server, first):
    silent = []
    for _ in range(100):
        with contextlib.suppress(OSError):  # one that made room for others
            silent.append(server.open(first))
    server.answers()
    assert server.open_files() < 64
    for one in silent:
        one.close()
    assert server.log.read_text() == ""


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP"])
def test_a_client_that_sends_a_byte_now_and_then_is_let_go(server, first):
    one, start = server.open(first), time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - start < 10:
            one.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - start < 5
    one.close()
    server.answers()


def test_a_body_that_does_not_come_is_a_408(server):
    one = server.open(POST + b'{"steps"')
    head, _, body = ended(one).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"] == "too-slow"


def test_a_client_that_reads_nothing_is_let_go(server):
    before, one = server.open_files(), server.open()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.settimeout(0.2)
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(2000):
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    end = time.monotonic() + 10
    while server.open_files() > before and time.monotonic() < end:
        time.sleep(0.1)
    assert server.open_files() <= before
    one.close()
    server.answers()


def test_a_client_that_leaves_in_the_middle_leaves_no_trace(server):
    asked = ask(server.url, "POST", "/api/samples", {"steps": 2, "images": 4}).json["id"]
    finished(server.url, asked)
    images = f"GET /api/samples/{asked} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for first in (b"", b"GET", POST, POST + b"{", images, images * 50, b"\x16\x03\x01\0", b"GET / HTTP/9\r\n\r\n"):
        for leave in (reset, socket.socket.close):
            for pause in (0.0, 0.02):
                one = server.open(first)
                time.sleep(pause)
                leave(one)
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    reset(server.open(upgrade))
    server.answers()
    assert server.log.read_text() == ""


def test_where_all_others_are_being_answered_a_further_client_is_told_to_come_again(monkeypatch):
    gate = threading.Event()
    offer = Offer(model(), limits=Limits(steps=12, images=4))
    monkeypatch.setattr("dualrate.serving.app.MOST_CONNECTIONS", 2)
    sides = Offer.sides
    with listening(offer) as url:
        monkeypatch.setattr(Offer, "sides", lambda *of: gate.wait(20) and sides(*of))
        server = Server(url, Path(), None)  # type: ignore[arg-type]
        body = b"{}" + 98 * b" "
        busy = [server.open(POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body) for _ in range(2)]
        time.sleep(0.3)
        assert ended(server.open()).startswith(b"HTTP/1.1 503 ")
        gate.set()
        assert all(ended(one).startswith(b"HTTP/1.1 200 ") for one in busy)


def test_a_request_that_is_drawn_for_too_long_is_a_504_and_the_next_one_is_drawn(monkeypatch):
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)
    held = Held(model().denoiser)
    held.gate.set()
    offer = Offer(replace(model(), denoiser=held), limits=Limits(steps=12, images=4, seconds=0.5))
    held.then.append(lambda: time.sleep(0.3))
    with listening(offer) as url:
        slow = ask(url, "POST", "/api/samples", {"steps": 12, "heavy": 12, "images": 1, "beside": "nothing"}).json["id"]
        end = time.monotonic() + 20
        while (answer := ask(url, "GET", f"/api/samples/{slow}")).status == 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert (answer.status, answer.json["error"]) == (504, "out-of-time")
        assert answer.json["message"] == "this took longer than 0.5 s, the most here: ask for fewer steps or images"
        held.then.clear()
        quick = ask(url, "POST", "/api/samples", {"steps": 2, "images": 1, "beside": "nothing"}).json["id"]
        assert finished(url, quick)["status"] == "done"
        assert ask(url, "GET", f"/api/samples/{slow}").status == 504
