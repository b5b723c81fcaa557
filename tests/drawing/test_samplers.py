"""Samplers and grids by name, and the command line's options for them."""

import json
import re
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from dualrate.comparison.candidates import RunRequest
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing.choice import Choice, step_for
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.samples import write_samples
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import OneNetwork
from dualrate.experiment.plan_support import AtLeast
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.moment_matching import MomentMatchingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.options.sampling import SamplingOptions
from dualrate.runs.store import load
from dualrate.sampling import grids
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.catalogue import SAMPLERS, make_step, sampler_named, taking
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.grids import GRIDS, grid_times
from dualrate.sampling.solvers import DPMSolver2M, Heun, SDEDPMSolver2M
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import sample_batches

PROCESS = GaussianProcess(Cosine())
WEIGHTS = Path(__file__).parent.parent.parent / "weights"


def drawer_of(model: Model, options: SamplingOptions) -> Drawer:
    return options.drawer(model)


def sampler_of(model: Model, options: SamplingOptions):
    drawer = options.drawer(model)
    return drawer.step, drawer.plan


@pytest.fixture(scope="module")
def heavy() -> Model:
    return load(WEIGHTS / "fashion-mnist-heavy-annealed")


@pytest.fixture(scope="module")
def dual() -> Model:
    """Its encoder as if it were another network, frozen: that knows every time, not those of late plans alone."""
    model = load(WEIGHTS / "fashion-mnist-dual-45")
    assert isinstance(model.experiment.method, DenoisingConfig)
    method = replace(model.experiment.method, encoder_from="any", freeze_encoder=True)
    return replace(model, experiment=replace(model.experiment, method=method))


@pytest.fixture(scope="module")
def small(heavy) -> Model:
    """A small network in place of the heavy one, where calls are only counted."""
    assert isinstance(heavy.experiment.networks, OneNetwork)
    net = UViTConfig(28, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 10, patch=2, embedding=16, head_dim=16)
    experiment = replace(heavy.experiment, networks=OneNetwork(net))
    networks, denoiser = experiment.build()
    return replace(heavy, experiment=experiment, networks=networks, denoiser=denoiser)


def test_every_name_makes_its_step():
    made = {name: make_step(name, PROCESS) for name in SAMPLERS}
    for name, step in made.items():
        assert step == SAMPLERS[name].step(PROCESS, **SAMPLERS[name].chosen)
    assert made["covariance-ddim"] == NoiseCovariance(PROCESS, "ddim")
    assert made["covariance-dft"] == FourierCovariance(PROCESS, boundary="periodic")
    assert make_step("ancestral", PROCESS, 0.3) == Ancestral(PROCESS, 0.3)
    assert make_step("ancestral", PROCESS, eta=0.3) == Ancestral(PROCESS, 0.0, 0.3)
    assert len(set(map(str, made.values()))) == len(made)  # told apart in a table


WITHOUT_GAMMA = [name for name in SAMPLERS if name not in taking("gamma")]


@pytest.mark.parametrize("calls", [6, 7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_make_as_many_calls_as_there_may_be(name, calls, small):
    def of(steps):
        return drawer_of(small, SamplingOptions(steps=steps, sampler=name, grid="log-snr")).cost.light_calls

    steps = SAMPLERS[name].step.most_steps(calls)
    assert of(steps) <= calls < of(steps + 1)


def test_a_consistency_model_is_drawn_from_by_ddim(heavy):
    student = replace(heavy, experiment=replace(heavy.experiment, method=ConsistencyConfig(4)))
    step, plan = sampler_of(student, SamplingOptions())
    assert (step, plan) == (DDIM(heavy.process), StepPlan.uniform(4))
    assert sampler_of(student, SamplingOptions(steps=4, sampler="ddim"))[0] == DDIM(heavy.process)
    for options in (SamplingOptions(sampler="ancestral"), SamplingOptions(eta=0.5), SamplingOptions(steps=8)):
        with pytest.raises(ValueError, match="this consistency model has learned to make"):
            sampler_of(student, options)


def test_a_distilled_student_is_for_plain_ancestral_sampling(heavy):
    student = replace(heavy, experiment=replace(heavy.experiment, method=MomentMatchingConfig("x", AtLeast(4))))
    for options in (
        SamplingOptions(sampler="covariance"),
        SamplingOptions(sampler="ddim"),
        SamplingOptions(gamma=0.2),
        SamplingOptions(eta=0.5),
    ):
        with pytest.raises(ValueError, match="distilled student, for plain ancestral sampling"):
            sampler_of(student, options)
    assert sampler_of(student, SamplingOptions())[0] == Ancestral(heavy.process)


@pytest.mark.parametrize("name", WITHOUT_GAMMA)
def test_gamma_is_refused_where_it_means_nothing(name, heavy):
    message = rf"gamma is the noise level of ancestral and sde-dpm\+\+2m and means nothing to {re.escape(name)}, got"
    with pytest.raises(ValueError, match=message):
        make_step(name, PROCESS, 0.1)
    with pytest.raises(ValueError, match=message):
        sampler_of(heavy, SamplingOptions(sampler=name, gamma=0.0))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in taking("eta")])
