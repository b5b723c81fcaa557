"""Promises of every Step and Denoiser. Steps and denoisers are tested by being in their catalogues."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from contracts.rooms import in_room
from theory.common import normals, uniform_log_snr
from theory.exact import GaussianMixture, OracleDenoiser
from torch import nn

import dualrate as dr
from dualrate.denoisers.catalogue import DENOISERS, denoiser_named
from dualrate.denoisers.denoiser import (
    BothRates,
    Conditional,
    DualRate,
    DualRateConditional,
    Metered,
    Plain,
    Wrapper,
)
from dualrate.denoisers.duodiff import Switched
from dualrate.denoisers.early_exit import EarlyExit, ExitUViT
from dualrate.denoisers.guidance import Guided, Sharpened
from dualrate.diffusion.categorical import CategoricalProcess, Masked
from dualrate.diffusion.context import Cond
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.conditional import ConditionalBody, ConditionEncoder, ConditionReader
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import UViT
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.bound import FittedVariance
from dualrate.sampling.catalogue import SAMPLERS, Sampler, make_step
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.ddim import AdjustedDDIM
from dualrate.sampling.trajectory import rollout, trajectory

PROCESS = dr.GaussianProcess(Cosine())
NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
LATENT = (3, 2, 2)  # of a decoder
Make = Callable[[dr.StepPlan], dr.Step]
STEPS: dict[str, Make] = {name: lambda plan, name=name: make_step(name, PROCESS) for name in SAMPLERS} | {
    str(step): lambda plan, step=step: step
    for step in (
        Reverse(PROCESS),
        dr.Ancestral(PROCESS, gamma=0.3),
        dr.Ancestral(PROCESS, eta=0.5),
        dr.Ancestral(PROCESS, eta=0),
        dr.SDEDPMSolver2M(PROCESS, gamma=0.3),
        AdjustedDDIM(PROCESS, lambda log_snr: torch.sigmoid(-log_snr) / 2),
        NoiseCovariance(PROCESS, length=None),
    )
}
every_step = pytest.mark.parametrize("step_for", STEPS.values(), ids=STEPS)


def randomised(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.double().eval()


@cache
def plain() -> Plain:
    return Plain(randomised(UViT(NET)), PROCESS)


@cache
def dual() -> DualRate:
    return DualRate(randomised(ContextEncoder(NET, NET)), randomised(LightBody(NET)), PROCESS)


@cache
def early_exit() -> EarlyExit:
    """At a threshold by which some rows leave at each block, and some at none."""
    deeper = replace(NET, levels=(*NET.levels[:-1], replace(NET.levels[-1], blocks=3)))
    return EarlyExit(randomised(ExitUViT(deeper)), PROCESS, threshold=0.5)


def guided() -> Guided:
    return Guided(dual(), PROCESS, weight=1.7, null=3, interval=(0.3, 3.0))


def oracle() -> OracleDenoiser:
    torch.manual_seed(0)
    return OracleDenoiser(GaussianMixture.isotropic(torch.randn(3, 64).double(), 0.3), PROCESS)


@cache
def decoder() -> Conditional:
    return Conditional(randomised(ConditionalBody(NET, LATENT)), PROCESS)


@cache
def dual_decoder() -> DualRateConditional:
    return DualRateConditional(randomised(ConditionEncoder(NET, NET, LATENT)), randomised(UViT(NET)), PROCESS)


@cache
def both_rates() -> BothRates:
    reader, encoder = randomised(ConditionReader(NET, NET, NET, LATENT)), randomised(ContextEncoder(NET, NET))
    return BothRates(encoder, randomised(LightBody(NET)), PROCESS, reader=reader)


MADE: dict[str, Callable[[], dr.Denoiser]] = {
    "plain": plain,
    "dual": dual,
    "guided": guided,
    "metered": lambda: Metered(dual()),
    "oracle": oracle,
    "decoder": decoder,
    "dual decoder": dual_decoder,
    "both rates": both_rates,
    "early exit": early_exit,
    "switched": lambda: Switched(Plain(randomised(UViT(replace(NET, embedding=8))), PROCESS), plain()),
} | {name: lambda name=name: denoiser_named(name)(plain(), PROCESS) for name in DENOISERS}
every_denoiser = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


TRIED_WITH_EVERY_STEP = "plain", "dual"
TRIED_WITH_EVERY_DENOISER = (
    "ancestral",  # draws noise, and may reuse a context
    "heun",  # calls twice
    "dpm++2m",  # has a memory, on a smooth path
    "covariance-dct",  # takes a derivative of the denoiser
)


def pairs() -> list:
    """Every step and every denoiser, and of what steps do with denoisers each kind with each of these."""
    return [
        pytest.param(make, step_for, id=f"{step}-{denoiser}")
        for denoiser, make in MADE.items()
        for step, step_for in STEPS.items()
        if denoiser in TRIED_WITH_EVERY_STEP or step in TRIED_WITH_EVERY_DENOISER
    ]


def may_reuse(denoiser: dr.Denoiser, step: dr.Step) -> bool:
    """Contexts that need a smooth path go with deterministic steps of one time, dual-rate ones with Markovian steps."""
    if denoiser.reuse is dr.Reuse.FREE:
        return True
    if denoiser.reuse is dr.Reuse.SMOOTH:
        return not step.draws_noise and step.calls_per_step == 1
    return step.markovian


def test_every_step_is_in_the_catalogue_and_tested_here():
    plan = dr.StepPlan.uniform(2)
    of_bounds = {FittedVariance}  # it has no name: it is fitted to a plan
    assert in_room("sampling", dr.Step) - of_bounds == {type(make(plan)) for make in STEPS.values()}
    for name, sampler in SAMPLERS.items():
        assert type(STEPS[name](plan)) is sampler.step
        assert STEPS[name](plan).markovian == sampler.markovian


def test_a_step_for_tokens_alone_says_whether_it_may_reuse_a_context():
    """`markovian` is of Gaussian processes, for which there is no such step."""

    class OfTokens(Reverse):
        of = CategoricalProcess

    assert Sampler(OfTokens).build(Masked(), {}).markovian
    with pytest.raises(ValueError, match="OfTokens is for a CategoricalProcess"):
        _ = Sampler(OfTokens).markovian


def test_every_exported_denoiser_and_every_named_one_is_tested_here():
    values = [getattr(dr, name) for name in dr.__all__]
    exported = {value for value in values if isinstance(value, type) and hasattr(value, "encode")} - {dr.Denoiser}
    assert all(hasattr(value, "denoise") and hasattr(value, "reuse") for value in exported)
    assert exported <= {type(make()) for make in MADE.values()}


def test_every_denoiser_and_every_named_one_is_tested_here():
    found = {kind for kind in in_room("denoisers") if hasattr(kind, "encode")} - {dr.Denoiser, Wrapper}
    assert all(hasattr(kind, "denoise") and hasattr(kind, "reuse") for kind in found)
    made = {type(make()) for make in MADE.values()} - {OracleDenoiser}  # of other rooms
    # of tokens, and of one plan: denoisers/test_sharpened.py
    assert found - {Sharpened} == made
    assert MADE.keys() >= DENOISERS.keys()


def conditions(draws: Draws, denoiser: dr.Denoiser) -> Cond:
    """Return the conditions of some rows: a class, and a latent for decoders."""
    of_latents = isinstance(denoiser, (Conditional, DualRateConditional, BothRates))
    return Cond(draws.row % 3, draws.normal("z_0", *LATENT).double() if of_latents else None)


def run(denoiser, step, plan, rows: slice) -> torch.Tensor:
    draws = Draws(0, torch.arange(4)[rows])
    cond, shape = conditions(draws, denoiser), (1, 8, 8)
    with torch.no_grad():
        return rollout(
            denoiser, step, plan, draws.normal("z", *shape).double(), cond,
            lambda i, j: draws.normal(f"{i} {j}", *shape).double(),
        )  # fmt: skip


@pytest.mark.parametrize(("make", "step_for"), pairs())
def test_a_batch_is_its_rows(make, step_for):
    """A batch of two is two batches of one, whatever the plan and what was drawn before."""
    denoiser, plan = make(), dr.StepPlan.uniform(3)
    if may_reuse(denoiser, step_for(plan)):
        plan = dr.StepPlan.uniform(3, 2).renewing(denoiser.between)
    step = step_for(plan)
    first, both, second = (run(denoiser, step, plan, slice(*rows)) for rows in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-9, atol=1e-9)


@every_denoiser
def test_interleaved_samplings_do_not_meet(make):
    denoiser = make()
    plan = dr.StepPlan.uniform(4, 2).renewing(denoiser.between)
    step = next(step for make in STEPS.values() if may_reuse(denoiser, step := make(plan)))
    alone = [run(denoiser, step, plan, slice(i, i + 1)) for i in (0, 1)]
    trajectories, last = [], [None, None]
    for i in (0, 1):
        draws = Draws(0, torch.tensor([i]))
        trajectories.append(
            trajectory(
                denoiser, step, plan, draws.normal("z", 1, 8, 8).double(), conditions(draws, denoiser),
                lambda k, j, d=draws: d.normal(f"{k} {j}", 1, 8, 8).double(),
            )
        )  # fmt: skip
    with torch.no_grad():
        for states in zip(*trajectories, strict=True):
            last = [state.z for state in states]
    for got, want in zip(last, alone, strict=True):
        torch.testing.assert_close(got, want)


@dataclass(frozen=True)
class Linear:
    """Knows x_hat = gain(t) z + image."""

    gain: Callable[[torch.Tensor], torch.Tensor]
    image: torch.Tensor = field(default_factory=lambda: torch.zeros(1, 8, 8, dtype=torch.float64))
    reuse: dr.Reuse = dr.Reuse.FREE

    def encode(self, z, t, cond):
        return dr.Context()

    def denoise(self, z, t, context, cond):
        return self.gain(t).view(-1, 1, 1, 1) * z + self.image


@every_step
def test_a_point_mass_is_reached_in_one_step(step_for):
    """If all data are one image, x_hat is that image, and any sampler's last step must return it."""
    plan = dr.StepPlan.uniform(1)
    z, image = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 1, 8, 8), (1, 8, 8)))
    step = step_for(plan)
    x = rollout(Linear(torch.zeros_like, image), step, plan, z, Cond(), lambda i, j: torch.zeros_like(z))
    torch.testing.assert_close(x, image.expand_as(z), atol=1e-6, rtol=0)


