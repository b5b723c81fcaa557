"""The one loop: which calls it makes, when, and with what."""

import warnings
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualrate.denoisers.denoiser import Denoiser, Metered
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse, shared_time
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.solvers import DPMSolver2M, Heun, SDEDPMSolver2M
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import rollout, trajectory
from theory.common import PROCESS, line_mixture, normals
from theory.exact import OracleDenoiser
from theory.held_context import Echo

MIXTURE = line_mixture()
ECHO, ORACLE, STEP = Echo(MIXTURE, PROCESS), OracleDenoiser(MIXTURE, PROCESS), Ancestral(PROCESS)
START, COND = normals(0, 4, 1), Cond(torch.arange(4))


def noise(step: int, draw: int) -> torch.Tensor:
    return normals(100 * step + draw + 1, 4, 1)


@dataclass
class Recorded:
    """Writes down every call as (name, t, tau), of times that all rows share."""

    inner: object
    calls: list = field(default_factory=list)

    @property
    def reuse(self):
        return self.inner.reuse

    def encode(self, z, t, cond):
        assert torch.equal(cond.label, COND.label)
        self.calls.append(("encode", float(t), None))
        return self.inner.encode(z, t, cond)

    def denoise(self, z, t, context, cond):
        tau = None if context.tau is None else float(context.tau)
        assert torch.equal(cond.label, COND.label)
        self.calls.append(("denoise", float(t), tau))
        return self.inner.denoise(z, t, context, cond)


@dataclass(frozen=True)
class OwnOutput(Echo):
    """An encoder that hands out its x_hat, and a light network that fails at the encoder's time."""

    def encode(self, z, t, cond):
        context = super().encode(z, t, cond)
        return replace(context, x_hat=context.features[0])

    def denoise(self, z, t, context, cond):
        assert (context.x_hat is None) is bool((context.tau != t).all())
        return super().denoise(z, t, context, cond)


@dataclass(frozen=True)
class TwoEvaluations(Step):
    """A step that looks twice, like Heun's."""

    markovian: bool = True

    def start(self):
        return 0

    def __call__(self, denoise, z, t, s, draw, carry):
        denoise(z, t)
        return denoise(z, s) + 0.1 * draw() - 0.1 * draw(), carry + 1


@dataclass(frozen=True)
class Handed(Echo):
    """An encoder that hands out its x_hat, and a light network that knows another."""

    def encode(self, z, t, cond):
        context = super().encode(z, t, cond)
        return replace(context, x_hat=context.features[0] + 1)

    def denoise(self, z, t, context, cond):
        return super().denoise(z, t, context, cond) if context.x_hat is None else context.x_hat


@dataclass(frozen=True)
class WithoutContext(Echo):
    """Knows nothing but zero where nothing was encoded."""

    def denoise(self, z, t, context, cond):
        return super().denoise(z, t, context, cond) if context.features else torch.zeros_like(z)


def calls(plan, denoiser=ECHO, step=STEP):
    recorded = Recorded(denoiser)
    rollout(recorded, step, plan, START, COND, noise)
    return recorded.calls


@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_calls_follow_the_plan(case):
    n, heavy = case
    plan = StepPlan.at(n, {0, *heavy})
    expected, tau = [], None
    for i, t in enumerate(plan.t[:-1]):
        if i in {0, *heavy}:
            expected.append(("encode", t, None))
            tau = t
        expected.append(("denoise", t, tau))
    assert calls(plan) == expected


def test_a_dropped_context_is_gone():
    plan = StepPlan((1.0, 0.8, 0.6, 0.0), (Refresh.FULL, Refresh.NONE, Refresh.FULL))
    assert [tau for name, _, tau in calls(plan, OwnTau()) if name == "denoise"] == [1.0, None, 0.6]


@dataclass(frozen=True)
class OwnTau:
    """A denoiser that works without context as well."""

    reuse: Reuse = Reuse.MARKOV

    def encode(self, z, t, cond):
        return Context(features=(z,), tau=t)

    def denoise(self, z, t, context, cond):
        return 0.5 * z


@pytest.mark.parametrize(("n", "h"), [(8, 8), (8, 3), (32, 4), (5, 1)])
def test_heavy_and_light_rows_are_metered(n, h):
    metered = Metered(ECHO)
    rollout(metered, STEP, StepPlan.uniform(n, h), START, COND, noise)
    assert (metered.meter.heavy, metered.meter.light) == (4 * h, 4 * n)
    rollout(metered, STEP, StepPlan.uniform(n, h), START, COND, noise)
    assert (metered.meter.heavy, metered.meter.light) == (8 * h, 8 * n)


