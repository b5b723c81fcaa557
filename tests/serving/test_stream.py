"""Requests as streams of reports, health, metrics, and what a greedy client may not take from others."""

import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from serving.made import Held, ask, finished, held_offer, model

from dualrate.drawing.choice import Choice
from dualrate.serving.app import listening, measurements
from dualrate.serving.engine import Full
from dualrate.serving.jobs import Jobs
from dualrate.serving.offer import Limits, Offer, Request, data_uris

LIMITS = Limits(steps=12, images=4, at_once=4, waiting=2)
EVENTS = {"Content-Type": "application/json", "Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def offer() -> Offer:
    return Offer(model(), limits=LIMITS)


@pytest.fixture
def held(offer, monkeypatch) -> Iterator[tuple[str, Held]]:
    """A server whose heavy calls wait for a gate."""
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)
    monkeypatch.setattr("dualrate.serving.app.EVERY", 0.01)
    with held_offer(offer.model, LIMITS) as (waiting, gate), listening(waiting) as url:
        yield url, gate
        gate.gate.set()


def stream(url: str, **fields: object) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    body = {"steps": 4, "heavy": 4, "images": 1, "beside": "nothing", **fields}
    connection.request("POST", "/api/samples", json.dumps(body), EVENTS)
    return connection, connection.getresponse()


def event(answer: http.client.HTTPResponse) -> dict:
    line = answer.readline()
    assert line.startswith(b"data: "), line
    assert answer.readline() == b"\n"
    return json.loads(line[6:])


def test_a_stream_shows_x_hat_step_by_step_and_ends_with_the_images(held, offer):
    url, gate = held
    connection, answer = stream(url, seed=7)
    assert (answer.status, answer.headers.get_content_type()) == (200, "text/event-stream")
    reports = [event(answer)]
    gate.gate.set()
    for line in answer:
        if line.startswith(b"data: "):
            reports.append(json.loads(line[6:]))
    connection.close()
    assert [report["status"] for report in reports][-1] == "done"
    done = [report["sides"][0]["done"] or 0 for report in reports]
    assert done == sorted(done)
    drawn = Choice(4, 4).drawer(offer.model, batch_size=1).draw([7]).images
    assert reports[-1]["sides"][0]["images"] == data_uris(drawn)


def test_many_streams_of_many_plans_are_drawn_at_once(offer):
    wanted = [(steps, seed) for seed, steps in enumerate((2, 3, 5, 7))]

    def draw(of: tuple[int, int]) -> list[str]:
        connection, answer = stream(url, steps=of[0], heavy=1, seed=of[1])
        last = answer.read().decode().strip().split("\n\n")[-1]
        connection.close()
        return json.loads(last[6:])["sides"][0]["images"]

    with listening(offer) as url, ThreadPoolExecutor(4) as pool:
        assert all(images for images in pool.map(draw, wanted))


def test_whoever_leaves_a_stream_ends_it_and_leaves_room(held):
    url, gate = held
    streams = [stream(url, seed=seed) for seed in range(6)]
    assert all(event(answer)["status"] in ("waiting", "running") for _, answer in streams)
    refused = ask(url, "POST", "/api/samples", {"steps": 2}, Accept="text/event-stream")
    assert (refused.status, refused.json["error"], refused.headers["Retry-After"]) == (429, "too-many-waiting", "5")
    for connection, answer in streams:
        answer.close()
        connection.close()
    gate.gate.set()
    end = time.monotonic() + 30
    while (again := ask(url, "POST", "/api/samples", {"steps": 2, "beside": "nothing"})).status == 429:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert finished(url, again.json["id"])["status"] == "done"


def test_one_client_of_the_network_takes_not_all_places(offer):
    """Another one then still has one."""
    limits = replace(LIMITS, each=2)
    sides = lambda: offer.sides(Request(steps=2, beside="nothing"))  # noqa: E731
    gate = threading.Event()
    with Jobs(limits) as jobs:
        block = [jobs._pool.submit(gate.wait, 30) for _ in range(limits.at_once)]
        for _ in range(2):
            jobs.submit(sides(), "192.0.2.7")
        with pytest.raises(Full, match="2 requests of yours are drawn or wait, the most here"):
            jobs.submit(sides(), "192.0.2.7")
        jobs.submit(sides(), "192.0.2.8")
        gate.set()
        assert all(one.result(30) for one in block)


def test_images_beyond_the_memory_are_refused(offer):
    gate = threading.Event()
    with Jobs(replace(LIMITS, at_once=1, waiting=2, images=2)) as jobs:
        block = jobs._pool.submit(gate.wait, 30)
        guided = offer.sides(Request(steps=2, images=2, guidance=2, beside="nothing"))
        jobs.submit(guided)
        with pytest.raises(Full, match="4 images are at work, and of 4 more there would be over 6"):
            jobs.submit(guided)
        gate.set()
        assert block.result(30)


def test_health_says_whether_it_draws(offer):
    with listening(offer) as url:
        assert (ask(url, "GET", "/api/health").status, ask(url, "GET", "/api/health").json) == (200, {"drawing": True})


def test_metrics_name_what_they_need(offer, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with listening(offer) as url:
        refused = ask(url, "GET", "/metrics")
    assert (refused.status, refused.json["error"]) == (501, "no-metrics")
    assert refused.json["message"] == "metrics need prometheus-client: pip install 'dualrate[serve]'"


def test_metrics_count_requests_and_batches(offer):
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    with Jobs(LIMITS) as jobs:
        sides = offer.sides(Request(steps=4, heavy=2, beside="nothing", images=2))
        jobs.submit(sides).drawing.result(30)
        families = text_string_to_metric_families(measurements(jobs).decode())
        values = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert values["dualrate_batch_rows_count", "heavy"] == 2
    assert values["dualrate_batch_rows_sum", "heavy"] == 4
    assert values["dualrate_batch_seconds_sum", "light"] > 0
    assert values["dualrate_requests_ended_total", "done"] == 1
    assert (values["dualrate_requests", "running"], values["dualrate_calls_waiting",]) == (0, 0)
    lasted = [value for (name, *labels), value in values.items() if name == "dualrate_request_seconds_bucket"]
    assert lasted == sorted(lasted)
    assert (lasted[-1], values["dualrate_request_seconds_count", "done"]) == (1, 1)
    assert 0 < values["dualrate_request_seconds_sum", "done"] < 30


def test_metrics_count_refusals_by_their_error(offer, monkeypatch):
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    def fail(request):
        raise RuntimeError("a fault")

    monkeypatch.setattr(offer, "sides", fail)
    with listening(offer) as url:
        for _ in range(2):
            assert ask(url, "GET", "/nowhere").status == 404
        assert ask(url, "GET", "/api/samples/nobody").status == 404
        assert ask(url, "POST", "/api/samples", b"[]").status == 400
        assert ask(url, "POST", "/api/plan", {"steps": 4}).status == 500
        text = ask(url, "GET", "/metrics").content.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {sample.labels["error"]: sample.value for sample in families["dualrate_refused"].samples}
    assert counts == {"not-found": 2, "no-such-samples": 1, "bad-request": 1, "server-error": 1}