def test_eta_is_refused_where_it_means_nothing(name, heavy):
    message = f"eta is the share of fresh noise of ancestral and means nothing to {re.escape(name)}, got"
    with pytest.raises(ValueError, match=message):
        make_step(name, PROCESS, eta=0.5)
    with pytest.raises(ValueError, match=message):
        sampler_of(heavy, SamplingOptions(sampler=name, eta=1.0))


def test_eta_is_for_a_network_at_every_step_and_without_gamma(heavy, dual):
    for eta in (0.0, 0.5, 1.0):
        assert sampler_of(heavy, SamplingOptions(steps=4, eta=eta))[0] == Ancestral(heavy.process, eta=eta)
    assert drawer_of(dual, SamplingOptions(steps=8, heavy=4, eta=1.0)).step.markovian
    with pytest.raises(ValueError, match="heavy call at every step"):
        drawer_of(dual, SamplingOptions(steps=8, heavy=4, eta=0.5))
    with pytest.raises(ValueError, match="gamma at 0 or eta at 1"):
        sampler_of(heavy, SamplingOptions(steps=4, eta=0.5, gamma=0.5))


def test_every_name_makes_its_grid():
    made = {name: grid_times(name, PROCESS.schedule, 6) for name in GRIDS}
    assert made == {
        "t": grids.uniform(6),
        "log-snr": grids.uniform_log_snr(PROCESS.schedule, 6),
        "karras": grids.karras(PROCESS.schedule, 6),
    }


def test_nothing_asked_for_is_what_is_recommended(heavy, dual):
    """docs/choosing.md: second order, gamma 0.1, blend:0.5; with contexts blend:0.3, a quarter alone."""
    step = SDEDPMSolver2M(heavy.process, 0.1)
    alone = grids.blended(heavy.process.schedule, 32, 0.5)
    assert sampler_of(heavy, SamplingOptions()) == (step, StepPlan.at(alone, range(32)))
    blended = grids.blended(dual.process.schedule, 32, 0.3)
    late = StepPlan.at(blended, range(8, 32, 3))
    assert sampler_of(dual, SamplingOptions()) == (step, late)
    assert sampler_of(dual, SamplingOptions(places="even")) == (step, StepPlan.spread(blended, 8))
    assert sampler_of(dual, SamplingOptions(steps=8, heavy=8))[1].t == grids.blended(dual.process.schedule, 8, 0.5)
    assert sampler_of(dual, SamplingOptions(plan=None, gamma=0.0))[0] == SDEDPMSolver2M(dual.process)


def test_a_smooth_path_is_recommended_what_keeps_it(heavy):
    shared = SamplingOptions(steps=8, heavy=4, denoiser="shared-encoder").drawer(heavy)
    assert shared.step == DPMSolver2M(heavy.process)
    assert (shared.plan.num_heavy, shared.plan.t) == (4, grids.karras(heavy.process.schedule, 8))
    assert SamplingOptions(steps=8, denoiser="shared-encoder").drawer(heavy).plan.num_heavy == 2
    with pytest.raises(ValueError, match=r"gamma .* means nothing to dpm\+\+2m"):
        SamplingOptions(steps=8, heavy=4, denoiser="shared-encoder", gamma=0.2).drawer(heavy)


def test_fewer_heavy_calls_than_asked_for_are_said_with_the_reason(dual):
    method = replace(dual.experiment.method, freeze_encoder=False, times=TimeSampler(first=(0.5, 0.75)))
    late = replace(dual, experiment=replace(dual.experiment, method=method))
    notes: list[str] = []
    plan = SamplingOptions(steps=16, heavy=16).drawer(late, notes.append).plan
    assert 0 < plan.num_heavy < 16
    assert notes == [
        f"{plan.counts}, not 16: the other steps are at noise levels at which the encoder of "
        f"{dual.name} was not trained"
    ]
    for made in (SamplingOptions(steps=16, heavy=plan.num_heavy), SamplingOptions(steps=16)):
        made.drawer(late, notes.append)
    assert SamplingOptions(steps=16, heavy=16).drawer(dual, notes.append).plan.num_heavy == 16
    assert len(notes) == 1
    with pytest.warns(UserWarning, match="heavy calls, not 16"):
        Choice(16, 16).settled(late)


