"""Planning for a budget: what is affordable, what is kept, what is refused."""

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from trouble import full_disk, unreadable

from dualrate.cli.main import main
from dualrate.data.conditions import SuperResolution
from dualrate.data.images import to_float
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.context import Cond, Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.planning import candidates, measured_errors
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import TwoConditional, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes, TimeSampler
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.catalogue import make_step
from dualrate.sampling.cost import CallCost
from dualrate.sampling.grids import grid_times
from dualrate.sampling.planner import Bend, Errors, Planner, measure_errors
from dualrate.system.device import pays
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig
from tests.theory.common import PROCESS

BIAS = -3.0  # of the loss weight, not the usual one
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
        DenoisingConfig(times=TimeSampler(), weighting=Sigmoid(BIAS)),
        FitConfig(iterations=1),
        DataConfig(str(tmp_path / "images.npz")),
    )
    write_experiment(tmp_path / "run", experiment)
    networks, _ = experiment.build()
    checkpoint.save(tmp_path / "run" / "checkpoints", 1, {"model": networks.state_dict()}, {"iteration": 1})
    return tmp_path / "run"


@pytest.mark.parametrize("own", [True, False])
def test_affordable_is_the_most_that_the_budget_pays(own):
    costs = CallCost(heavy=10.0, light=2.0, denoised=own)
    for steps in (4, 8):
        for budget in (7.9, 8.0, 16.0, 30.0, 200.0):
            fits = [h * 10 + (steps - h * own) * 2 <= budget for h in range(steps + 1)]
            assert costs.affordable(steps, budget).tolist() == [[fit] for fit in fits]


@pytest.mark.parametrize("prices", [(10, 2, 5), (10, 5, 1), (1, 10, 10), (3, 1, 3)])
@pytest.mark.parametrize("own", [True, False])
def test_a_plan_is_the_best_that_the_budget_pays_whatever_a_step_without_a_context_costs(prices, own):
    """By trying all plans of four steps, each paid call by call."""
    heavy, light, alone = prices
    costs, planner = CallCost(heavy, light, own, decode=1, alone=alone), Planner(grid_errors(4), PROCESS)
    pays_for = {Refresh.FULL: heavy + (not own) * light, Refresh.KEEP: light, Refresh.NONE: alone}
    plans = []
    for refresh in itertools.product(Refresh, repeat=4):
        with contextlib.suppress(ValueError, KeyError):  # it keeps what it does not hold, or renews a part
            plan = StepPlan(planner.errors.t, refresh)
            plans.append((1 + sum(pays_for[kind] for kind in refresh), planner.objective(plan), plan))
    for budget in (1 + 4 * alone, 1 + 4 * light, 1 + 3 * alone + heavy, 20, 24, 31):
        affordable = [one for one in plans if one[0] <= budget]
        if not affordable:
            with pytest.raises(ValueError, match=f"the cheapest plan costs {min(plans)[0]:g}"):
                candidates(planner, costs, budget, [4])
            continue
        cost, objective, plan = min(affordable, key=lambda one: one[1])
        (found,) = candidates(planner, costs, budget, [4])
        assert (found.planned.plan, found.cost) == (plan, cost)
        assert found.planned.objective == pytest.approx(objective, rel=1e-12)


def grid_errors(steps: int = 8) -> Errors:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.1, 1, (steps, steps + 1))
    errors[:, :-1][np.triu_indices(steps, 1)] = np.inf
    return Errors(StepPlan.uniform(steps).t, errors)


def test_candidates_stay_within_the_budget_and_beat_the_even_spread():
    planner, costs = Planner(grid_errors(), PROCESS), CallCost(10, 1, denoised=True)
    found = candidates(planner, costs, 30, (2, 4, 8))
    assert [c.planned.objective for c in found] == sorted(c.planned.objective for c in found)
    for candidate in found:
        assert candidate.cost <= 30
        plan = candidate.planned.plan
        assert candidate.even == planner.objective(StepPlan.uniform(plan.num_steps, plan.num_heavy))
        assert candidate.planned.objective <= candidate.even
    with pytest.raises(ValueError, match="raise the budget"):
        candidates(planner, costs, 1, (2, 4, 8))


