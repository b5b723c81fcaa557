"""Whoever asks for much, or vanishes, has one share; others have theirs."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
from contracts.test_contracts import MADE, PROCESS
from serving.made import Held, ask, finished, held_offer, model
from serving.test_engine import Asked, Counted, wait_until
from serving.test_stream import EVENTS, LIMITS, event, stream

import dualrate as dr
from dualrate.serving import app, jobs
from dualrate.serving.app import listening
from dualrate.serving.engine import Batched, Capacity, Engine
from dualrate.serving.jobs import Jobs
from dualrate.serving.offer import Offer, Request


@pytest.fixture(scope="module")
def offer() -> Offer:
    return Offer(model(), limits=LIMITS)


@pytest.fixture
def held(offer, monkeypatch) -> Iterator[tuple[Offer, Held]]:
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)
    with held_offer(offer.model, LIMITS) as held:
        yield held


@dataclass(frozen=True)
class Noted(dr.Ancestral):
    """Counts the rows of a client's steps; stops them all when `stop` is set."""

    client: str = ""
    rows: Counter = field(default_factory=Counter)

    def __call__(self, denoise, z, t, s, draw, carry):
        result = super().__call__(denoise, z, t, s, draw, carry)
        self.rows[self.client] += len(z)
        return result


def beside(engine: Engine, counted: Counted, greedy: int, small: str) -> tuple[Counter, list[int]]:
    """Rows that were drawn while a small request was at work beside so many greedy ones, and batches meanwhile."""
    rows: Counter = Counter()
    plans = {"greedy": dr.StepPlan.uniform(400, 400), "small": dr.StepPlan.uniform(10, 10)}

    def draw(client: str, plan: str, seeds: list[int]) -> tuple[Counter, list[int]]:
        with engine.enter(len(seeds), client) as drawing:
            drawings.append(drawing)
            ready.wait(30)
            asked = Asked(counted, Noted(PROCESS, client=client, rows=rows), plans[plan], seeds)
            before, batches = Counter(rows), len(counted.rows("encode"))
            asked.through(Batched(counted, drawing, False))
            return rows - before, counted.rows("encode")[batches:]

    drawings: list = []
    ready = threading.Barrier(greedy + 1)
    with ThreadPoolExecutor(greedy + 1) as pool:
        others = [pool.submit(draw, "a", "greedy", [4 * i + k for k in range(4)]) for i in range(greedy)]
        result = pool.submit(draw, small, "small", [1000]).result(60)
        for drawing in drawings:
            drawing.cancel()
        wait_until(lambda: all(other.done() for other in others))
    return result


def test_a_client_with_many_requests_has_one_share():
    """Where a batch has room for one request, every other one is of another client, which asks for fewer rows."""
    counted = Counted(MADE["dual"](), fails=lambda method, z: time.sleep(0.003 * len(z)))
    counted.gate.set()
    with Engine(Capacity(rows=4)) as engine:
        rows, _ = beside(engine, counted, 8, "b")
    assert rows["b"] == 10
    assert rows["a"] <= 4 * 15  # by request it would be 4 * 80


def test_small_requests_of_the_same_client_are_not_starved_either():
    counted = Counted(MADE["dual"](), fails=lambda method, z: time.sleep(0.003 * len(z)))
    counted.gate.set()
    with Engine(Capacity(rows=4)) as engine:
        rows, _ = beside(engine, counted, 8, "a")
    assert rows["a"] <= 4 * 55 + 10


def test_turns_are_short_while_another_client_is_at_work():
    """And long again where one is alone."""
    counted = Counted(MADE["dual"](), fails=lambda method, z: time.sleep(0.002 * len(z)))
    counted.gate.set()
    with Engine(Capacity(seconds=10, share=0.02)) as engine:
        _, batches = beside(engine, counted, 8, "b")
        assert max(batches[3:]) <= 4 * 3 + 1, batches
        _, batches = beside(engine, counted, 8, "a")
        assert max(batches) >= 4 * 6, batches


def test_who_was_away_has_no_more_of_a_claim_than_who_was_at_work():
    with Engine() as engine, engine.enter(1, "a") as first:
        with engine.changed:
            engine._used["a"] = first.used = 50
        with engine.enter(1, "b") as second, engine.enter(1, "a") as third:
            assert engine._used == {"a": 50, "b": 50}
            assert (second.used, third.used) == (0, 50)
        assert engine._used == {"a": 50}


# Places