@every_step
@pytest.mark.parametrize("steps", [2, 5])
def test_steps_make_the_calls_that_they_say(step_for, steps):
    plan = dr.StepPlan.uniform(steps)
    step, meter = step_for(plan), Metered(plain())
    run(meter, step, plan, slice(0, 1))
    calls = step.calls_per_step * steps - step.single_call_steps * (step.calls_per_step - 1)
    assert (meter.meter.heavy, meter.meter.light) == (0, calls)
    assert [step.most_steps(calls + more) for more in (-1, 0, step.calls_per_step)] == [steps - 1, steps, steps + 1]


@every_step
def test_steps_draw_noise_if_they_say_so(step_for):
    plan, drawn = dr.StepPlan.uniform(4), []
    z = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def draw(i, j):
        drawn.append((i, j))
        return torch.ones_like(z)

    rollout(Linear(PROCESS.alpha), step_for(plan), plan, z, Cond(), draw)
    assert bool(drawn) == step_for(plan).draws_noise


@every_step
def test_steps_that_say_so_keep_the_law_of_pairs(step_for):
    """On white noise of variance 1, whose states all have it too: Cov(z_s, z_t) = alpha_t / alpha_s for s < t."""
    plan = uniform_log_snr(96, -15, 6)
    step = step_for(plan)
    z, denoiser = normals(0, 200, 1, 8, 8), Linear(PROCESS.alpha)
    states = list(trajectory(denoiser, step, plan, z, Cond(), lambda i, j: normals(100 * i + j + 1, 200, 1, 8, 8)))
    made = torch.stack([state.z.flatten() for state in states[::8]])
    alpha = PROCESS.alpha(torch.tensor(plan.t[::8], dtype=torch.float64))
    error = (made @ made.T / z.numel() - alpha / alpha[:, None]).tril().abs().max().item()
    assert error < 0.2 if step.markovian else error > 0.4


