"""Samplers and grids by name, and the command line's options for them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from dualrate.cli.sampling_options import Plan, sampler_of
from dualrate.compare.contenders import MARKOVIAN, Entry
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiments.experiment import OneNetwork
from dualrate.experiments.serves import Continuous
from dualrate.measuring.measure import Guidance, image_cost
from dualrate.measuring.samplers import GAMMA, TABLED, GridName, SamplerName, grid_times, make_step, step_for, steps_of
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import Model, load
from dualrate.sampling import grids
from dualrate.sampling.adjusted_ddim import AdjustedDDIM
from dualrate.sampling.ancestral import DDIM, Ancestral
from dualrate.sampling.cost import seconds_per_call
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.solvers import DPMSolver2M, DPMSolver3M, Heun, SDEDPMSolver2M
from dualrate.sampling.trajectory import check_reuse

PROCESS = GaussianProcess(Cosine())
WEIGHTS = Path(__file__).parent.parent.parent / "weights"


@pytest.fixture(scope="module")
def heavy() -> Model:
    return load(WEIGHTS / "fashion-mnist-heavy")


@pytest.fixture(scope="module")
def dual() -> Model:
    return load(WEIGHTS / "fashion-mnist-dual")


@pytest.fixture(scope="module")
def small(heavy) -> Model:
    """A small network in place of the heavy one, with its table: where calls are only counted."""
    assert isinstance(heavy.experiment.networks, OneNetwork)
    net = UViTConfig(28, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 10, patch=2, embedding=16, head_dim=16)
    experiment = replace(heavy.experiment, networks=OneNetwork(net))
    networks, denoiser = experiment.build()
    return replace(heavy, experiment=experiment, networks=networks, denoiser=denoiser)


@pytest.fixture
def brief(monkeypatch) -> None:
    """`cost` times a few calls instead of a second of each."""
    monkeypatch.setattr(
        "dualrate.measuring.measure.seconds_per_call", lambda call, **_: seconds_per_call(call, seconds=0)
    )


def test_every_name_makes_its_step():
    made = [make_step(name, PROCESS) for name in get_args(SamplerName) if name not in TABLED]
    assert made.pop() == NoiseCovariance(PROCESS, "ddim")
    kinds = (Ancestral, DDIM, AdjustedDDIM, Heun, DPMSolver2M, DPMSolver3M, SDEDPMSolver2M, NoiseCovariance)
    assert made == [kind(PROCESS) for kind in kinds]
    assert make_step("ancestral", PROCESS, 0.3) == Ancestral(PROCESS, 0.3)
    assert make_step("ancestral", PROCESS, eta=0.3) == Ancestral(PROCESS, 0.0, 0.3)
    assert len(set(map(str, made))) == len(made)  # told apart in a table


WITHOUT_GAMMA = [name for name in get_args(SamplerName) if name not in GAMMA]


@pytest.mark.parametrize("calls", [6, 7])
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_steps_make_as_many_calls_as_there_may_be(name, calls, small):
    def of(steps):
        step, plan = sampler_of(small, Plan(steps=steps, sampler=name, grid="log-snr"))
        return image_cost(small, step, plan, Guidance()).light_calls

    assert of(steps_of(name, calls)) <= calls < of(steps_of(name, calls) + 1)


def test_a_distilled_student_is_for_plain_ancestral_sampling(heavy):
    student = replace(heavy, experiment=replace(heavy.experiment, times=Continuous(4)))
    for options in (Plan(sampler="covariance"), Plan(sampler="ddim"), Plan(gamma=0.2), Plan(eta=0.5)):
        with pytest.raises(ValueError, match="distilled student, for plain ancestral sampling"):
            sampler_of(student, options)
    assert sampler_of(student, Plan())[0] == Ancestral(heavy.process)


def test_a_shared_encoder_has_no_table():
    with pytest.raises(ValueError, match="not of a shared encoder"):
        Entry.parse(f"{WEIGHTS / 'fashion-mnist-heavy'}:8/4@covariance-table").asked(
            load(WEIGHTS / "fashion-mnist-heavy"), torch.device("cpu")
        )


def test_a_sampler_with_a_table_belongs_to_a_model_and_a_plan():
    for name in TABLED:
        with pytest.raises(ValueError, match="use `step_for`"):
            make_step(name, PROCESS)


@pytest.mark.parametrize("name", WITHOUT_GAMMA)
def test_gamma_is_refused_where_it_means_nothing(name, heavy):
    with pytest.raises(ValueError, match=f"{name.replace('+', '.')} has none"):
        make_step(name, PROCESS, 0.1)
    with pytest.raises(ValueError, match="--gamma is the noise level of ancestral and sde-dpm"):
        sampler_of(heavy, Plan(sampler=name, gamma=0.0))


@pytest.mark.parametrize("name", [*WITHOUT_GAMMA, "sde-dpm++2m"])
def test_eta_is_refused_where_it_means_nothing(name, heavy):
    with pytest.raises(ValueError, match=f"means nothing to {name.replace('+', '.')}"):
        make_step(name, PROCESS, eta=0.5)
    with pytest.raises(ValueError, match="--eta belongs to ancestral sampling"):
        sampler_of(heavy, Plan(sampler=name, eta=1.0))


def test_eta_is_for_a_network_at_every_step_and_without_gamma(heavy, dual):
    for eta in (0.0, 0.5, 1.0):
        assert sampler_of(heavy, Plan(steps=4, eta=eta))[0] == Ancestral(heavy.process, eta=eta)
    check_reuse(dual.denoiser, *sampler_of(dual, Plan(steps=5, heavy=4, eta=1.0)))
    with pytest.raises(ValueError, match="heavy call at every step"):
        check_reuse(dual.denoiser, *sampler_of(dual, Plan(steps=5, heavy=4, eta=0.5)))
    with pytest.raises(ValueError, match="gamma at 0 or eta at 1"):
        sampler_of(heavy, Plan(steps=4, eta=0.5, gamma=0.5))


def test_every_name_makes_its_grid():
    made = {name: grid_times(name, PROCESS.schedule, 6) for name in get_args(GridName)}
    assert made == {
        "t": grids.uniform(6),
        "log-snr": grids.uniform_log_snr(PROCESS.schedule, 6),
        "karras": grids.karras(PROCESS.schedule, 6),
    }


def test_nothing_asked_for_is_what_it_was(heavy, dual):
    assert sampler_of(heavy, Plan()) == (Ancestral(heavy.process), StepPlan.uniform(64))
    assert sampler_of(dual, Plan()) == (Ancestral(dual.process), StepPlan.uniform(64, 16))
    assert sampler_of(heavy, Plan(steps=8, heavy=2, sampler="ddim")) == (DDIM(heavy.process), StepPlan.uniform(8, 2))


def test_heavy_calls_are_spread_evenly_over_any_grid(dual):
    _, plan = sampler_of(dual, Plan(steps=8, heavy=3, grid="karras"))
    assert plan.t == grids.karras(dual.process.schedule, 8)
    assert plan.refresh == StepPlan.uniform(8, 3).refresh


@pytest.mark.parametrize("changes", [{"steps": 4}, {"heavy": 2}, {"grid": "log-snr"}, {"times": (1.0, 0.0)}])
def test_a_plan_says_all(changes, heavy, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(StepPlan.uniform(3).to_json())
    assert sampler_of(heavy, Plan(plan=path, sampler="heun")) == (Heun(heavy.process), StepPlan.uniform(3))
    with pytest.raises(ValueError, match="drop --steps, --heavy, --grid and --times"):
        sampler_of(heavy, Plan(plan=path, **changes))


def test_times_may_be_listed(heavy, dual):
    times = (1.0, 0.8, 0.7, 0.2, 0.0)
    assert sampler_of(heavy, Plan(times=times))[1] == StepPlan.at(times, range(4))
    assert sampler_of(dual, Plan(times=times, heavy=2))[1] == StepPlan.at(times, [0, 2])
    assert sampler_of(dual, Plan(times=times))[1].num_heavy == dual.experiment.times.default_heavy(4)


@pytest.mark.parametrize(
    ("times", "changes", "message"),
    [
        ((1.0, 0.5, 0.0), {"steps": 2}, "drop --steps and --grid"),
        ((1.0, 0.5, 0.0), {"grid": "karras"}, "drop --steps and --grid"),
        ((1.0, 0.5), {}, "from 1 .noise. to 0 .data., got 1.0 0.5"),
        ((0.5, 0.0), {}, "from 1 .noise. to 0"),
        ((1.0,), {}, "from 1 .noise. to 0"),
        ((), {}, "got none"),
        ((1.0, 0.2, 0.6, 0.0), {}, "decrease strictly"),
        ((1.0, float("nan"), 0.0), {}, "each a number from 0 to 1"),
        ((1.0, 0.5, 0.0), {"heavy": 3}, "between 0 and the 2 steps"),
    ],
)
def test_a_list_of_times_that_is_no_plan_is_refused(times, changes, message, heavy):
    with pytest.raises(ValueError, match=message):
        sampler_of(heavy, Plan(times=times, **changes))


@pytest.mark.parametrize("name", WITHOUT_GAMMA)
def test_a_dual_rate_model_takes_them_with_a_heavy_call_at_every_step(name, dual):
    """A derivative is the light network's: two light calls, but for the last step along the noise, which has none."""
    step, plan = sampler_of(dual, Plan(steps=5, heavy=5, sampler=name, grid="log-snr"))
    cost = image_cost(dual, step, plan, Guidance())
    light = {"covariance": 8, "covariance-ddim": 8, "covariance-jvp": 10, "covariance-jvp-ddim": 10}.get(name, 0)
    assert (cost.heavy_calls, cost.light_calls) == (8 if name == "heun" else 5, light)
    step, plan = sampler_of(dual, Plan(steps=5, heavy=4, sampler=name))
    if name in MARKOVIAN:
        check_reuse(dual.denoiser, step, plan)
        return
    with pytest.raises(ValueError, match="Use Ancestral"):
        check_reuse(dual.denoiser, step, plan)


