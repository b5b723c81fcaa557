"""What every exported Step, Denoiser and Method promises. A new one is tested by being listed."""

import pytest
import torch
from torch import nn

import dualrate as dr
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Cond

PROCESS = dr.GaussianProcess(dr.Cosine())
NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
STEPS = [
    dr.Ancestral(PROCESS),
    dr.Ancestral(PROCESS, gamma=0.3),
    dr.Ancestral(PROCESS, eta=0.5),
    dr.DDIM(PROCESS),
    dr.AdjustedDDIM(PROCESS),
    dr.AdjustedDDIM(PROCESS, dr.TabulatedVariance((-15.0, 0.0, 15.0), (0.5, 0.1, 0.0))),
    dr.Heun(PROCESS),
    dr.DPMSolver2M(PROCESS),
    dr.DPMSolver3M(PROCESS),
    dr.SDEDPMSolver2M(PROCESS),
    dr.NoiseCovariance(PROCESS),
    dr.NoiseCovariance(PROCESS, length=None),
    dr.NoiseCovariance(PROCESS, "ddim"),
]


def randomised(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.double().eval()


def plain() -> dr.Plain:
    return dr.Plain(randomised(dr.UViT(NET)), PROCESS)


def dual() -> dr.DualRate:
    return dr.DualRate(randomised(dr.ContextEncoder(NET, NET)), randomised(dr.LightUViT(NET)), PROCESS)


def guided() -> dr.Guided:
    return dr.Guided(dual(), PROCESS, weight=1.7, null=3, interval=(0.3, 3.0))


def shared() -> dr.SharedEncoder:
    return dr.SharedEncoder(randomised(dr.UViT(NET)), PROCESS, split=1)


DENOISERS = [plain, dual, guided, shared, lambda: dr.Metered(dual())]


def may_reuse(denoiser, step) -> bool:
    """Contexts that need a smooth path go with deterministic steps of one time, all others with Markovian ones."""
    if denoiser.reuse is dr.Reuse.SMOOTH:
        return isinstance(step, (dr.DDIM, dr.AdjustedDDIM, dr.DPMSolver2M, dr.DPMSolver3M))
    return step.markovian


def run(denoiser, step, plan, rows: slice) -> torch.Tensor:
    draws = Draws(0, torch.arange(4)[rows])
    cond = Cond((torch.arange(4) % 3)[rows])
    shape = (1, 8, 8)
    with torch.no_grad():
        return dr.rollout(
            denoiser, step, plan, draws.normal("z", *shape).double(), cond,
            lambda i, j: draws.normal(f"{i} {j}", *shape).double(),
        )  # fmt: skip


@pytest.mark.parametrize("make", DENOISERS)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_batch_is_its_rows(make, step):
    """A batch of four is four batches of one, whatever the plan; and a second call starts clean."""
    denoiser = make()
    plan = dr.StepPlan.uniform(4, 2 if may_reuse(denoiser, step) else None)
    whole = run(denoiser, step, plan, slice(0, 4))
    rows = torch.cat([run(denoiser, step, plan, slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(whole, rows, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(denoiser, step, plan, slice(0, 4)), whole, rtol=0, atol=0)


@pytest.mark.parametrize("make", DENOISERS)
def test_interleaved_samplings_do_not_meet(make):
    denoiser, plan = make(), dr.StepPlan.uniform(4, 2)
    step = next(step for step in STEPS if may_reuse(denoiser, step))
    alone = [run(denoiser, step, plan, slice(i, i + 1)) for i in (0, 1)]
    trajectories, last = [], [None, None]
    for i in (0, 1):
        draws = Draws(0, torch.tensor([i]))
        trajectories.append(
            dr.trajectory(
                denoiser, step, plan, draws.normal("z", 1, 8, 8).double(), Cond(torch.tensor([i % 3])),
                lambda k, j, d=draws: d.normal(f"{k} {j}", 1, 8, 8).double(),
            )
        )  # fmt: skip
    with torch.no_grad():
        for states in zip(*trajectories, strict=True):
            last = [state.z for state in states]
    for got, want in zip(last, alone, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_point_mass_is_reached_in_one_step(step):
    """If all data are one image, x_hat is that image, and any sampler's last step must return it."""
    mixture = dr.GaussianMixture.isotropic(torch.tensor([[0.3, -0.7]], dtype=torch.float64), 1e-12)
    z = torch.randn(5, 2, dtype=torch.float64)
    x = dr.rollout(
        dr.OracleDenoiser(mixture, PROCESS), step, dr.StepPlan.uniform(1), z, Cond(), lambda i, j: torch.zeros_like(z)
    )
    torch.testing.assert_close(x, mixture.means.expand(5, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", DENOISERS)
def test_x_hat_has_the_state_s_shape_and_precision(make):
    z, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.full((2,), 0.4, dtype=torch.float64)
    cond = Cond(torch.tensor([0, 1]))
    denoiser = make()
    x_hat = denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)
    assert x_hat.shape == z.shape
    assert x_hat.dtype == z.dtype


def test_heavy_at_every_step_is_the_encoder_alone():
    """With its own head the encoder answers at its own steps: H = N never calls the light network."""
    model = dual()
    meter = dr.Metered(model)
    single = dr.Plain(model.encoder.net, PROCESS)
    plan = dr.StepPlan.uniform(4)
    torch.testing.assert_close(
        run(meter, dr.Ancestral(PROCESS), plan, slice(0, 4)), run(single, dr.Ancestral(PROCESS), plan, slice(0, 4))
    )
    assert (meter.meter.heavy, meter.meter.light) == (16, 0)


def method(kind: str) -> dr.Denoising:
    model = plain() if kind == "plain" else dual()
    networks = (
        {"model": model.network} if isinstance(model, dr.Plain) else {"encoder": model.encoder, "light": model.light}
    )
    times = dr.SingleTime() if kind == "plain" else dr.TimeSampler((2, 4))
    return dr.Denoising(nn.ModuleDict(networks), model, PROCESS, dr.Sigmoid(), times, null=3)


@pytest.mark.parametrize("kind", ["plain", "dual"])
def test_a_method_lowers_its_loss(kind):
    torch.manual_seed(0)
    learner = method(kind)
    learner.networks.train()
    x = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8).expand(16, -1, -1, -1)
    data = dr.Batch(x, torch.zeros(16, dtype=torch.int64), torch.arange(16))
    optimizer = torch.optim.Adam(learner.networks.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        (phase,) = learner.phases(0)
        loss = phase.loss(data, 0, Draws(0, data.sample)).total
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def states(plan: dr.StepPlan) -> list:
    draws = Draws(0, torch.arange(2))
    z, cond = draws.normal("z", 1, 8, 8).double(), Cond(torch.arange(2))
    with torch.no_grad():
        return list(dr.trajectory(dual(), dr.Ancestral(PROCESS), plan, z, cond, lambda i, j: torch.zeros_like(z)))


def test_a_trajectory_goes_on_only_from_a_state_of_its_plan():
    plan, cond = dr.StepPlan.uniform(4, 2), Cond(torch.arange(2))
    state = states(plan)[3]

    def go_on(plan, state):
        return list(
            dr.trajectory(
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
        next(dr.sample(plain(), dr.DDIM(PROCESS), dr.StepPlan.at([0.5, 0.2], [0]), (1, 8, 8), [0], [0]))