def test_asking_for_more_heavy_calls_never_gives_fewer(dual):
    method = replace(dual.experiment.method, freeze_encoder=False, times=TimeSampler(heavy=(1, 8), first=(0.6, 0.9)))
    late = replace(dual, experiment=replace(dual.experiment, method=method))
    for steps in range(1, 17):
        plans = [Choice(steps, heavy).step_plan(late, note=str) for heavy in range(1, steps + 1)]
        counts = [plan.num_heavy for plan in plans]
        assert counts == sorted(counts)
        assert {plan.t for plan in plans} == {plans[0].t}  # on the grid of a context that is reused, as it is


def test_a_plan_of_ones_own_with_heavy_calls_where_the_encoder_was_not_trained_is_noted_once(dual):
    method = replace(dual.experiment.method, freeze_encoder=False, times=TimeSampler(first=(0.5, 0.75)))
    late = replace(dual, experiment=replace(dual.experiment, method=method))
    plan = StepPlan.uniform(16, 16)
    least, most = late.serves.times
    wrong = sum(not least <= t <= most for t in plan.t[:-1])
    assert wrong
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("default")
        for _ in range(2):
            replace(Drawer(late, step_for(late, "ddim"), plan), batch_size=3)
        Choice(16).drawer(late)
        Drawer(dual, step_for(dual, "ddim"), plan)
    (message,) = [str(each.message) for each in noted if each.category is UserWarning]
    assert message.startswith(f"{wrong} of the plan's 16 heavy calls are at noise levels at which the encoder")


def test_no_heavy_call_at_all_may_be_asked_for(dual):
    none = StepPlan.spread(grids.blended(dual.process.schedule, 8, 0.3), 0)
    assert sampler_of(dual, SamplingOptions(steps=8, heavy=0))[1] == none


def test_a_plan_that_is_not_served_is_refused_as_soon_as_it_is_chosen(heavy):
    student = replace(heavy, experiment=replace(heavy.experiment, method=MomentMatchingConfig("x", AtLeast(4))))
    assert Choice().step_plan(student) == StepPlan.uniform(4)
    for choice in (Choice(steps=2), Choice(plan=StepPlan.uniform(2))):
        with pytest.raises(ValueError, match="distilled to 4 steps"):
            choice.step_plan(student)


@pytest.mark.parametrize("plan", ["plan.json", {"t": [1, 0], "refresh": ["full"]}, 8])
def test_what_is_no_plan_is_refused_with_the_way_to_one(plan):
    with pytest.raises(ValueError, match=r"plan is a StepPlan, got .*: StepPlan\.from_json"):
        Choice(plan=plan)


def test_a_model_that_never_went_without_a_context_is_called_at_the_first_step(dual):
    method = replace(dual.experiment.method, times=TimeSampler(dropout=0.0))
    always = replace(dual, experiment=replace(dual.experiment, method=method))
    assert sampler_of(always, SamplingOptions())[1].refresh == StepPlan.uniform(32, 8).refresh
    assert Choice(8, 0).drawer(dual).plan.num_alone == 8
    with pytest.raises(ValueError, match="not trained without a context, and 8 of the plan's 8 steps have no context"):
        Choice(8, 0).drawer(always)


def test_a_sampler_that_is_named_has_its_own_settings_and_grid(heavy):
    step, plan = sampler_of(heavy, SamplingOptions(steps=8, sampler="dpm++2m"))
    assert (step, plan.t) == (DPMSolver2M(heavy.process), grids.karras(heavy.process.schedule, 8))
    assert sampler_of(heavy, SamplingOptions(steps=8, sampler="sde-dpm++2m"))[0] == SDEDPMSolver2M(heavy.process)
    assert sampler_of(heavy, SamplingOptions(steps=8, sampler="ddim")) == (DDIM(heavy.process), StepPlan.uniform(8))


class Karras(DPMSolver2M):
    pass


class Mine(DPMSolver2M):
    grid = "log-snr"


@pytest.mark.parametrize(("sampler", "times"), [(Karras, grids.karras), (Mine, grids.uniform_log_snr)])
def test_a_sampler_of_a_user_has_the_times_that_its_class_names(heavy, sampler, times):
    _, plan = sampler_of(heavy, SamplingOptions(steps=8, sampler=f"{__name__}:{sampler.__name__}"))
    assert plan.t == times(heavy.process.schedule, 8)


