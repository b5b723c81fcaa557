"""Planning for a budget: what is affordable, what is kept, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from dualrate.cli import main
from dualrate.experiment import DataConfig, Experiment, OneNetwork, TwoNetworks
from dualrate.models.uvit import Level, UViTConfig
from dualrate.planner import Errors, Planner
from dualrate.runs.planning import CallCosts, call_macs, candidates, check_plans, measured_errors, spearman
from dualrate.runs.store import load, write_experiment
from dualrate.timing import StepPlan, TimeSampler
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig
from tests.theory.common import PROCESS

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)


class Quiet:
    def update(self, iteration, total, logs): ...
    def note(self, text): ...
    def close(self): ...


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A dual-rate run with random weights, and its images."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    experiment = Experiment(
        "two",
        TwoNetworks(NET, NET),
        FitConfig(iterations=1),
        DataConfig(str(tmp_path / "images.npz")),
        times=TimeSampler(),
    )
    write_experiment(tmp_path / "run", experiment)
    networks, _ = experiment.build()
    checkpoint.save(tmp_path / "run" / "checkpoints", 1, {"model": networks.state_dict()}, {"iteration": 1})
    return tmp_path / "run"


@pytest.mark.parametrize("own", [True, False])
def test_affordable_is_the_most_that_the_budget_pays(own):
    costs = CallCosts(heavy=10.0, light=2.0, own=own)
    for steps in (4, 8):
        for budget in (7.9, 8.0, 16.0, 30.0, 200.0):
            fits = [h for h in range(steps + 1) if h * 10 + (steps - h * own) * 2 <= budget]
            assert costs.affordable(steps, budget) == (max(fits) if fits else None)


def grid_errors(steps: int = 8) -> Errors:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.1, 1, (steps, steps + 1))
    errors[:, :-1][np.triu_indices(steps, 1)] = np.inf
    return Errors(StepPlan.uniform(steps).t, errors)


def test_candidates_stay_within_the_budget_and_beat_the_even_spread():
    planner, costs = Planner(grid_errors(), PROCESS), CallCosts(10, 1, own=True)
    found = candidates(planner, costs, 30, (2, 4, 8))
    assert [c.planned.objective for c in found] == sorted(c.planned.objective for c in found)
    for candidate in found:
        assert candidate.cost <= 30
        assert candidate.planned.objective <= candidate.uniform.objective
        assert candidate.planned.plan.num_heavy == candidate.uniform.plan.num_heavy
    with pytest.raises(ValueError, match="raise the budget"):
        candidates(planner, costs, 1, (2, 4, 8))


def test_errors_are_measured_once(run, monkeypatch):
    model = load(run)
    first = measured_errors(model, grid=4, images=8, progress=Quiet())
    monkeypatch.setattr("dualrate.runs.planning.measure_errors", None)
    second = measured_errors(model, grid=4, images=8, progress=Quiet())
    np.testing.assert_array_equal(first.errors, second.errors)
    assert first.t == second.t == StepPlan.uniform(4).t


def test_a_single_network_has_nothing_to_plan(run):
    model = load(run)
    alone = replace(model, experiment=replace(model.experiment, networks=OneNetwork(NET)))
    with pytest.raises(ValueError, match="nothing to plan"):
        measured_errors(alone, grid=4, images=8, progress=Quiet())


def test_costs_of_calls_add_up_to_the_counted_plan(run):
    from dualrate.cost import plan_cost
    from dualrate.steps import Ancestral

    model, plan = load(run), StepPlan.uniform(8, 3)
    counted = plan_cost(model.denoiser, Ancestral(model.process), plan, model.shape)
    assert call_macs(model).of(8, 3) == counted.macs


def test_check_plans_are_a_dozen_different_ones_on_the_grid():
    planner = Planner(grid_errors(16), PROCESS)
    plans = check_plans(planner)
    assert len(plans) >= 12
    assert len({name for name, _ in plans}) == len(plans)
    for _, plan in plans:
        assert planner.objective(plan) > 0


def test_spearman_is_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=13), rng.normal(size=13)
    assert spearman(a.tolist(), (a + 0.5 * b).tolist()) == pytest.approx(spearmanr(a, a + 0.5 * b)[0])


@pytest.mark.parametrize("budget", [["--gmacs", "0.01"], ["--budget", "0.5x"], ["--seconds", "10"]])
def test_the_command_writes_a_plan_that_others_take(run, monkeypatch, capsys, budget):
    out = run.parent / "plans" / "best.json"
    arguments = [str(run), *budget, "--grid", "4", "--images", "8", "--steps", "2", "4", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["dualrate", "plan", *arguments])
    main()
    assert StepPlan.from_json(out.read_text()).t[0] == 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "objective" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("budget", "message"),
    [([], "one of"), (["--budget", "much"], "0.25x"), (["--gmacs", "1", "--seconds", "1"], "one of")],
)
def test_a_budget_is_said_once_and_as_a_number(run, monkeypatch, capsys, budget, message):
    monkeypatch.setattr("sys.argv", ["dualrate", "plan", str(run), *budget])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
