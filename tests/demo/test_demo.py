"""The demo at a tiny scale: everything it shows comes from what it has just done."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from metrics.squares import two_classes
from metrics.untrained import untrained

from dualrate.demo import demo as module
from dualrate.demo.demo import SHOWN, DemoPlan, demo
from dualrate.drawing.choice import Choice
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.metrics.features import Architecture
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import fashion_mnist
from dualrate.runs.store import load, write_experiment
from dualrate.system.environment import environment
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig, FitResult

NET = UViTConfig(12, 1, (Level("transformer", 16, 1),), 2, patch=4, embedding=16, head_dim=16)
DEMO_PLANS = (
    DemoPlan("heavy", "fashion-mnist-heavy", Choice(2, sampler="ddim")),
    DemoPlan("heavy", "fashion-mnist-heavy", Choice(3, sampler="dpm++2m")),
    DemoPlan("dual-rate", "fashion-mnist-dual", Choice(4, 2)),
    DemoPlan("light alone", "fashion-mnist-light", Choice(2, sampler="ancestral")),
)
COUNT, MINUTES = 40, 5


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set, and a feature net in net/; not to be changed."""
    place = tmp_path_factory.mktemp("place")
    squares = two_classes(400)
    assert squares.labels is not None
    np.savez(place / "squares.npz", images=squares.images, labels=squares.labels)
    untrained(Architecture(1, 12, 2, features=8), "squares", 0.75).save(place / "net")
    return place


def small(place: Path, seconds: float) -> Experiment:
    """A recipe that trains for 6 iterations."""
    fit = FitConfig(6, batch_size=8, log_every=2, max_seconds=seconds, precision="float32")
    data = DataConfig(str(place / "squares.npz"))
    return Experiment("small", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler((2, 4))), fit, data)


@pytest.fixture(scope="module")
def trained(place) -> Path:
    """A small model as the demo trains it; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALRATE_CACHE", str(place / "cache"))
        module.train(small(place, 60 * MINUTES), place / "run", progress=module.PlainReporter())
    return place / "run"


@pytest.fixture
def scene(place, tmp_path, monkeypatch) -> Path:
    """Where a demo of small models is at home."""
    monkeypatch.setenv("DUALRATE_CACHE", str(place / "cache"))
    monkeypatch.setattr(module, "DEMO_PLANS", DEMO_PLANS)
    monkeypatch.setattr(fashion_mnist, "small", partial(small, place))
    return tmp_path


@pytest.fixture
def begun(scene, trained) -> Path:
    """The same, after training."""
    shutil.copytree(trained, scene / "out" / "run")
    return scene


class Told(module.PlainReporter):
    """Keeps its notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def release(path: Path, networks: OneNetwork | TwoNetworks, scale: float = 1) -> None:
    """Weights as at the start of training, times `scale`."""
    times = SingleTime() if isinstance(networks, OneNetwork) else TimeSampler((2, 4))
    experiment = Experiment(path.name, networks, DenoisingConfig(times), FitConfig(1))
    weights = {name: scale * weight for name, weight in experiment.build()[0].state_dict().items()}
    write_experiment(path, experiment)
    checkpoint.save(path / "checkpoints", 5, {"model": weights}, {"iteration": 5})


@pytest.fixture
def run(place):
    def run(scene: Path, **options) -> str:
        page = demo(scene / "out", scene / "weights", minutes=MINUTES, count=COUNT, features=place / "net", **options)
        assert page == scene / "out" / "report.html"
        return page.read_text()

    return run


def test_all_models_are_measured_and_shown(run, scene):
    for name in ("heavy", "light"):
        release(scene / "weights" / f"fashion-mnist-{name}", OneNetwork(NET))
    release(scene / "weights" / "fashion-mnist-dual", TwoNetworks(NET, NET))
    page = run(scene)
    rows = json.loads((scene / "out" / "rows.json").read_text())
    assert [(row["network"], row["num_steps"], row["num_heavy"]) for row in rows] == [
        ("heavy", 2, 2),
        ("heavy", 3, 3),
        ("dual-rate", 4, 2),
        ("light alone", 2, 2),
    ]
    assert {row["fingerprint"]["count"] for row in rows} == {COUNT}
    assert len({row["fingerprint"]["seeds"] for row in rows}) == 1
    for row in rows:
        assert row["low"] < row["high"]
        assert row["seconds_per_image"] > 0
    assert page.count("<img") == len(DEMO_PLANS) + 2  # and real images, and the small model's
    assert page.count("<svg") == 3
    assert "not found" not in page
    assert "for lack of time" not in page
    for row in rows:
        assert load(scene / "weights" / "fashion-mnist-heavy").weights_hash[:12] in page
        assert f"{row['network']} {row['sampler']} {row['num_steps']}" in page