def test_a_client_takes_not_all_places_at_work(held):
    offer, gate = held
    sides = lambda: offer.sides(Request(steps=2, images=1, beside="nothing"))  # noqa: E731
    with Jobs(replace(LIMITS, at_once=4, waiting=8)) as queue:
        greedy = [queue.submit(sides(), "a") for _ in range(7)]
        wait_until(lambda: sum(job.status == "running" for job in greedy) == 3)
        other = queue.submit(sides(), "b")
        wait_until(lambda: other.status == "running")
        later = [queue.submit(sides(), name) for name in ("a", "b", "c")]
        greedy[0].end()
        gate.gate.set()
        wait_until(lambda: all(job.drawing.done() for job in (*greedy, other, *later)))
        assert {job.status for job in (*greedy[1:], other, *later)} == {"done"}
        assert not queue._waiting
        wait_until(lambda: not queue._running)


def test_a_proxy_of_this_machine_names_its_clients(held):
    offer, _ = held
    offer = Offer(offer.model, limits=replace(LIMITS, each=1))
    fields = {"steps": 2, "images": 1, "beside": "nothing"}
    with listening(offer) as url:
        answers = [
            ask(url, "POST", "/api/samples", fields, X_Forwarded_For=name)
            for name in ("192.0.2.7", "192.0.2.7", "192.0.2.8")
        ]
        held[1].gate.set()
        assert [answer.status for answer in answers] == [202, 429, 202]
        assert "1 requests of yours" in answers[1].json["message"]


# Who vanishes


def test_who_does_not_ask_again_is_not_drawn_for(held, monkeypatch):
    offer, gate = held
    with listening(offer) as url:
        name = ask(url, "POST", "/api/samples", {"steps": 4, "heavy": 4, "beside": "nothing"}).json["id"]
        assert gate.begun.wait(30)
        monkeypatch.setattr(jobs, "IDLE", 0.0)
        gate.gate.set()
        assert finished(url, name)["status"] == "stopped"
    assert jobs.IDLE < 60 <= jobs.PATIENCE


def test_answers_are_kept_within_a_limit_of_bytes(offer, monkeypatch):
    monkeypatch.setattr(jobs, "KEPT_BYTES", 1)
    sides = lambda: offer.sides(Request(steps=2, images=1, beside="nothing"))  # noqa: E731
    with Jobs(LIMITS) as queue:
        first = queue.submit(sides())
        first.drawing.result(30)
        assert queue.find(first.name) is first
        queue.require_place()
        assert queue.find(first.name) is None


def gone_at_once(page, queue: Jobs) -> None:
    """Ask for a stream and leave before it begins."""
    body, sent = [{"type": "http.request", "body": b'{"steps": 4, "beside": "nothing"}'}], []
    headers = [(name.lower().encode(), value.encode()) for name, value in EVENTS.items()]
    scope = {
        "type": "http",
        "asgi": {"spec_version": "2.3"},
        "method": "POST",
        "path": "/api/samples",
        "headers": headers,
    }
    scope |= {"client": ("127.0.0.1", 1), "query_string": b"", "http_version": "1.1"}

    async def receive():
        return body.pop() if body else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(page(scope, receive, send))


def test_who_leaves_a_stream_before_it_begins_is_not_drawn_for(held):
    """Nor does a stream that has gone count."""
    offer, gate = held
    with Jobs(LIMITS) as queue:
        page = app.make_app(offer, queue, "", False, streams=1)
        for _ in range(3):
            gone_at_once(page, queue)
            assert [job.place.cancelled for job in queue.active()] == [True] * len(queue.active())
        gate.gate.set()
        wait_until(lambda: not queue.active())
        assert queue.ended == {"stopped": 3}


def test_streams_are_counted_before_there_are_too_many(offer, monkeypatch):
    gate, sides, inside = threading.Event(), Offer.sides, threading.Semaphore(0)
    monkeypatch.setattr(app, "MOST_CONNECTIONS", 3)  # of which one may be a stream
    with listening(offer) as url, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Offer, "sides", lambda *of: inside.release() or (gate.wait(20) and sides(*of)))
        first = pool.submit(stream, url)
        assert inside.acquire(timeout=30)
        refused = ask(url, "POST", "/api/samples", {}, Accept="text/event-stream")
        gate.set()
        assert (refused.status, refused.json["error"]) == (429, "too-many-waiting")
        assert refused.json["message"] == "too many streams are open: try again in a few seconds"
        connection, answer = first.result(30)
        assert event(answer)["status"] in ("waiting", "running", "done")
        connection.close()
        wrong = ask(url, "POST", "/api/samples", {"steps": 99}, Accept="text/event-stream")  # takes none
        end = time.monotonic() + 30
        while (again := ask(url, "POST", "/api/samples", {"steps": 1}, Accept="text/event-stream")).status == 429:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert (wrong.status in (400, 429), again.status) == (True, 200)
        last = again.content.decode().strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["status"] == "done"