def test_a_plain_network_makes_no_heavy_calls():
    metered = Metered(ORACLE)
    rollout(metered, DDIM(PROCESS), StepPlan.uniform(8, 2), START, COND, noise)
    assert (metered.meter.heavy, metered.meter.light) == (0, 32)


def test_the_output_of_the_encoder_serves_its_own_step_only():
    metered = Metered(OwnOutput(MIXTURE, PROCESS))
    z = rollout(metered, STEP, StepPlan.uniform(8, 3), START, COND, noise)
    assert (metered.meter.heavy, metered.meter.light) == (12, 20)
    assert torch.equal(z, rollout(ECHO, STEP, StepPlan.uniform(8, 3), START, COND, noise))


def test_a_step_of_two_times_encodes_at_each_when_told_to_refresh():
    plan = StepPlan((1.0, 0.6, 0.2), (Refresh.FULL, Refresh.NONE))
    expected = [
        ("encode", 1.0),
        ("denoise", 1.0),
        ("encode", 0.6),
        ("denoise", 0.6),
        ("denoise", 0.6),
        ("denoise", 0.2),
    ]
    made = calls(plan, step=TwoEvaluations(), denoiser=WithoutContext(MIXTURE, PROCESS))
    assert [call[:2] for call in made] == expected
    assert [tau for name, _, tau in made if name == "denoise"] == [1.0, 0.6, None, None]


@pytest.mark.parametrize("step", [Heun(PROCESS), TwoEvaluations()])
def test_a_step_of_two_times_is_refused_where_a_context_is_reused(step):
    smooth, plan = Echo(MIXTURE, PROCESS, reuse=Reuse.SMOOTH), StepPlan.uniform(4, 2)
    with pytest.raises(ValueError, match=r"calls the network at a second time in a step.*use DPMSolver2M"):
        calls(plan, smooth, step)
    calls(plan, smooth, DPMSolver2M(PROCESS))  # as the message says
    calls(StepPlan.uniform(4), smooth, step)


def test_asked_again_at_the_same_place_the_network_does_not_run_twice():
    """After what `encode` computed itself comes the network at the same context, once."""

    @dataclass(frozen=True)
    class Again(TwoEvaluations):
        def __call__(self, denoise, z, t, s, draw, carry):
            first, second, third = denoise(z, t), denoise(z, t), denoise(z, t)
            assert torch.equal(second, third)
            denoise(z + 1, t)
            return first, carry

    plan = StepPlan((1.0, 0.6, 0.2), (Refresh.FULL, Refresh.KEEP))
    assert calls(plan, step=Again()) == [
        ("encode", 1.0, None),
        *[("denoise", 1.0, 1.0)] * 2,
        *[("denoise", 0.6, 1.0)] * 2,
    ]
    own = Handed(MIXTURE, PROCESS)
    assert len(calls(plan, own, Again())) == 1 + 3 + 2


@dataclass(frozen=True)
class Moved(Step):
    """Moves z before it calls the network, at the step's time."""

    process: GaussianProcess
    by: float = 1.0

    def __call__(self, denoise, z, t, s, draw, carry):
        return denoise(z + self.by, t), carry


@pytest.mark.parametrize("denoiser", [ECHO, Handed(MIXTURE, PROCESS)])
def test_a_heavy_step_that_moves_its_state_first_has_a_context_of_where_it_calls(denoiser):
    plan, t = StepPlan((1.0, 0.6), (Refresh.FULL,)), shared_time(1.0)
    expected = denoiser.denoise(START + 1, t, denoiser.encode(START + 1, t, COND), COND)
    assert torch.equal(rollout(denoiser, Moved(PROCESS), plan, START, COND, noise), expected)
    assert [name for name, *_ in calls(plan, denoiser, Moved(PROCESS))] == ["encode", "encode", "denoise"]
    assert [name for name, *_ in calls(plan, denoiser, Moved(PROCESS, by=0.0))] == ["encode", "denoise"]


