"""Plans of what else may run at a step: another run's network, what a network keeps; and commands that draw them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli.command import call
from runs.made import NET, ONE, TWO, saved

import dualrate as dr
from dualrate.diffusion.context import Refresh
from dualrate.diffusion.random import Draws
from dualrate.drawing.choice import Choice
from dualrate.drawing.planning import measured_errors
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import OneNetwork
from dualrate.experiment.switching import switched
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level
from dualrate.options.console import reporter
from dualrate.runs.store import called_by
from dualrate.sampling.planner import NO_CONTEXT, measure_errors

SMALL = ("--grid", "8", "--images", "8")
LARGE = replace(NET, levels=(Level("conv", 8, 1), Level("transformer", 16, 3)))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A single network, a larger one, two rates, of the same images."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 256, (64, 8, 8, 1), np.uint8), labels=np.arange(64) % 3)
    data = DataConfig(str(tmp_path / "images.npz"))
    torch.manual_seed(0)
    made = {"small": ONE, "large": replace(ONE, networks=OneNetwork(LARGE)), "two": TWO}
    return {name: saved(replace(experiment, data=data), tmp_path / name) for name, experiment in made.items()}


def errors_of(run, denoiser):
    model = called_by(dr.load(run), denoiser and str(denoiser))
    return measured_errors(model, grid=8, images=8, progress=reporter())


def test_of_two_single_networks_no_context_is_kept(runs):
    errors = errors_of(runs["large"], runs["small"]).errors
    known = np.isfinite(errors)
    assert known[:, NO_CONTEXT].all()
    assert (known[:, :-1] == np.eye(8, dtype=bool)).all()
    assert (errors.diagonal() != errors[:, NO_CONTEXT]).all()


def test_a_cache_is_measured_on_a_smooth_path_and_never_without_a_context(runs):
    """As the two calls say, by hand, on one noise."""
    model, t = called_by(dr.load(runs["large"]), "fora"), dr.StepPlan.uniform(4).t
    x, draws = torch.rand(3, 1, 8, 8), Draws(0, torch.arange(3))
    cond, noise = dr.Cond(torch.arange(3)), draws.normal("plan start", 1, 8, 8)
    errors = measure_errors(model.denoiser, model.gaussian, t, x, cond, draws).errors
    times = [torch.full((3,), time, dtype=torch.float64) for time in t[:3]]
    states = [model.gaussian.add_noise(x, time, noise) for time in times]
    with torch.no_grad():
        held = model.denoiser.encode(states[1], times[1], cond).aged()
        x_hat = model.denoiser.denoise(states[2], times[2], held, cond)
    assert errors[2, 1] == pytest.approx((x - x_hat).double().square().mean().item(), rel=1e-5)
    assert np.isinf(errors[:, NO_CONTEXT]).all()


def test_beside_two_rates_another_network_s_errors_take_the_place_of_the_light_one_s(runs):
    alone, beside = errors_of(runs["two"], None), errors_of(runs["two"], runs["large"])
    np.testing.assert_array_equal(alone.errors[:, :-1], beside.errors[:, :-1])
    assert (alone.errors[:, NO_CONTEXT] != beside.errors[:, NO_CONTEXT]).all()


@pytest.mark.parametrize("path", [None, "where it is"])
def test_a_network_that_makes_the_first_steps_need_not_be_a_run(runs, path):
    large, small = dr.load(runs["large"]), dr.load(runs["small"])
    model = switched(large, small if path else replace(small, path=None))
    assert not model.untrained_alone
    assert Choice(8, switch_at=0.6).drawer(model).plan.num_alone


def test_errors_without_a_context_that_were_measured_before_are_not_taken(runs, monkeypatch):
    run = dr.load(runs["two"])
    method = replace(run.experiment.method, times=TimeSampler(dropout=0.0))
    always = replace(run, experiment=replace(run.experiment, method=method))
    for untrained in (False, True):
        monkeypatch.setattr(Model, "untrained_alone", untrained)
        errors = measured_errors(always, grid=8, images=8, progress=reporter()).errors
        assert np.isinf(errors[:, NO_CONTEXT]).all() == untrained


@pytest.mark.parametrize(
    ("run", "denoiser", "budget"), [("large", "small", 0.8), ("large", "shared-encoder", 0.8), ("two", "large", 1.2)]
)
def test_a_plan_within_the_budget_is_drawn_at_the_cost_that_it_was_told(
    runs, run, denoiser, budget, tmp_path, monkeypatch, capsys
):
    how = [runs[run], "--denoiser", runs.get(denoiser, denoiser)]
    options = [*SMALL, "--budget", f"{budget}x", "--steps", "8", "--out", tmp_path / "plan.json"]
    assert call(monkeypatch, "plan", *how, *options) == 0
    told = capsys.readouterr().out
    plan = dr.StepPlan.from_json((tmp_path / "plan.json").read_text())
    (line,) = re.findall(rf"^ *8 +{plan.num_heavy} +{plan.refresh.count(Refresh.NONE)} +(\S+) ", told, re.MULTILINE)
    sampling = ["--plan", tmp_path / "plan.json", "--out", tmp_path / "out", "--num", "2", "--json"]
    assert call(monkeypatch, "sample", *how, *sampling) == 0
    drawn = json.loads(capsys.readouterr().out)
    most = float(re.findall(r": (\S+) GMACs$", told, re.MULTILINE)[0])
    assert float(line) <= most * 1.01
    model = called_by(dr.load(runs[run]), str(runs.get(denoiser, denoiser)))
    counted = Choice(plan=plan).drawer(model).cost.macs
    assert counted / 1e9 == pytest.approx(float(line), rel=5e-3)
    assert drawn["heavy_calls_per_image"] == plan.num_heavy


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample {large} --denoiser {small} --out x", "say which steps .* makes: --switch-at 0.6"),
        ("sample {large} --switch-at 0.6 --out x", "has no other network for the steps before switch_at"),
        ("sample {large} --denoiser {small} --out x --switch-at 0.6 --places even", "no context: drop places"),
        ("plan {large} --budget 1gmacs", "there is nothing to plan; have it called by shared-encoder, or another run"),
        ("plan {large} --denoiser gone --budget 1gmacs", "there is no denoiser 'gone'.*nor is it the directory"),
        ("plan {large} --denoiser taylor --budget 1gmacs --steps 8", "spread its heavy calls evenly"),
        ("plan {large} --denoiser toca --budget 1gmacs --steps 8", "spread its heavy calls evenly"),
        ("plan {large} --denoiser fora --budget 1gmacs", "give --steps, one number: .* do not compare"),
        ("plan {large} --denoiser fora --budget 1gmacs --steps 8 --ancestral", "fora needs a sampler without noise"),
        ("plan {large} --denoiser {small} --budget 1e-9gmacs --grid 8 --steps 8 --images 8", "raise the budget"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_or_drawn_is_said(runs, command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *command.format(**runs).split()) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(("time", "alone"), [(1.0, 0), (0.5, 4), (0.45, 5), (0.0, 8)])
def test_until_a_time_another_network_makes_the_steps(runs, time, alone, tmp_path, monkeypatch):
    """DuoDiff, T-Stitch: times of equal steps in t, under DDIM, which a switch allows; a step at the time is heavy."""
    how = [runs["large"], "--denoiser", runs["small"], "--steps", "8", "--switch-at", time]
    out, plan = tmp_path / "plan.json", dr.StepPlan.late(8, 8 - alone, alone)
    out.write_text(plan.to_json())
    sampling = ["--sampler", "ddim", "--num", "1"]
    assert call(monkeypatch, "sample", *how, *sampling, "--out", tmp_path / "a") == 0
    same = ["--denoiser", runs["small"], "--plan", out, *sampling]
    assert call(monkeypatch, "sample", runs["large"], *same, "--out", tmp_path / "b") == 0
    assert (tmp_path / "a" / "000000.png").read_bytes() == (tmp_path / "b" / "000000.png").read_bytes()


def test_until_a_time_the_light_network_of_two_rates_is_alone(runs):
    """Heavy calls are spread evenly over the steps after it: a quarter of all, or as many as are asked for."""
    model = dr.load(runs["two"])
    for heavy, made in ((None, 4), (3, 3), (8, 8)):
        plan = Choice(16, heavy, grid="t", switch_at=0.5).step_plan(model)
        assert plan == dr.StepPlan.late(16, made, 8)
    with pytest.raises(ValueError, match="steps 16 and heavy 9 leave 0 to 7 to the light network alone"):
        Choice(16, 9, grid="t", switch_at=0.5).step_plan(model)