def test_what_has_no_effect_is_refused(heavy, dual):
    with pytest.raises(
        ValueError, match=r"has one network, called at every step: drop heavy \(2\), or share its encoder"
    ):
        sampler_of(heavy, SamplingOptions(steps=8, heavy=2))
    for model, options in ((heavy, {}), (dual, {"steps": 8, "heavy": 8})):
        with pytest.raises(ValueError, match="places late leaves the first steps without a context"):
            sampler_of(model, SamplingOptions(places="late", **options))


def test_heavy_calls_are_spread_over_any_grid(dual):
    _, plan = sampler_of(dual, SamplingOptions(steps=8, heavy=3, grid="karras", places="even"))
    assert plan.t == grids.karras(dual.process.schedule, 8)
    assert plan.refresh == StepPlan.uniform(8, 3).refresh


@pytest.mark.parametrize("changes", [{"steps": 4}, {"heavy": 2}, {"grid": "log-snr"}])
def test_a_plan_says_all(changes, heavy, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(StepPlan.uniform(3).to_json())
    assert sampler_of(heavy, SamplingOptions(plan=path, sampler="heun")) == (Heun(heavy.process), StepPlan.uniform(3))
    with pytest.raises(ValueError, match=f"a plan has its own steps and heavy calls: drop {next(iter(changes))}"):
        sampler_of(heavy, SamplingOptions(plan=path, **changes))


@pytest.mark.parametrize("name", WITHOUT_GAMMA)
def test_a_dual_rate_model_takes_them_with_a_heavy_call_at_every_step(name, dual):
    """A derivative is the light network's: a light call beside that of x_hat; another evaluation is a heavy call."""
    drawer = drawer_of(dual, SamplingOptions(steps=5, heavy=5, sampler=name, grid="log-snr"))
    cost, step = drawer.cost, drawer.step
    several = 5 - step.single_call_steps if step.calls_per_step > 1 else 0  # steps that call again
    light = (5 + several, 0) if isinstance(step, Heun) else (5, several * step.calls_per_step)
    assert (cost.heavy_calls, cost.light_calls) == light
    fewer = SamplingOptions(steps=8, heavy=4, sampler=name)
    if SAMPLERS[name].markovian:
        assert drawer_of(dual, fewer).plan.num_heavy == 4
        return
    with pytest.raises(ValueError, match="Use Ancestral"):  # before anything is drawn or counted
        drawer_of(dual, fewer)


def test_the_command_line_knows_the_names(monkeypatch, capsys):
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_comparison_takes_them_with_a_plan(name, heavy):
    (candidate,) = RunRequest.parse(f"{WEIGHTS / 'fashion-mnist-heavy-annealed'}:8@{name}").candidates(heavy, ())
    step = candidate.drawer(heavy).step
    assert step == step_for(heavy, name) == make_step(name, heavy.process)
    assert candidate.plan.num_steps == 8


def test_the_command_line_takes_eta_and_the_times_of_a_plan(monkeypatch, capsys, tmp_path):
    from dualrate.cli.main import main

    def calls(*options):
        monkeypatch.setattr("sys.argv", ["dualrate", "cost", str(WEIGHTS / "fashion-mnist-light"), "--json", *options])
        main()
        return json.loads(capsys.readouterr().out)["light_calls_per_image"]

    (tmp_path / "plan.json").write_text(StepPlan.at([1, 0.5, 0.2, 0], range(3)).to_json())
    assert calls("--eta", "0.5", "--plan", str(tmp_path / "plan.json")) == 3
    assert calls("--sampler", "addim", "--steps", "2") == 2


def test_their_images_are_no_noise(heavy):
    """The released model, a few steps of each: finite, and mostly within the range of images."""
    for name in SAMPLERS:
        step, plan = sampler_of(heavy, SamplingOptions(steps=6, sampler=name, grid="log-snr"))
        (images,) = sample_batches(heavy.denoiser, step, plan, heavy.shape, [0], [0])
        assert torch.isfinite(images).all()
        assert images.abs().quantile(0.9) < 1.2


MINE = """
from dataclasses import dataclass
import dualrate as dr

@dataclass(frozen=True)
class Mine(dr.Step):
    process: dr.GaussianProcess
    strength: float = 1.0
    draws_noise = False

    def __call__(self, denoise, z, t, s, draw, carry):
        return dr.DDIM(self.process)(denoise, z, t, s, draw, carry)

class Bare(dr.Step): ...

class Pair(Mine):
    def __init__(self, process, other): ...

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> str:
    """The name of a step in another package."""
    (tmp_path / "strange_package").mkdir()
    (tmp_path / "strange_package" / "steps.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return "strange_package.steps:Mine"


def test_a_step_of_another_package_is_a_sampler(mine, heavy):
    step, plan = sampler_of(heavy, SamplingOptions(steps=3, sampler=mine))
    assert (type(step).__name__, step.strength, plan) == ("Mine", 1.0, StepPlan.uniform(3))
    assert not sampler_named(mine).markovian
    own, theirs = (
        next(sample_batches(heavy.denoiser, one, plan, heavy.shape, [0], [0]))
        for one in (make_step("ddim", heavy.process), step)
    )
    assert torch.equal(own, theirs)
    with pytest.raises(ValueError, match=f"gamma .* means nothing to {mine}"):
        make_step(mine, PROCESS, 0.5)


def test_its_images_are_not_taken_for_those_of_a_step_of_the_same_name(mine, heavy, tmp_path):
    (tmp_path / "strange_package" / "other.py").write_text(MINE)
    names = mine, mine.replace("steps", "other")
    steps = [sampler_of(heavy, SamplingOptions(steps=2, sampler=name))[0] for name in names]
    first, second = (Drawer(heavy, step, StepPlan.uniform(2), precision="float32").origin("pixels") for step in steps)
    assert first != second


class Stretched(Step):
    """DDIM, its states multiplied by something. No dataclass."""

    def __init__(self, process, by=1.0):
        self.process, self.by = process, by

    def __call__(self, denoise, z, t, s, draw, carry):
        z_s, carry = DDIM(self.process)(denoise, z, t, s, draw, carry)
        return z_s * torch.as_tensor(self.by, dtype=z.dtype), carry


@pytest.mark.parametrize("number", [float, np.float32, np.array])
def test_settings_of_a_step_that_is_no_dataclass_tell_its_images_apart(number, heavy, tmp_path):
    drawers = [Drawer(heavy, Stretched(PROCESS, number(by)), StepPlan.uniform(2)) for by in (1.0, 0.5)]
    first, second = (drawer.origin("pixels") for drawer in drawers)
    assert first != second
    assert [str(drawer.step) for drawer in drawers] == ["Stretched, by 1.0", "Stretched, by 0.5"]
    for drawn in (2, 0):  # the same call goes on
        assert write_samples(drawers[0], range(2), tmp_path / "out").drawn == drawn
    with pytest.raises(ValueError, match=r"differ in sampler \(Stretched, by 1.0; now Stretched, by 0.5\)"):
        write_samples(drawers[1], range(2), tmp_path / "out")


def test_what_a_step_computes_and_caches_is_no_setting() -> None:
    @dataclass(frozen=True, slots=True)
    class Slotted(Stretched):
        process: GaussianProcess
        by: float

    class Caching(Slotted):
        @cached_property
        def table(self) -> list[int]:
            return [1]

    step = Caching(PROCESS, 0.5)
    assert step.table
    assert str(step) == "Caching, by 0.5"
    assert str(Slotted(PROCESS, 2.0)) == "Slotted, by 2.0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nonsense",
            r"there is no sampler 'nonsense'; there are ancestral, .*; package.module:Class is a step of your own",
        ),
        ("hewn", "there is no sampler 'hewn' [(]did you mean heun[?][)]; there are"),
        (
            "strange_package.gone:Mine",
            "there is no sampler .*: strange_package.gone cannot be imported: No module",
        ),
        ("strange_package.steps:Gone", "strange_package.steps has no 'Gone'"),
        ("strange_package.steps:", "written package.module:name"),
        (":Mine", "written package.module:name"),
        ("..steps:Mine", "written package.module:name"),
        ("strange_package.steps:number", "is no step: expected a class derived from dualrate.Step.*got 3"),
        ("strange_package.steps:Bare", "is no step: expected a class derived from dualrate.Step, with __call__"),
        ("strange_package.steps:Pair", "made of a process alone, which it refuses: missing .*'other'"),
    ],
)
def test_a_name_that_is_no_sampler_is_refused_in_one_line(mine, name, message, monkeypatch, capsys):
    from dualrate.cli.main import main

    with pytest.raises(ValueError, match=message):
        SamplingOptions(sampler=name)
    monkeypatch.setattr("sys.argv", ["dualrate", "cost", "run", "--sampler", name])
    with pytest.raises(SystemExit):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
