"""Forecasts and prompts are served as images are: through the engine, from what a request carries, and no more."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from forecasts.made_forecasts import CHANNELS, WIDTH, model_of, rolled
from serving.made import ask, conditional, finished, model

from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Guidance
from dualrate.experiment.modality import conditions_named
from dualrate.forecasts import service
from dualrate.forecasts.evaluation import forecast_scores, window_members
from dualrate.forecasts.starts import Starts, held_out_starts
from dualrate.serving.app import listening
from dualrate.serving.offer import Limits, Offer, Request, data_uris

LIMITS = Limits(steps=12, images=12, at_once=8)
FIELDS = {"steps": 3, "beside": "nothing"}


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    """Two past frames, observed in part and with noise, and windows of two, as differences."""
    path, random = tmp_path_factory.mktemp("data") / "fields.npz", np.random.default_rng(0)
    walk = random.normal(size=(20, 12, CHANNELS, WIDTH)).cumsum(1)
    np.savez(path, fields=(100 + 3 * walk).astype(np.float32))
    task = {"past": 2, "frames": 2, "lead": 2, "difference": True, "every": 2, "noise": 0.1}
    return model_of(path, tmp_path_factory.mktemp("runs") / "ahead", **task)


@pytest.fixture(scope="module")
def url(ahead):
    with listening(Offer(ahead, limits=LIMITS)) as place:
        yield place


def drawn(url: str, **fields: object) -> dict:
    answer = ask(url, "POST", "/api/samples", {**FIELDS, **fields})
    assert answer.status == 202, answer.json
    report = finished(url, answer.json["id"])
    assert report["status"] == "done", report["error"]
    return report


def array(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def npy(values: object, *, pickled: bool = False) -> str:
    file = io.BytesIO()
    np.save(file, np.asarray(values), allow_pickle=pickled)
    return base64.b64encode(file.getvalue()).decode()


def test_a_forecast_from_held_out_starts_is_that_of_the_command(url, ahead):
    report = drawn(url, start=1, images=2, members=3, seed=5)
    (side,), starts = report["sides"], held_out_starts(ahead, 2)
    drawer = Choice(3).drawer(ahead, note=print, members=3, batch_size=6)
    expected = rolled(drawer, starts.past, 2, seed=5)[1:3]
    np.testing.assert_allclose(array(side["frames"]), expected, rtol=1e-5)
    truth = np.stack([starts.truth(i) for i in (1, 2)])
    np.testing.assert_array_equal(array(side["truth"]), truth)
    x = np.abs(expected[:, :, None] - expected[:, None]).mean((1, 2)) * 3 / 2 / 2  # over pairs of two that differ
    crps = (np.abs(expected - truth[:, None]).mean(1) - x).mean((-2, -1))
    np.testing.assert_allclose(side["crps"], crps, rtol=1e-3)
    assert (side["lead_times"], side["variables"]) == ([2.0, 4.0], ["u0", "u1"])
    assert report["seeds"] == [6, 6, 6, 7, 7, 7]
    assert report["titles"][::3] == ["start 1, member 0", "start 2, member 0", "start 1, truth"]
    assert len(side["images"]) == len(report["titles"]) == 8
    assert side["macs"] == drawer.cost.macs


def test_the_crps_of_all_starts_is_the_score_of_the_command(url, ahead):
    sides = [drawn(url, start=i, members=2)["sides"][0] for i in range(len(held_out_starts(ahead, 2)))]
    crps = np.mean([side["crps"][0] for side in sides], 0)  # by frame and variable
    drawer = Choice(3).drawer(ahead, note=print, members=2, batch_size=8)
    for c, name in enumerate(sides[0]["variables"]):
        np.testing.assert_allclose(
            crps[:, c], forecast_scores(drawer.model, *window_members(drawer)).by_variable[name].crps.value, rtol=1e-3
        )


def test_a_forecast_has_usual_members_and_shows_maps_while_it_is_drawn(ahead):
    offer = Offer(ahead, limits=LIMITS)
    told = offer.described()
    assert (told["takes"], told["default"]["images"], told["default"]["members"]) == ("start", 1, 8)
    (side,) = offer.sides(Request(steps=2, beside="nothing", previews=True))
    side.x_hat = torch.randn(8, *ahead.shape)
    assert len(side.report()["images"]) == 8
    assert told["picture"] == (2 * 8, WIDTH)


@pytest.mark.parametrize("form", ["lists", "npy"])
def test_a_start_may_be_an_array_of_ones_own(url, ahead, form):
    past = held_out_starts(ahead, 2).past[:2]
    steps = np.repeat(past, 2, 1)[:, :3]  # frames are two time steps apart
    steps = steps[:, :, :, 0]
    carried = steps.tolist() if form == "lists" else npy(steps)
    (side,) = drawn(url, start=carried, members=2, seed=9)["sides"]
    drawer = Choice(3).drawer(ahead, note=print, members=2, batch_size=4)
    starts = Starts(steps[:, ::2][:, :, :, None], "an array", observed=True)
    expected = rolled(drawer, starts, 2, seed=9)
    np.testing.assert_allclose(array(side["frames"]), expected, rtol=1e-5)
    assert "truth" not in side
    assert "crps" not in side
    assert len(side["images"]) == 4


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (-1, "start is a number of 0 to "),
        (10**6, "start is a number of 0 to "),
        (True, "start: expected"),
        ({}, "start: expected"),
        ("not base64!", "start is no array to start from: "),
        (base64.b64encode(b"no npy").decode(), "start is no array to start from: "),
        (npy([Evil()], pickled=True), "start is no array to start from: "),
        (npy(np.zeros((3, CHANNELS, WIDTH)))[:-400], "start is no array to start from: "),
        (npy(np.full((3, CHANNELS, WIDTH), np.nan)), "not finite"),
        (npy(np.zeros((2, CHANNELS, WIDTH))), "starts from 3"),
        (npy(np.zeros((3, CHANNELS, WIDTH + 1))), "bring it to that"),
        ([[1.0], [1.0, 2.0]], "start is no array to start from: "),
        ([["a", "b"]], "start is no array to start from: "),
        ([], "start is no array to start from: "),
        (np.zeros((13, 3, CHANNELS, WIDTH)).tolist(), "images is at most 12 on this page, got 13 times 8"),
        ("/etc/passwd", "start is no array to start from: "),
    ],
)
def test_starts_that_cannot_be_are_refused_by_name(url, start, message):
    for path in ("/api/plan", "/api/samples"):
        answer = ask(url, "POST", path, {**FIELDS, "start": start})
        assert answer.status == 400, answer.json
        assert message in answer.json["message"]
        assert "tmp" not in answer.json["message"]
    assert not Evil.ran


def test_a_start_that_is_too_long_is_refused(url, ahead):
    offer = Offer(ahead, limits=LIMITS)
    answer = ask(url, "POST", "/api/plan", b" " * (offer.service.bytes + 20_000))
    assert (answer.status, answer.json["error"]) == (413, "too-long")


def test_an_answer_of_too_many_numbers_is_refused(ahead, monkeypatch):
    monkeypatch.setattr(service, "MOST_NUMBERS", 100)
    with pytest.raises(ValueError, match=r"start, with its members, has 512 numbers as an answer, at most 100"):
        Offer(ahead, limits=LIMITS).sides(Request(steps=2))


def test_requests_of_one_start_share_its_heavy_call(ahead):
    """Two clients, each with members of its own number."""
    rows = []
    offer = Offer(ahead, limits=LIMITS)
    gate = threading.Barrier(2)
    count = lambda network, values, result: rows.append(len(result[0]))  # noqa: E731
    hook = ahead.networks["encoder"].register_forward_hook(count)

    def ask_for(members: int) -> dict:
        gate.wait(30)
        return drawn(place, start=0, members=members, steps=12)

    try:
        with listening(offer) as place, ThreadPoolExecutor(2) as pool:
            pair = list(pool.map(ask_for, (2, 4)))
    finally:
        hook.remove()
    assert [len(report["seeds"]) for report in pair] == [2, 4]
    assert sum(rows) <= 2  # one where both are at work at once


def test_without_its_data_a_forecast_starts_from_arrays_alone(ahead):
    far = replace(ahead.experiment, data=replace(ahead.experiment.data, source="/nowhere/fields.npz"))
    offer = Offer(replace(ahead, experiment=far), limits=LIMITS)
    with pytest.raises(ValueError, match="start is an array for ahead: its held-out data are not here"):
        offer.sides(Request(steps=2))
    steps = np.zeros((3, CHANNELS, WIDTH)).tolist()
    assert offer.sides(Request(steps=2, start=steps, beside="nothing"))[0].work.seeds == range(1)


@pytest.mark.parametrize("name", ["prompt", "start"])
def test_a_model_that_takes_no_such_thing_says_so(name):
    for each in (model(), conditional()):
        with pytest.raises(ValueError, match=f"^{name} is nothing that {each.name} takes: drop it"):
            Offer(each, limits=LIMITS).sides(Request(steps=2, **{name: "3"}))


# Prompts


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    pytest.importorskip("diffusers")
    from latents.autoencoders import photos
    from pipelines.stub_texts import text_pipeline

    return text_pipeline(tmp_path_factory.mktemp("pipeline") / "model", photos(8))


@pytest.fixture
def prompted(pipeline, monkeypatch):
    from pipelines.stub_texts import encoders

    import dualrate as dr

    read = encoders(monkeypatch)
    return dr.load(pipeline, device="cpu"), read


def test_a_prompt_is_served_and_encoded_once_for_all_its_requests(prompted):
    of, read = prompted
    offer = Offer(of, limits=LIMITS)
    count = sum(each.texts for each in read)
    fields = {"prompt": "a red circle", "images": 2, "seed": 4, "guidance": 3.0}
    with listening(offer) as place:
        told = ask(place, "GET", "/api/model").json
        reports = [drawn(place, **fields), drawn(place, **fields, members=2), drawn(place, prompt="other", images=1)]
    assert told["takes"] == "prompt"
    assert sum(each.texts for each in read) == count + 2
    assert reports[0]["titles"] == ["seed 4", "seed 5"]
    given = of.with_given(conditions_named(of.experiment, "a red circle", "cpu"))
    drawer = Choice(3).drawer(given, note=print, batch_size=2, guidance=Guidance(3.0))
    assert reports[0]["sides"][0]["images"] == data_uris(drawer.draw(range(4, 6)).images)
    assert len(reports[1]["sides"][0]["images"]) == 4


def test_prompts_of_a_model_and_its_baseline_are_encoded_one_at_a_time(prompted, monkeypatch):
    """Both have the same encoders, and a tokenizer fails where two threads call it."""
    from pipelines.stub_texts import Encoders

    offer, encode = Offer(prompted[0], limits=LIMITS), Encoders.encode_prompt
    busy, alone = threading.Lock(), list[bool]()

    def slow(self, prompt, *of, **more):
        alone.append(first := busy.acquire(blocking=False))
        time.sleep(0.2)
        if first:
            busy.release()
        return encode(self, prompt)

    monkeypatch.setattr(Encoders, "encode_prompt", slow)
    sides = [replace(prompted[0], weights_hash=name) for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda of: offer.service.encode(of, "a red circle"), sides))
    assert alone == [True, True]


def test_a_baseline_without_prompts_of_its_own_is_given_those_of_the_model(prompted):
    from pipelines.stub_texts import embedding

    from dualrate.data.condition_rows import Given

    of = prompted[0]
    trained = of.with_given(Given(torch.stack([embedding(text).reshape(1, 1, -1) for text in ("a", "b")])))
    with listening(Offer(trained, of, LIMITS)) as place:
        report = drawn(place, images=2, beside="steps")
    assert report["status"] == "done", report["error"]
    first, second = (side["images"] for side in report["sides"])
    assert first == second


def test_a_prompt_names_no_file_of_the_server(prompted, tmp_path, monkeypatch):
    from pipelines.stub_texts import Encoders

    (tmp_path / "secret.txt").write_text("secret")
    texts, encode = [], Encoders.encode_prompt
    monkeypatch.setattr(
        Encoders, "encode_prompt", lambda self, prompt, *of, **more: texts.extend(prompt) or encode(self, prompt)
    )
    named = [str(tmp_path / "secret.txt"), str(tmp_path)]
    with listening(Offer(prompted[0], limits=LIMITS)) as place:
        for text in named:
            drawn(place, prompt=text, images=1)
    assert texts == named


def test_a_model_without_prompts_of_its_own_asks_for_one(prompted):
    with listening(Offer(prompted[0], limits=LIMITS)) as place:
        for fields in ({}, {"prompt": "  "}):
            answer = ask(place, "POST", "/api/samples", fields)
            assert (answer.status, answer.json["field"]) == (400, "prompt")
            assert "has no held-out prompts of its own here" in answer.json["message"]
        assert ask(place, "POST", "/api/plan", {"prompt": 3}).json["field"] == "prompt"
        assert json.loads(ask(place, "GET", "/api/model").content)["takes"] == "prompt"
