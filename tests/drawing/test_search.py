"""A search by measuring, on tiny runs: what it draws, from which seeds, how it goes on, what it writes and refuses."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli.command import call
from metrics.untrained import untrained
from runs.made import saved_random

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Refresh
from dualrate.drawing import plan_search as searching
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.measure import OutOfTime, evaluator
from dualrate.drawing.plan_search import Findings, fresh, search, searched
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.metrics import distances as bootstrap
from dualrate.metrics import evaluate
from dualrate.metrics.features import Architecture
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.planning import search as family
from dualrate.planning.search import Member
from dualrate.runs.store import load
from dualrate.sampling import grids
from dualrate.system.progress import run_lock
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 4, 1), Level("transformer", 16, 1)), 2, patch=2, embedding=16, head_dim=16)
NUM = 16
OPTIONS = {"num": NUM}
DUAL = Choice(steps=4, heavy=2)


class Told:
    def __init__(self):
        self.lines, self.updates = [], []

    def update(self, iteration, total, logs):
        assert 0 <= iteration <= total
        self.updates.append((iteration, total))

    def note(self, text):
        self.lines.append(text)

    def close(self): ...


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs `one` and `dual` of random weights, their images, and a feature net `net`."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(64) % 2)
    data = DataConfig(str(root / "images.npz"))
    for name, networks in {"one": OneNetwork(NET), "dual": TwoNetworks(NET, NET)}.items():
        times = TimeSampler() if name == "dual" else SingleTime()
        experiment = Experiment(name, networks, DenoisingConfig(times), FitConfig(iterations=1), data)
        saved_random(experiment, root / name)
    untrained(Architecture(1, 8, 2, features=2)).save(root / "net")  # which finds another plan than the usual one
    return root


@pytest.fixture(autouse=True)
def small(root, monkeypatch):
    """A cache of its own, few plans, and few resamples."""
    monkeypatch.setenv("DUALRATE_CACHE", str(root / "cache"))
    monkeypatch.setattr(family, "BLENDS", (0.0, 0.6, 1.0))
    monkeypatch.setattr(searching, "SHORT", 4)
    resampled = bootstrap.resampled_distances
    for place in (bootstrap, evaluate):
        monkeypatch.setattr(place, "resampled_distances", lambda *of, **how: resampled(*of, **how | {"resamples": 20}))


@pytest.fixture
def model(root):
    return load(root / "dual")


@pytest.fixture
def judge(model, root):
    return evaluator(model.experiment.data, features=root / "net", progress=Told())


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[StepPlan, list[int]]]:
    """The plans and seeds of all images, as they are drawn."""
    calls, draw = [], Drawer.draw

    def noted(self, seeds, progress=None):
        calls.append((self.plan, list(seeds)))
        return draw(self, seeds, progress)

    monkeypatch.setattr(Drawer, "draw", noted)
    return calls


def optimum_at(monkeypatch, best: StepPlan) -> None:
    """Scores become a known function of the plan: 1 more than the distance of its times and first heavy call."""

    def scored(drawer, seeds, judge, **_):
        first = [plan.refresh.index(Refresh.FULL) / 8 for plan in (drawer.plan, best)]
        value = 1 + np.abs(np.subtract(drawer.plan.t, best.t)).sum() + abs(first[0] - first[1])
        score = SimpleNamespace(value=value, fingerprint=SimpleNamespace(seeds=seeds))
        return SimpleNamespace(row=SimpleNamespace(score=score), replicates={judge.metric: np.zeros(2)})

    monkeypatch.setattr(searching, "measure", scored)


def test_a_known_optimum_is_found(model, judge, tmp_path, monkeypatch):
    best = Member(0.6, 3).plan(model.process.schedule, 8, 2)
    optimum_at(monkeypatch, best)
    monkeypatch.setattr(family, "BLENDS", tuple(i / 10 for i in range(11)))
    monkeypatch.setattr(searching, "SHORT", 100)
    found = search(model, Choice(steps=8, heavy=2), judge, tmp_path, progress=Told(), **OPTIONS)
    assert found.plan == best
    assert found.names[found.plan] == "blend:0.6, 3 alone"
    assert (found.search.found.value, found.search.found.fingerprint.seeds) == (1, searched(NUM))
    assert (found.fresh.found.value, found.fresh.found.fingerprint.seeds) == (1, fresh(NUM))
    assert found.fresh.difference == 1 - found.fresh.usual.value < 0


def test_confirmation_is_on_seeds_that_the_search_never_saw(model, judge, tmp_path, drawn):
    """All plans of a round have the same seeds, and what was found is drawn anew from others."""
    progress = Told()
    found = search(model, DUAL, judge, tmp_path, progress=progress, **OPTIONS)
    new = [(plan, seed) for plan, seeds in drawn for seed in seeds if seed in fresh(NUM)]
    old = [(plan, seed) for plan, seeds in drawn for seed in seeds if seed not in fresh(NUM)]
    assert not {seed for _, seed in new} & {seed for _, seed in old}
    assert {seed for _, seed in old} == set(searched(NUM))
    assert len(new) == NUM * len({found.plan, found.usual})
    assert {plan for plan, _ in new} == {found.plan, found.usual}
    for plan in found.names:
        counts = [one.count for one in found.rounds if plan in one.values]
        assert sorted(seed for of, seed in old if of == plan) == list(searched(max(counts)))
    assert (found.search.found.fingerprint.seeds, found.fresh.found.fingerprint.seeds) == tuple(
        f"{seeds.start}-{seeds.stop - 1}" for seeds in (searched(NUM), fresh(NUM))
    )
    largest = 10_000_000  # images of any command
    others = [range(largest), range(searching.SEED, searching.SEED + largest)]
    ranges = sorted([searched(largest), fresh(largest), *others], key=lambda seeds: seeds.start)
    assert all(one.stop <= other.start for one, other in pairwise(ranges))
    assert progress.updates[-1] == (NUM, NUM)


def test_the_interval_is_of_paired_replicates(model, judge, tmp_path):
    found = search(model, DUAL, judge, tmp_path, progress=Told(), **OPTIONS)
    choice = Choice(plan=found.plan), Choice(plan=found.usual)
    replicates = []
    for one in choice:
        drawer = one.drawer(model, batch_size=64)
        features = judge.net.features(drawer.draw(fresh(NUM)).images)
        replicates.append(judge.replicates(features, strata=drawer.strata(fresh(NUM))))
    expected = replicates[0] - replicates[1]  # some 1e-5, of a net of random weights
    np.testing.assert_allclose(found.fresh.differences, expected, rtol=1e-2, atol=1e-8)
    assert np.abs(expected).max() > 1e-6
    low, high = np.quantile(found.fresh.differences, [0.025, 0.975])
    assert (found.fresh.interval.low, found.fresh.interval.high) == pytest.approx((low, high))


def test_a_single_network_is_searched_over_the_grid_alone(root, judge, tmp_path):
    model = load(root / "one")
    found = search(model, Choice(steps=4, grid="log-snr"), judge, tmp_path, progress=Told(), **OPTIONS)
    schedule = model.process.schedule
    blends = {StepPlan.spread(grids.blended(schedule, 4, i / 10)) for i in (0, 6, 10)}
    assert set(found.names) == blends
    assert found.usual == StepPlan.spread(grids.uniform_log_snr(schedule, 4))
    assert found.names[found.usual] == "usual, blend:1"
    usual = search(model, Choice(steps=4), judge, tmp_path, progress=Told(), **OPTIONS).usual
    assert usual == StepPlan.spread(grids.blended(schedule, 4, 0.5))
    karras = search(model, Choice(steps=4, sampler="dpm++2m"), judge, tmp_path, progress=Told(), **OPTIONS)
    assert karras.names[karras.usual] == "usual"
    assert set(karras.names) == blends | {karras.usual}


def test_a_model_without_steps_alone_has_none(model, judge, tmp_path):
    experiment = replace(model.experiment, method=DenoisingConfig(TimeSampler(dropout=0.0)))
    names = searching.plans_to_measure(replace(model, experiment=experiment), StepPlan.uniform(8, 2))
    assert all(plan.refresh[0] is Refresh.FULL for plan in names)
    assert len(names) == 3


def test_a_search_goes_on_where_it_was(model, judge, tmp_path, drawn, monkeypatch):
    """Interrupted by Ctrl-C, and by its minutes: what was drawn is kept, and nothing is drawn twice."""
    whole = search(model, DUAL, judge, tmp_path / "whole", progress=Told(), **OPTIONS)
    images = sum(len(seeds) for _, seeds in drawn)
    drawn.clear()
    draw = Drawer.draw

    def interrupted(self, seeds, progress=None):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return draw(self, seeds, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Drawer, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"interrupted: .* same command goes on"):
            search(model, DUAL, judge, tmp_path / "stopped", progress=Told(), **OPTIONS)
    with pytest.raises(OutOfTime, match="out of time"):
        search(model, DUAL, judge, tmp_path / "stopped", seconds=0, progress=Told(), **OPTIONS)
    progress = Told()
    went_on = search(model, DUAL, judge, tmp_path / "stopped", progress=progress, **OPTIONS)
    assert sum(len(seeds) for _, seeds in drawn) == images
    assert same(went_on, whole)
    drawn.clear()
    assert same(search(model, DUAL, judge, tmp_path / "stopped", progress=Told(), **OPTIONS), whole)
    assert not drawn


def same(one: Findings, other: Findings) -> bool:
    scores = [(of.search.found.value, of.fresh.found.value, of.fresh.interval) for of in (one, other)]
    return one.rounds == other.rounds and scores[0] == scores[1]


def test_too_few_images_are_refused_before_any_is_drawn(model, judge, tmp_path, drawn):
    with pytest.raises(ValueError, match="needs at least 4"):
        search(model, DUAL, judge, tmp_path, progress=Told(), num=3)
    with pytest.raises(ValueError, match="heavy call at every step"):
        search(model, replace(DUAL, sampler="ddim"), judge, tmp_path, progress=Told(), **OPTIONS)
    assert not drawn


def test_one_search_at_a_time(model, judge, tmp_path, drawn):
    with run_lock(tmp_path), pytest.raises(OSError, match="being filled by a search by another process"):
        search(model, DUAL, judge, tmp_path, progress=Told(), **OPTIONS)
    assert not drawn


# The command

COMMAND = ["--steps", "4", "--num", str(NUM)]


@pytest.fixture
def command(root, tmp_path, monkeypatch, capsys):
    """Exit code and what was told, of `dualrate plan search` on a run."""
    monkeypatch.chdir(tmp_path)

    def command(run: str, *options: str) -> tuple[int, str, str]:
        code = call(
            monkeypatch, "plan", "search", root / run, *options, "--features", root / "net", "--out", "out/plan.json"
        )
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


@pytest.mark.parametrize("run", ["one", "dual"])
def test_the_command_writes_a_plan_that_others_take(root, command, run, monkeypatch, capsys):
    code, told, _ = command(run, *COMMAND)
    assert code == 0
    record = json.loads(Path("out/plan.search.json").read_text())
    for seeds in ("search", "fresh"):
        for name in ("found", "usual"):
            score = record[seeds][name]
            assert f"{score['value']:9.3f}  [{score['low']:.3f}, {score['high']:.3f}]  {name}" in told
    assert told.count("found less usual, paired") == 2
    assert record["found"] in told
    assert Path("out/plan.png").read_bytes().startswith(b"\x89PNG")
    assert call(monkeypatch, "sample", root / run, "--plan", "out/plan.json", "--num", "2", "--out", "images") == 0
    plan = StepPlan.from_json(Path("out/plan.json").read_text())
    assert json.loads(Path("images/sample.json").read_text())["plan"] == json.loads(plan.to_json())


def test_minutes_that_do_not_suffice_are_said(command):
    code, _, error = command("dual", *COMMAND, "--minutes", "1e-9")
    assert code == 75
    assert "out of time" in error
    assert "the same command goes on" in error
    assert not Path("out/plan.json").exists()
    assert command("dual", *COMMAND)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "4", "--heavy", "5"], "between 0 and the 4 steps"),
        (["--steps", "4", "--num", "3"], "needs at least 4"),
        (["--sampler", "ddmi"], "did you mean ddim"),
        (["--minutes", "0"], "minutes is a number above 0"),
    ],
)
def test_options_that_say_nothing_together_are_refused(command, options, message):
    code, _, error = command("dual", *options)
    assert code == 2
    assert message in error


def test_a_grid_between_two_is_named_on_the_command_line(root, tmp_path, monkeypatch, capsys):
    how = ["--steps", "4", "--num", "2", "--out", tmp_path / "images"]
    assert call(monkeypatch, "sample", root / "one", "--grid", "blend:0.3", *how) == 0
    times = json.loads((tmp_path / "images" / "sample.json").read_text())["plan"]["t"]
    assert tuple(times) == grids.blended(load(root / "one").process.schedule, 4, 0.3)
    assert call(monkeypatch, "sample", root / "one", "--grid", "blend:3", *how) == 2
    assert "there is no grid 'blend:3'" in capsys.readouterr().err