@pytest.mark.parametrize(
    ("name", "calls"), [("ancestral", 5), ("ddim", 5), ("heun", 8), ("dpm++2m", 5), ("dpm++3m", 5), ("addim", 5)]
)
def test_a_single_rate_model_pays_for_every_evaluation(name, calls, small):
    step, plan = sampler_of(small, Plan(steps=5, sampler=name, grid="karras"))
    assert image_cost(small, step, plan, Guidance()).light_calls == calls


def test_the_command_line_knows_the_names(brief, monkeypatch, capsys):
    from dualrate.cli.main import main

    arguments = [
        "cost",
        WEIGHTS / "fashion-mnist-light",
        "--sampler",
        "heun",
        "--grid",
        "log-snr",
        "--steps",
        "3",
        "--json",
    ]
    monkeypatch.setattr("sys.argv", ["dualrate", *map(str, arguments)])
    main()
    assert json.loads(capsys.readouterr().out)["light_calls_per_image"] == 4


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_a_comparison_takes_them_with_a_plan(name, heavy):
    contender = Entry.parse(f"{WEIGHTS / 'fashion-mnist-heavy'}:8@{name}").asked(heavy, torch.device("cpu"))
    step = contender.step(heavy)
    assert str(step) == str(step_for(heavy, contender.plan, name))
    assert name in TABLED or step == make_step(name, heavy.process)
    assert contender.plan.num_steps == 8


def test_the_command_line_takes_eta_and_a_list_of_times(brief, monkeypatch, capsys):
    from dualrate.cli.main import main

    def calls(*options):
        monkeypatch.setattr("sys.argv", ["dualrate", "cost", str(WEIGHTS / "fashion-mnist-light"), "--json", *options])
        main()
        return json.loads(capsys.readouterr().out)["light_calls_per_image"]

    assert calls("--eta", "0.5", "--times", "1", "0.5", "0.2", "0") == 3
    assert calls("--sampler", "addim", "--steps", "2") == 2


def test_their_images_are_no_noise(heavy):
    """The released model, a few steps of each: finite, and mostly within the range of images."""
    from dualrate.sampling.trajectory import sample

    for name in get_args(SamplerName):
        step, plan = sampler_of(heavy, Plan(steps=6, sampler=name, grid="log-snr"))
        (images,) = sample(heavy.denoiser, step, plan, heavy.shape, range(2), range(2))
        assert torch.isfinite(images).all()
        assert images.abs().quantile(0.9) < 1.2