def test_a_step_that_moves_its_state_first_is_not_answered_by_a_renewal_of_another():
    @dataclass(frozen=True)
    class Renewing(Handed, Denoiser):
        reuse: Reuse = Reuse.FREE

        def renew(self, z, t, context, cond):
            return replace(context, x_hat=torch.full_like(z, 7.0))

    denoiser, plan = Renewing(MIXTURE, PROCESS, Reuse.SMOOTH), StepPlan((1, 0.6, 0.2), (Refresh.FULL, Refresh.PARTIAL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        z = {by: rollout(denoiser, Moved(PROCESS, by), plan, START, COND, noise) for by in (0.0, 1.0)}
    assert bool((z[0.0] == 7).all())
    assert not (z[1.0] == 7).any()


def test_reuse_under_a_deterministic_sampler_is_refused():
    plan = StepPlan.uniform(8, 4)
    for step in (DDIM(PROCESS), Ancestral(PROCESS, eta=0.5), NoiseCovariance(PROCESS, "ddim")):
        for denoiser in (ECHO, Metered(ECHO)):
            with pytest.raises(ValueError, match=r"Use Ancestral \(with eta 1\), SDEDPMSolver2M or a covariance step"):
                rollout(denoiser, step, plan, START, COND, noise)
    for step in (Ancestral(PROCESS), SDEDPMSolver2M(PROCESS), NoiseCovariance(PROCESS)):  # as the message says
        rollout(ECHO, step, plan, START, COND, noise)
    rollout(ECHO, DDIM(PROCESS), StepPlan.uniform(8), START, COND, noise)
    rollout(ORACLE, DDIM(PROCESS), plan, START, COND, noise)


def test_reuse_that_needs_a_smooth_path_warns_of_noise():
    smooth, plan = Echo(MIXTURE, PROCESS, reuse=Reuse.SMOOTH), StepPlan.uniform(4, 2)
    for step in (STEP, Ancestral(PROCESS, eta=0.5), NoiseCovariance(PROCESS, "ddim")):
        with pytest.warns(UserWarning, match=rf"{type(step).__name__} draws noise.*use DDIM or DPMSolver2M"):
            rollout(smooth, step, plan, START, COND, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (DDIM(PROCESS), DPMSolver2M(PROCESS), Ancestral(PROCESS, eta=0)):
            rollout(smooth, step, plan, START, COND, noise)


def test_a_trajectory_goes_on_from_any_of_its_states():
    plan, step, echo = StepPlan.uniform(9, 4), TwoEvaluations(), Echo(MIXTURE, PROCESS, reuse=Reuse.FREE)
    states = list(trajectory(echo, step, plan, START, COND, noise))
    assert [state.i for state in states] == list(range(10))
    assert [float(state.t) for state in states] == list(plan.t)
    for begin in states:
        *_, last = trajectory(echo, step, plan, START, COND, noise, state=begin)
        assert torch.equal(last.z, states[-1].z)
        assert last.carry == states[-1].carry == 9
    heavy = [i for i, refresh in enumerate(plan.refresh) if refresh is Refresh.FULL]
    for i in heavy:
        *_, last = trajectory(ECHO, STEP, plan, states[i].z, COND, noise, start=i)
        assert torch.equal(last.z, _resumed(plan, states[i]))
    with pytest.raises(ValueError, match="heavy step"):
        list(trajectory(ECHO, STEP, plan, START, COND, noise, start=heavy[0] + 1))


def _resumed(plan, state):
    *_, last = trajectory(ECHO, STEP, plan, START, COND, noise, state=replace(state, carry=()))
    return last.z


def test_states_know_where_their_context_comes_from():
    plan = StepPlan.uniform(9, 4)
    states = list(trajectory(ECHO, STEP, plan, START, COND, noise))
    for state, refresh, after in zip(states, plan.refresh, states[1:], strict=False):
        if refresh is Refresh.FULL:
            latest = state
        assert torch.equal(after.z_tau, latest.z)
        assert torch.equal(after.context.tau, latest.t)


def test_two_trajectories_can_interleave():
    plan = StepPlan.uniform(6, 2)
    first, second = (trajectory(ECHO, STEP, plan, z, COND, noise) for z in (START, -START))
    for _ in range(7):
        one, other = next(first), next(second)
    assert torch.equal(one.z, rollout(ECHO, STEP, plan, START, COND, noise))
    assert torch.equal(other.z, rollout(ECHO, STEP, plan, -START, COND, noise))


def test_a_trajectory_carries_gradient():
    z = START.clone().requires_grad_()
    assert rollout(ECHO, STEP, StepPlan.uniform(4, 2), z, COND, noise).requires_grad