def test_the_headline_is_about_the_best_of_all_single_networks_and_explains_its_numbers(run, begun, monkeypatch):
    """Whichever network and sampler that is: here one of the same size as the heavy one, with other weights."""
    cells = [*DEMO_PLANS, DemoPlan("medium", "fashion-mnist-medium", Choice(3))]
    monkeypatch.setattr(module, "DEMO_PLANS", cells)
    for name in ("heavy", "light", "medium"):
        release(begun / "weights" / f"fashion-mnist-{name}", OneNetwork(NET), scale=0 if name == "medium" else 1)
    release(begun / "weights" / "fashion-mnist-dual", TwoNetworks(NET, NET))
    page = run(begun)
    rows = json.loads((begun / "out" / "rows.json").read_text())
    best = min((row for row in rows if row["network"] != "dual-rate"), key=lambda row: row["value"])
    (lead,) = re.findall('<p class="lead">(.*?)</p>', page)
    assert "With 4 steps and 2 heavy calls (below: 4/2) it has" in lead
    assert f"{best['network']}, one network called at each of {best['num_steps']} steps (below:" in lead
    assert lead.index("4/2") == page.index("4/2") - page.index(lead)


def test_what_it_will_take_is_said_first_and_a_slow_machine_measures_less(run, begun, monkeypatch):
    for name in ("heavy", "light"):
        release(begun / "weights" / f"fashion-mnist-{name}", OneNetwork(NET))
    told = Told()
    page = run(begun, measuring=1e-6, progress=told)
    assert told.notes[0].startswith("about 6 minutes in all: 5 of training, at most 1e-06 of measuring")
    assert [row["network"] for row in json.loads((begun / "out" / "rows.json").read_text())] == ["heavy", "heavy"]
    assert "Not measured, for lack of time on this machine: light alone 2." in page
    assert "there was time for 2 of 3 plans and 40 of 40 images" in told.notes[-1]
    run(begun, progress=told)
    assert len(json.loads((begun / "out" / "rows.json").read_text())) == 3


def test_missing_weights_are_named_and_the_others_measured(run, begun):
    release(begun / "weights" / "fashion-mnist-light", OneNetwork(NET))
    page = run(begun)
    assert "not measured: fashion-mnist-heavy, fashion-mnist-dual." in page
    assert [row["network"] for row in json.loads((begun / "out" / "rows.json").read_text())] == ["light alone"]


def test_without_weights_the_small_model_is_measured_and_a_second_run_only_draws_what_is_shown(run, scene, monkeypatch):
    page = run(scene)
    assert "The small model that this demo trained was measured instead" in page
    rows = json.loads((scene / "out" / "rows.json").read_text())
    assert [(row["network"], row["num_heavy"]) for row in rows] == [(module.SMALL, heavy) for heavy in (4, 8, 16)]
    logged = (scene / "out" / "run" / "metrics.jsonl").read_text()
    assert len(logged.splitlines()) == 3
    monkeypatch.setattr("dualrate.metrics.store.FeatureStore.write", None)
    run(scene)
    assert (scene / "out" / "run" / "metrics.jsonl").read_text() == logged
    assert json.loads((scene / "out" / "rows.json").read_text()) == rows


def test_too_few_images_are_refused_before_anything_is_trained(place, scene):
    with pytest.raises(ValueError, match=f"at least {SHOWN}"):
        demo(scene / "out", scene / "weights", count=SHOWN - 1, features=place / "net")
    assert not (scene / "out").exists()


def test_an_interrupted_training_ends_the_demo(run, scene, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: FitResult(3, "signal", 1.0))
    with pytest.raises(KeyboardInterrupt, match="continues"):
        run(scene)


def test_real_images_have_the_classes_of_the_grids(place, scene):
    held_out = two_classes(50)
    assert held_out.labels is not None
    judge = replace(
        module.evaluator(fashion_mnist.small(1).data, features=place / "net", progress=module.PlainReporter())
    )
    real = module._real(replace(judge, held_out=held_out))
    assert len(real) == SHOWN
    for place, image in enumerate(real):
        matches = [label for i, label in enumerate(held_out.labels) if np.array_equal(held_out.images[i], image)]
        assert matches == [place % 2]


def test_progress_of_a_timed_run_counts_to_its_own_end():
    seen: list[tuple[int, int]] = []

    class Shown(module.PlainReporter):
        def update(self, iteration, total, logs):
            seen.append((iteration, total))

    timed = module._Timed(Shown(), 10.0)
    for iteration, seconds in ((1, 1.0), (5, 4.0), (11, 10.5)):
        timed.update(iteration, 7000, {"images": iteration, "seconds": seconds})
    timed.update(3, 4, {"images": 3, "seconds": 1.0})
    assert seen == [(1, 10), (5, 13), (11, 11), (3, 4)]


def test_the_environment_is_that_of_now():
    facts = environment()
    assert {"processor", "threads", "dualrate", "torch", "date"} <= facts.keys()
    taken = datetime.strptime(facts["date"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - taken).total_seconds()) < 120
    assert all(facts.values())