def test_errors_are_measured_once(run, monkeypatch):
    model = load(run)
    first = measured_errors(model, grid=4, images=8, progress=Quiet())
    monkeypatch.setattr("dualrate.drawing.planning.search.measure_errors", None)
    second = measured_errors(model, grid=4, images=8, progress=Quiet())
    np.testing.assert_array_equal(first.errors, second.errors)
    assert first.t == second.t == StepPlan.uniform(4).t
    with pytest.raises(TypeError):  # not the same question
        measured_errors(model, grid=4, images=9, progress=Quiet())


def test_errors_are_those_of_all_images_where_there_are_fewer_than_asked_for(run):
    """58 of the 64 are training images; the usual 128 of a comparison would be refused."""
    model = load(run)
    all_of_them = measured_errors(model, grid=2, images=58, progress=Quiet())
    np.testing.assert_array_equal(
        measured_errors(model, grid=2, images=128, progress=Quiet()).errors, all_of_them.errors
    )


def test_errors_of_parts_are_those_of_the_whole(run, monkeypatch):
    model = load(run)
    whole = measured_errors(model, grid=4, images=10, progress=Quiet()).errors
    monkeypatch.setattr("dualrate.drawing.planning.ROWS", 4)
    monkeypatch.setenv("DUALRATE_CACHE", str(run.parent / "other"))
    np.testing.assert_allclose(measured_errors(model, grid=4, images=10, progress=Quiet()).errors, whole, rtol=1e-2)


def test_a_head_counts_at_its_own_step_only(run):
    """[i, i] is the error of the encoder's own output; a context of another time is the light network's matter."""
    model = load(run)
    x = torch.randn(16, 1, 8, 8)
    draws = Draws(0, torch.arange(16))
    t = StepPlan.uniform(4).t
    errors = measure_errors(model.denoiser, model.process, t, x, Cond(), draws).errors
    light = model.networks["light"]
    before = [p.clone() for p in light.parameters()]
    for p in light.parameters():
        p.data.normal_()
    other = measure_errors(model.denoiser, model.process, t, x, Cond(), draws).errors
    for p, old in zip(light.parameters(), before, strict=True):
        p.data.copy_(old)
    for i in range(4):
        assert other[i, i] == errors[i, i]
        assert (other[i, :i] != errors[i, :i]).all()
        assert other[i, -1] != errors[i, -1]


def test_a_single_network_has_nothing_to_plan(run):
    model = load(run)
    alone = replace(model, denoiser=Plain(UViT(NET), model.process))
    with pytest.raises(ValueError, match="nothing to plan"):
        measured_errors(alone, grid=4, images=8, progress=Quiet())


def test_costs_of_calls_add_up_to_the_counted_plan(run):
    from dualrate.sampling.ancestral import Ancestral

    model, plan = load(run), StepPlan.uniform(8, 3)
    assert model.call_cost.of(8, 3) == Drawer(model, Ancestral(model.process), plan).cost.macs


@pytest.fixture
def ageing(monkeypatch) -> Errors:
    """Errors that the command finds: contexts get worse with age, and none is worst."""
    steps = 8
    errors = np.array([[1 + (i - j) if j <= i else np.inf for j in range(steps)] + [99.0] for i in range(steps)])
    t = StepPlan.uniform(steps).t
    log_snr = PROCESS.schedule.log_snr(torch.tensor(t[:-1], dtype=torch.float64)).numpy()
    made = Errors(t, errors, Bend(log_snr, *(np.full(steps - less, 0.01) for less in (1, 2, 0))))
    monkeypatch.setattr("dualrate.cli.plan.measured_errors", lambda *_, **__: made)
    return made


def plan_command(run, monkeypatch, *options: str) -> StepPlan:
    out = run.parent / "plans" / "best.json"
    arguments = [str(run), *options, "--grid", "8", "--images", "8", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["dualrate", "plan", *arguments])
    main()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return StepPlan.from_json(out.read_text())


