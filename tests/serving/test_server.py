"""Promises of the page's server to whoever asks it, page or program."""

import asyncio
import base64
import io
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from reader import ROOT, commands
from serving.made import Held, ask, conditional, finished, model

from dualrate.cli import main
from dualrate.drawing.choice import Choice
from dualrate.serving import app, jobs
from dualrate.serving.app import MOST_BYTES, listening, serve
from dualrate.serving.command import Serve
from dualrate.serving.offer import Limits, Offer, Request

SERVER = Path(app.__file__)
LIMITS = Limits(steps=12, images=4, at_once=1, waiting=1)


@pytest.fixture(scope="module")
def offer() -> Offer:
    return Offer(model(), limits=LIMITS)


@pytest.fixture(scope="module")
def url(offer) -> Iterator[str]:
    with listening(offer) as place:
        yield place


@dataclass(frozen=True)
class Slow:
    """A server whose sampling waits for a gate."""

    url: str
    held: Held
    offer: Offer

    def submit(self, **fields):
        return ask(self.url, "POST", "/api/samples", {"steps": 4, "heavy": 2, "images": 1, **fields})

    def status(self, name):
        return ask(self.url, "GET", f"/api/samples/{name}").json["status"]


@pytest.fixture
def in_float32(monkeypatch):
    """Where bfloat16 pays sampling has a copy of the denoiser, which is not the one that is held here."""
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)


@pytest.fixture
def slow(offer, in_float32) -> Iterator[Slow]:
    held = Held(offer.model.denoiser)
    held.gate.set()
    waiting = Offer(replace(offer.model, denoiser=held), limits=LIMITS)  # which makes a call to count
    held.gate.clear()
    held.begun.clear()
    try:
        with listening(waiting) as place:
            yield Slow(place, held, waiting)
            held.gate.set()
    finally:
        held.gate.set()


def pixels(source: str) -> np.ndarray:
    """(C, H, W) of a data URI."""
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[None]


# The page