@every_denoiser
def test_x_hat_has_the_state_s_shape_and_precision(make):
    z, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.full((2,), 0.4, dtype=torch.float64)
    denoiser = make()
    cond = conditions(Draws(0, torch.arange(2)), denoiser)
    x_hat = denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)
    assert x_hat.shape == z.shape
    assert x_hat.dtype == z.dtype


@every_denoiser
def test_a_context_is_used_at_later_times_by_the_same_rows(make):
    """Row by row as all at once; and what `encode` said of its own state is not said again of another one."""
    generator, t = torch.Generator().manual_seed(0), torch.full((3,), 0.4, dtype=torch.float64)
    first, later = (torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    denoiser = make()
    cond = conditions(Draws(0, torch.arange(3)), denoiser)
    with torch.no_grad():
        context = denoiser.encode(first, t, cond)
        x_hat = denoiser.denoise(later, t / 2, context.aged(), cond)
        for i in range(3):
            row = slice(i, i + 1)
            alone = denoiser.encode(first[row], t[row], cond[row]).aged()
            torch.testing.assert_close(denoiser.denoise(later[row], t[row] / 2, alone, cond[row]), x_hat[row])
        own = denoiser.denoise(first, t, context, cond)
        if denoiser.reuse is dr.Reuse.FREE:  # it is of nothing noisy
            assert context.x_hat is None
            again = denoiser.encode(later, t / 2, cond)
            torch.testing.assert_close(again.features, context.features, rtol=0, atol=0)
    assert not torch.equal(own, x_hat)
    assert isinstance(denoiser.reuse, dr.Reuse)


def test_heavy_at_every_step_is_the_encoder_alone():
    """With its own head the encoder answers at its own steps: H = N never calls the light network."""
    model = dual()
    meter = Metered(model)
    single = Plain(model.encoder.net, PROCESS)
    plan = dr.StepPlan.uniform(4)
    torch.testing.assert_close(
        run(meter, dr.Ancestral(PROCESS), plan, slice(0, 4)), run(single, dr.Ancestral(PROCESS), plan, slice(0, 4))
    )
    assert (meter.meter.heavy, meter.meter.light) == (16, 0)


def states(plan: dr.StepPlan) -> list:
    draws = Draws(0, torch.arange(2))
    z, cond = draws.normal("z", 1, 8, 8).double(), Cond(torch.arange(2))
    with torch.no_grad():
        return list(trajectory(dual(), dr.Ancestral(PROCESS), plan, z, cond, lambda i, j: torch.zeros_like(z)))


def test_a_trajectory_goes_on_only_from_a_state_of_its_plan():
    plan, cond = dr.StepPlan.uniform(4, 2), Cond(torch.arange(2))
    state = states(plan)[3]

    def go_on(plan, state):
        return list(
            trajectory(
                dual(), dr.Ancestral(PROCESS), plan, state.z, cond, lambda i, j: torch.zeros_like(state.z), state=state
            )
        )

    with torch.no_grad():
        torch.testing.assert_close(go_on(plan, state)[-1].z, states(plan)[-1].z)
        with pytest.raises(ValueError, match="another plan"):
            go_on(dr.StepPlan.uniform(8, 2), state)
        with pytest.raises(ValueError, match="reuses a context"):
            go_on(plan, states(dr.StepPlan.uniform(4, 0))[3])


def test_a_step_says_whether_it_is_markovian_and_cannot_be_told_otherwise():
    with pytest.raises(TypeError):
        dr.DDIM(PROCESS, markovian=True)


def test_images_are_sampled_from_noise_to_data():
    with pytest.raises(ValueError, match="from t = 1 to 0"):
        next(dr.sample_batches(plain(), dr.DDIM(PROCESS), dr.StepPlan.at([0.5, 0.2], [0]), (1, 8, 8), [0], [0]))