def test_the_command_writes_the_best_plan_within_the_budget(run, ageing, monkeypatch, capsys):
    """Under the weight that the model was trained with; the budget in any unit."""
    planner, costs = Planner(ageing, PROCESS, Sigmoid(BIAS), order=2), load(run).call_cost
    budget = 0.3 * 8 * costs.heavy
    expected = candidates(planner, costs, budget, (2, 4, 8))[0].planned
    steps = ("--steps", "2", "4", "8")
    assert plan_command(run, monkeypatch, "--budget", "0.3x", *steps) == expected.plan
    assert plan_command(run, monkeypatch, "--budget", f"{budget / 1e9}gmacs", *steps) == expected.plan
    told = capsys.readouterr().out
    assert told.count(f"{expected.objective:.5f}") >= 2
    assert f"wrote {run.parent / 'plans' / 'best.json'}: " in told
    assert "do not compare" not in told  # the budget pays for 2 steps alone
    assert "on this grid, t; the times of `sample` without --plan are blend:0.3" in told
    plan_command(run, monkeypatch, "--budget", "1x", *steps)
    assert "objectives of different numbers of steps do not compare" in capsys.readouterr().out
    of_first_order = candidates(Planner(ageing, PROCESS, Sigmoid(BIAS)), costs, budget, (2, 4, 8))[0].planned
    assert plan_command(run, monkeypatch, "--budget", "0.3x", "--ancestral", *steps) == of_first_order.plan
    assert f"{of_first_order.objective:.5f}" in capsys.readouterr().out
    assert f"budget 0.3x: {budget / 1e9:.4g} GMACs" in told


def test_a_budget_in_seconds_is_per_image(run, ageing, monkeypatch):
    pays.cache_clear()  # as in a fresh process
    times = iter([6.4, 0.64])  # of a heavy and of a light call of 64 rows
    monkeypatch.setattr("dualrate.drawing.cost.seconds_per_call", lambda call, **_: (call(), next(times))[1])
    plan = plan_command(run, monkeypatch, "--budget", "0.35s", "--steps", "8")
    assert plan.num_heavy == 3  # 3 x 0.1 + 5 x 0.01 = 0.35


def test_a_plan_may_have_the_times_of_a_sampler_s_own_grid(run, monkeypatch):
    times = grid_times("log-snr", PROCESS.schedule, 8)
    for name, t in (("log-snr", times), ("t", StepPlan.uniform(8).t)):
        plan = plan_command(run, monkeypatch, "--spacing", name, "--budget", "1x", "--steps", "8")
        assert plan.t == t
    model, how = load(run), {"grid": 4, "images": 8, "progress": Quiet()}
    errors = measured_errors(model, spacing="log-snr", **how)
    assert errors.t == measured_errors(model, spacing="log-snr", **how).t == grid_times("log-snr", PROCESS.schedule, 4)
    assert (errors.errors != measured_errors(model, **how).errors).any()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ([], "--budget"),
        (["--budget", "much"], "0.25x"),
        (["--budget", "-1x"], "0.25x"),
        (["--budget", "1gmacs", "--steps", "3"], "divisors"),
        (["--budget", "1gmacs", "--out", "plan.png"], ".json"),
        (["--budget", "1gmacs", "--images", "0"], "from 1 to"),
        (["--budget", "1gmacs", "--spacing", "even"], "there is no grid 'even'"),
    ],
)
def test_a_budget_is_said_once_and_as_a_number(run, monkeypatch, capsys, budget, message):
    monkeypatch.setattr("sys.argv", ["dualrate", "plan", str(run), *budget])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# What is kept


@pytest.fixture
def kept(run):
    """The errors of a grid of 4 in the cache: their model and their file."""
    model = load(run)
    measured_errors(model, grid=4, images=8, progress=Quiet())
    (file,) = (run.parent / "cache" / "plans").iterdir()
    return model, file


def test_damaged_errors_are_named_with_the_way_out(kept):
    model, file = kept
    for text in (
        "", "garbage", "[]", "{}", "[" * 100_000, '{"t": [1, 0], "errors": [[1, 1]]}', '{"t": 1, "errors": 1}',
        '{"t": ["a"], "errors": []}', '{"t": [1, 0.75, 0.5, 0.25, 0], "errors": [[1]]}',
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"{file} is damaged .*: delete it, and the errors are measured again"):
            measured_errors(model, grid=4, images=8, progress=Quiet())