def test_the_page_is_one_document_that_fetches_nothing_else(url):
    answer = ask(url, "GET", "/")
    text = answer.content.decode()
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert set(re.findall(r"https?://[^\"'\s)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe|script src)|@import|url\(", text)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    head = ask(url, "HEAD", "/")
    assert (head.status, head.content, head.headers["Content-Length"]) == (200, b"", str(len(answer.content)))


def test_every_control_has_a_label(url):
    text = ask(url, "GET", "/").content.decode()
    controls = re.findall(r"<(?:input|select) id=\"(\w+)\"", text)
    assert {*controls, "previews"} == set(Request.__dataclass_fields__)
    assert controls == re.findall(r"<label for=\"(\w+)\"", text)


def test_a_name_cannot_end_the_element_it_stands_in(offer):
    named = Offer(replace(offer.model, name="</script>{{script}}<b>"), limits=LIMITS)
    with listening(named) as place:
        text = ask(place, "GET", "/").content.decode()
        assert ask(place, "GET", "/api/model").json["name"] == "</script>{{script}}<b>"
    assert text.count("</script>") == 2
    assert "<h1>&lt;/script&gt;{{script}}&lt;b&gt;</h1>" in text


def test_the_model_says_what_it_offers(url, offer):
    told = ask(url, "GET", "/api/model").json
    assert told["limits"] == {"steps": 12, "images": 4, "at_once": 1, "waiting": 1, "each": 16, "seconds": 300}
    assert set(told["samplers"]) == set(offer.offered.samplers)


# Sampling


def test_a_plan_is_told_with_its_cost(url, offer):
    (own, baseline) = ask(url, "POST", "/api/plan", {"steps": 8, "heavy": 2, "guidance": 2}).json["sides"]
    assert (own["steps"], own["heavy"], len(own["t"])) == (8, 2, 9)
    assert (own["refresh"].count("full"), baseline["refresh"].count("full")) == (2, 8)
    guided = offer.sides(Request(steps=8, heavy=2, guidance=2))
    assert [own["macs"], baseline["macs"]] == [side.drawer.cost.macs for side in guided]


def test_images_are_those_of_the_model_under_both_plans(url, offer):
    asked = ask(url, "POST", "/api/samples", {"steps": 6, "heavy": 2, "seed": 5, "images": 3})
    assert asked.status == 202
    assert asked.headers["Location"] == f"/api/samples/{asked.json['id']}"
    report = finished(url, asked.json["id"])
    assert (report["status"], report["seeds"], report["labels"], report["error"]) == ("done", [5, 6, 7], [2, 0, 1], "")
    for side, heavy in zip(report["sides"], (2, 6), strict=True):
        drawer = Choice(6, heavy).drawer(offer.model, batch_size=4)
        drawn = np.stack([pixels(image) for image in side["images"]])
        np.testing.assert_array_equal(drawn, drawer.draw(range(5, 8)).images)
        assert side["finished"]
        assert (side["done"], side["macs_so_far"], side["macs"]) == (6, drawer.cost.macs, drawer.cost.macs)
        assert side["seconds"] > 0


def test_a_class_is_drawn_alone_beside_nothing(url):
    asked = ask(url, "POST", "/api/samples", {"steps": 2, "heavy": 1, "label": 1, "images": 2, "beside": "nothing"})
    report = finished(url, asked.json["id"])
    assert (len(report["sides"]), report["labels"]) == (1, [1, 1])


def test_members_of_a_condition_share_its_heavy_call(in_float32):
    """Three images of each of two seeds: one heavy call has a row for each seed."""
    of, rows = conditional(), []
    offer = Offer(of, limits=Limits(steps=12, images=6))  # which makes a call to count
    of.networks["encoder"].register_forward_hook(lambda network, values, result: rows.append(len(result[0])))
    with listening(offer) as place:
        fields = {"steps": 3, "seed": 4, "images": 2, "members": 3, "beside": "nothing"}
        report = finished(place, ask(place, "POST", "/api/samples", fields).json["id"])
        assert ask(place, "GET", "/api/model").json["members"] == 6
        wrong = ask(place, "POST", "/api/plan", {**fields, "images": 3})
        assert (wrong.status, wrong.json["field"]) == (400, "images")
        assert wrong.json["message"] == "images is at most 6 on this page, got 3 times 3 members"
        usual = ask(place, "POST", "/api/samples", {"steps": 1, "members": 4, "beside": "nothing"}).json
        assert (usual["seeds"], finished(place, usual["id"])["status"]) == ([0] * 4, "done")
        assert ask(place, "POST", "/api/samples", {"members": 7}).status == 400
    assert rows == [2, 1]
    assert (report["status"], report["seeds"]) == ("done", [4, 4, 4, 5, 5, 5])
    drawer = Choice(3).drawer(of, batch_size=6, members=3)
    drawn = np.stack([pixels(image) for image in report["sides"][0]["images"]])
    np.testing.assert_array_equal(drawn, drawer.draw(range(4, 6)).images)
    assert report["sides"][0]["macs"] == drawer.cost.macs


@pytest.mark.parametrize("previews", [True, False])
def test_progress_is_told_step_by_step_with_pictures_where_they_are_asked_for(slow, previews):
    seen, name = [], slow.submit(heavy=4, beside="nothing", previews=previews).json["id"]

    def look() -> None:
        (side,) = ask(slow.url, "GET", f"/api/samples/{name}").json["sides"]
        seen.append((side["done"], side["macs_so_far"], len(side["images"]), side["finished"]))

    slow.held.then.append(look)
    slow.held.gate.set()
    (side,) = finished(slow.url, name)["sides"]
    assert seen == [
        (i, i * side["macs"] // 4, min(i, 1) * previews, False) for i in range(4)
    ]  # before the first x_hat none


# The queue


def test_requests_wait_in_turn_and_too_many_are_refused(slow):
    first = slow.submit()
    assert slow.held.begun.wait(30)
    second = slow.submit()
    assert (first.status, second.status, second.json["ahead"]) == (202, 202, 1)
    third = slow.submit()
    assert (third.status, third.headers["Retry-After"], third.json["error"]) == (429, "5", "too-many-waiting")
    assert third.json["message"] == "the queue is full, 1 wait: try again in a few seconds"
    slow.held.gate.set()
    assert [finished(slow.url, one.json["id"])["status"] for one in (first, second)] == ["done", "done"]
    assert slow.submit().status == 202


def test_what_is_refused_for_want_of_a_place_is_not_counted_first(slow, monkeypatch):
    """Nor is the model described anew for whoever asks."""
    names = [slow.submit().json["id"] for _ in range(2)]
    counted = []
    sides = Offer.sides
    monkeypatch.setattr(Offer, "sides", lambda *of: counted.append(of) or sides(*of))
    assert slow.submit().status == 429
    assert ask(slow.url, "GET", "/api/model").status == 200
    assert not counted
    assert [slow.status(name) for name in names] == ["running", "waiting"]


def test_a_name_of_this_machine_is_loopback_however_it_is_spelt(offer):
    with listening(offer, "127.1") as place:
        assert ask(place, "GET", "/", Host="elsewhere.example").status == 421
        assert ask(place, "GET", "/", Host="127.1").headers["X-Frame-Options"] == "DENY"


def test_a_request_is_stopped_at_its_next_step_or_before_its_turn(slow):
    first, second = slow.submit().json["id"], None
    assert slow.held.begun.wait(30)
    second = slow.submit().json["id"]
    assert ask(slow.url, "DELETE", f"/api/samples/{second}").json["status"] == "stopped"
    assert ask(slow.url, "DELETE", f"/api/samples/{first}").json["status"] == "running"
    slow.held.gate.set()
    report = finished(slow.url, first)
    assert (report["status"], report["sides"][0]["done"]) == (
        "stopped",
        1,
    )  # the light network's step before the heavy call
    assert not report["sides"][0]["finished"]


def test_what_nobody_asks_about_is_given_up_and_forgotten(slow, monkeypatch):
    first = slow.submit().json["id"]
    assert slow.held.begun.wait(30)
    second = slow.submit().json["id"]
    monkeypatch.setattr(jobs, "IDLE", 0.0)
    third = slow.submit()  # there is room: the second one is not waited for
    assert third.status == 202
    assert ask(slow.url, "GET", f"/api/samples/{second}").status == 404
    monkeypatch.setattr(jobs, "IDLE", 60.0)
    slow.held.gate.set()
    assert finished(slow.url, third.json["id"])["status"] == "done"
    assert slow.status(first) == "done"
    monkeypatch.setattr(jobs, "PATIENCE", 0.0)
    slow.submit()
    gone = ask(slow.url, "GET", f"/api/samples/{first}")
    assert (gone.status, gone.json["error"]) == (404, "no-such-samples")


def test_a_sampling_that_fails_says_why_and_the_next_one_is_drawn(slow):
    def fails() -> None:
        slow.held.then.clear()
        raise FloatingPointError("not a number")

    slow.held.then.append(fails)
    slow.held.gate.set()
    report = finished(slow.url, slow.submit().json["id"])
    assert (report["status"], report["error"]) == ("failed", "FloatingPointError: not a number")
    assert finished(slow.url, slow.submit().json["id"])["status"] == "done"


def test_leaving_ends_a_sampling_at_its_next_step(offer, in_float32):
    held = Held(offer.model.denoiser)
    held.gate.set()
    waiting = Offer(replace(offer.model, denoiser=held), limits=LIMITS)
    sides, others = waiting.sides(Request(steps=4)), waiting.sides(Request(steps=4))
    held.begun.clear()
    held.gate.clear()
    with jobs.Jobs(LIMITS) as queue:
        first, second = queue.submit(sides), queue.submit(others)
        assert held.begun.wait(30)
        with pytest.raises(jobs.Full):
            queue.submit(sides)
        threading.Timer(0.05, held.gate.set).start()
    assert (first.status, first.sides[0].steps) == ("stopped", 0)
    assert (second.status, second.sides[0].steps) == ("stopped", None)


MANY = 60


@pytest.mark.parametrize("path", ["/", "/api/plan", "/api/samples"])
def test_many_requests_at_once_are_each_answered_or_refused_in_words(url, path):
    asked = ("GET", path) if path == "/" else ("POST", path, {"steps": 2, "images": 1})
    gate = threading.Barrier(MANY)

    def one(_: int) -> tuple[int, str]:
        gate.wait(60)
        answer = ask(url, *asked)
        return answer.status, "" if path == "/" else answer.json.get("message", "")

    with ThreadPoolExecutor(MANY) as pool:
        answers = list(pool.map(one, range(MANY)))
    served = [message for status, message in answers if status in (200, 202)]
    refused = {message for status, message in answers if status == 429}
    assert len(answers) == MANY
    assert served
    assert {status for status, _ in answers} <= {200, 202, 429}
    assert all("try again in a few seconds" in message for message in refused)
    assert path != "/" or len(served) == MANY


def test_a_class_is_asked_for_by_its_name(offer):
    named = Offer(replace(offer.model, class_names=("hat", "shoe", "bag")), limits=LIMITS)
    with listening(named) as place:
        asked = ask(place, "POST", "/api/samples", {"steps": 1, "label": "shoe", "images": 2, "beside": "nothing"})
        assert asked.json["labels"] == [1, 1]
        wrong = ask(place, "POST", "/api/plan", {"label": "sock"})
        assert (wrong.status, "sock" in wrong.json["message"]) == (400, True)


# Refusals


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"steps": 0}, "steps", "steps is a whole number from 1 to 100,000, or None, got 0"),
        ({"steps": 13}, "steps", "steps is from 1 to 12 on this page, got 13"),
        ({"steps": 2.5}, "steps", "steps: expected an integer or null, got 2.5"),
        ({"steps": True}, "steps", "got True"),
        ({"heavy": -1}, "heavy", "heavy is a whole number"),
        ({"images": 5}, "images", "images is at most 4"),
        ({"images": 10**30}, "images", "images is a whole number from 1 to 256"),
        ({"members": 2}, None, "has no condition that members would share"),
        ({"label": 3}, None, "knows the classes 0 to 2, got label 3"),
        ({"guidance": 1000}, "guidance", "guidance is a number from -100 to 100, got 1000"),
        ({"sampler": "ddmi"}, "sampler", "sampler is one of ancestral"),
        ({"sampler": "os:getcwd"}, "sampler", "sampler is one of ancestral"),
        ({"sampler": "ddim"}, None, "changes the joint law"),
        (
            {"beside": "everything"},
            "beside",
            "beside: expected 'steps' or 'cost' or 'nothing' or null, got 'everything'",
        ),
        ({"seed": -1}, "seed", "seed is a whole number from 0"),
        ({"stesp": 3}, None, "Request has no field 'stesp'; did you mean steps?"),
        ([], None, "expected a Request, got []"),
        (b"", None, "is not JSON"),
        (b"{", None, "is not JSON"),
        (b'{"guidance": NaN}', "guidance", "got nan"),
        (b"[" * 9000, None, "is not JSON"),
        (b"\xff", None, "is not JSON"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(url, body, field, message):
    for path in ("/api/plan", "/api/samples"):
        answer = ask(url, "POST", path, body)
        told = answer.json
        assert (answer.status, told["error"], told["field"]) == (400, "bad-request", field), told
        assert message in told["message"]


@pytest.mark.parametrize(
    ("method", "path", "how", "status", "error"),
    [
        ("GET", "/nothing", {}, 404, "not-found"),
        ("GET", "/api/samples/../../etc/passwd", {}, 404, "not-found"),
        ("GET", "/api/samples/unknown", {}, 404, "no-such-samples"),
        ("DELETE", "/api/samples/unknown", {}, 404, "no-such-samples"),
        ("POST", "/", {"body": {}}, 405, "wrong-method"),
        ("GET", "/api/plan", {}, 405, "wrong-method"),
        ("POST", "/api/plan", {"body": {}, "Content_Type": "text/plain"}, 415, "not-json"),
        ("POST", "/api/plan", {"body": b" " * (MOST_BYTES + 1)}, 413, "too-long"),
        ("GET", "/", {"Host": "evil.example:80"}, 421, "wrong-host"),
        ("GET", "/", {"Host": "127.0.0.1.evil.example"}, 421, "wrong-host"),
        ("BREW", "/", {}, 405, "wrong-method"),
        ("PUT", "/api/samples/unknown", {"body": {}}, 405, "wrong-method"),
    ],
)
def test_what_is_not_served_is_a_named_refusal(url, method, path, how, status, error):
    answer = ask(url, method, path, **how)
    assert (answer.status, answer.json["error"]) == (status, error)
    assert answer.json["message"]
    if status == 405:
        allowed = {*answer.headers["Allow"].split(", ")} - {"HEAD"}
        assert allowed == {"DELETE", "GET"} if "samples" in path else allowed < {"GET", "POST"}
    assert ask(url, "GET", "/").status == 200


def test_a_port_that_is_taken_is_an_error_that_says_how_to_mend_it(url, offer):
    taken = r"cannot listen on 127.0.0.1, port \d+ .*choose another --port, 0 for any"
    with pytest.raises(OSError, match=taken), listening(offer, port=urlsplit(url).port):
        pass
    with pytest.raises(OSError, match=r"or an address of this machine as --host"), listening(offer, "192.0.2.1"):
        pass
    with pytest.raises(ValueError, match=r"got an empty one: pass 0.0.0.0"), listening(offer, ""):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_though_a_sampling_is_at_work(slow, number):
    said = []

    def note(text: str) -> None:
        said.append(text)
        if "serving" in text:
            place = re.search(r"http://\S+", text)[0]
            ask(place, "POST", "/api/samples", {"steps": 4})
            assert slow.held.begun.wait(30)
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            threading.Timer(0.3, slow.held.gate.set).start()

    before, threads = signal.getsignal(number), set(threading.enumerate())
    serve(slow.offer, "127.0.0.1", 0, note)
    assert said[1] == f"stopped by {number.name}"
    assert signal.getsignal(number) is before
    assert not {thread.name.split("_")[0] for thread in set(threading.enumerate()) - threads} & {"serving", "sampling"}


def test_the_page_of_the_documentation_is_true(url, capsys):
    text = (ROOT / "docs" / "serving.md").read_text()
    for words in commands(ROOT / "docs" / "serving.md"):
        assert main.parsed(words[1:])
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert '"http://127.0.0.1:8000/"' in block
    exec(compile(block.replace("http://127.0.0.1:8000/", url), "serving.md", "exec"), {})
    macs, seconds, image = capsys.readouterr().out.split()
    assert int(macs) > 0
    assert float(seconds) > 0
    assert image.startswith("data:image/png;base64,")
    told = {found[0] for found in re.findall(r'Refused\(\d+, "([\w-]+)"()', SERVER.read_text())}
    assert told
    assert not [name for name in told if f"`{name}`" not in text]


def test_a_server_that_tells_its_beginning_and_end_may_run_it(offer):
    """As uvicorn and Ray Serve do: neither event has headers."""

    async def lives() -> list[str]:
        said = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        answers: list[str] = []

        async def receive():
            return said.pop(0)

        async def send(message):
            answers.append(message["type"])

        await app.make_app(offer, queue, "", False)({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        return answers

    with jobs.Jobs(LIMITS) as queue:
        assert asyncio.run(lives()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_by_default_the_page_is_for_this_machine_alone():
    assert Serve.__dataclass_fields__["host"].default == "127.0.0.1"