def test_errors_that_cannot_be_read_are_not_damaged(kept, tmp_path):
    model, file = kept
    with unreadable(file, tmp_path), pytest.raises(PermissionError, match=file.name):
        measured_errors(model, grid=4, images=8, progress=Quiet())


def test_a_full_disk_names_the_plan(run, ageing, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    options = [run, "--budget", "0.5x", "--grid", "8", "--images", "8", "--steps", "4"]
    assert call(monkeypatch, "plan", *options) == 0
    before = Path("plan.json").read_text()
    with full_disk(16):
        assert call(monkeypatch, "plan", *options) == 2
    assert "too large: 'plan.json'" in capsys.readouterr().err
    assert Path("plan.json").read_text() == before
    assert not list(Path().glob("*.partial"))


# Of a condition


@pytest.fixture
def conditional(run) -> Path:
    """A run at two rates that makes images larger, with random weights, of the same images."""
    networks = TwoConditional(NET, replace(NET, levels=(Level("conv", 8, 1),) * 2), (1, 4, 4))
    method = DenoisingConfig(GivenTimes(), weighting=Sigmoid(BIAS), label_dropout=0.0)
    data = DataConfig(str(run.parent / "images.npz"))
    made = Experiment("larger", networks, method, FitConfig(1), data, condition=SuperResolution(2))
    write_experiment(run.parent / "larger", made)
    built, _ = made.build()
    torch.manual_seed(0)
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    checkpoint.save(run.parent / "larger" / "checkpoints", 1, {"model": built.state_dict()}, {"iteration": 1})
    return run.parent / "larger"


def test_errors_of_a_conditional_model_are_those_of_held_out_images_with_their_conditions(conditional, monkeypatch):
    monkeypatch.setattr("dualrate.drawing.planning.pays", lambda device: False)
    model = load(conditional)
    errors = measured_errors(model, grid=4, images=99, progress=Quiet()).errors
    held = model.given
    rows, t = torch.arange(len(held.images)), StepPlan.uniform(4).t
    x, cond = to_float(held.images.images[:]), Cond(None, held(rows))
    draws = Draws(1 << 40, rows)
    expected = measure_errors(model.denoiser, model.process, t, x, cond, draws).errors
    np.testing.assert_allclose(errors, expected, rtol=1e-5)
    for i in range(4):
        assert (errors[i, : i + 1] == errors[i, i]).all()  # a context that never ages
    assert np.isinf(errors[:, -1]).all()
    other = measure_errors(model.denoiser, model.process, t, x, Cond(None, cond.given.flip(0)), draws).errors
    assert np.abs(other.diagonal() / expected.diagonal() - 1).max() > 1e-4


@pytest.mark.parametrize("ancestral", [False, True])
def test_a_heavy_call_of_the_condition_is_planned_once_and_paid_by_all_members(conditional, ancestral, monkeypatch):
    """A budget that pays for fewer steps by itself."""
    calls = load(conditional).call_cost
    budget = calls.heavy / 4 + 8 * calls.light
    assert budget < calls.of(8, 1)
    options = ["--budget", f"{budget / 1e9}gmacs", *["--ancestral"] * ancestral]
    plan = plan_command(conditional, monkeypatch, *options, "--members", "4")
    assert plan == StepPlan.uniform(8, 1)
    drawer = Drawer(load(conditional), make_step("ancestral", PROCESS), plan, members=4)
    assert drawer.cost.macs == int(budget)
    plan = plan_command(conditional, monkeypatch, "--budget", "1x", "--steps", "4")
    assert plan == StepPlan.uniform(4, 1)


def test_what_no_plan_for_a_condition_can_be_is_said(run, conditional, monkeypatch, capsys):
    calls = load(conditional).call_cost
    short = ["--budget", f"{(calls.heavy + calls.light) * 0.9 / 1e9}gmacs", "--grid", 4, "--images", 8]
    for options, message in (
        ([conditional, *short, "--steps", 1], f"the cheapest plan costs {calls.heavy + calls.light:.4g}"),
        ([run, "--budget", "1x", "--members", 2], "drop --members"),
    ):
        assert call(monkeypatch, "plan", *options) == 2
        assert message in capsys.readouterr().err
