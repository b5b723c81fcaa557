"""The methods in a file each of plain torch, held against the package: the same loss, or step, of the same numbers."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from theory.common import PROCESS, f64, normals
from theory.tokens import MASKED, one_hot, tokens_of
from torch import Tensor, nn

from dualrate.diffusion.context import Batch, Cond, Context, Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.rolling import WHOLE, RollingDenoising, roll
from dualrate.forecasts.rolling_process import Rolling
from dualrate.methods.consistency import Consistency, TeacherSteps
from dualrate.methods.em_distillation import TIMES, EMDistillation, Langevin
from dualrate.methods.moment_matching import MomentMatching
from dualrate.methods.student_states import FromData
from dualrate.methods.times import SILVER, SingleTime, stratified_uniform
from dualrate.methods.unified_latents import UnifiedLatents
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.trajectory import rollout
from dualrate.texts.noise_planes import NoisePlanes

ROOT = Path(__file__).resolve().parents[2]
FAMILY = (
    *("moment_matching", "multistep_consistency", "em_distillation", "discrete_moment_matching", "unified_latents"),
    *("rolling_diffusion", "covariance_aware_step"),
)
ROWS = 64
DRAWS = Draws(3, torch.arange(40, 40 + ROWS))
POINTS = normals(5, ROWS, 2)


@cache
def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shaken(network: nn.Module, seed: int) -> nn.Module:
    """The network in float64, with no weight at zero, so that every path counts."""
    network = network.double()
    with torch.no_grad():
        for i, weight in enumerate(network.parameters()):
            weight.copy_(normals(100 * seed + i, *weight.shape) / max(1, weight.shape[-1]) ** 0.5)
    return network


class Known(nn.Module):
    """A function of an example, (z, t, condition) with times (n, 1), as a denoiser of the package."""

    reuse = Reuse.FREE

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        given = () if cond.given is None else (cond.given,)
        return self.function(z, t.expand(len(z))[:, None], *given)


def roles(of: Callable[[Callable], Known], student: Any, auxiliary: Any, teacher: Any) -> dict[str, Any]:
    """The networks of a method that trains an auxiliary beside a student."""
    return {
        "networks": nn.ModuleDict({"model": student}),
        "auxiliaries": nn.ModuleDict({"auxiliary": auxiliary}),
        "student": of(student),
        "auxiliary": of(auxiliary),
        "teacher": of(teacher),
        "weighting": Sigmoid(),
    }


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def same_slopes(ours: Tensor, theirs: Tensor, *networks: nn.Module) -> None:
    """The gradients of two losses in the weights of these networks."""
    weights = [weight for network in networks for weight in network.parameters()]
    for one, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        assert other.abs().max() > 1e-9
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def drawn(stream: str, *shape: int) -> Tensor:
    """Normal numbers, as a method of the package draws them."""
    return DRAWS.normal(stream, *shape).double()


def test_moment_matching_has_the_package_s_losses_and_samples() -> None:
    file = example("moment_matching")
    student, auxiliary = shaken(file.FromTeacher(8), 1), shaken(file.FromTeacher(8), 2)
    states = FromData(2, PROCESS)
    method = MomentMatching(**roles(Known, student, auxiliary, file.teacher), process=PROCESS, states=states)
    batch = Batch(POINTS, None, DRAWS.row)
    at = states(method.student, batch, Cond(), DRAWS)
    t, s = at.t[:, None], at.s[:, None]
    x_student, z_s = file.student_states(student, POINTS, t, s, (drawn("z_t", 2), drawn("z_s", 2)))
    estimates = auxiliary(z_s, s), file.teacher(z_s, s)
    ours, theirs = file.auxiliary_loss(x_student, *estimates, s), method.auxiliary_loss(batch, 0, DRAWS).total
    same(ours, theirs)
    same_slopes(ours, theirs, auxiliary)
    same_slopes(file.student_loss(x_student, *estimates, s), method.student_loss(batch, 1, DRAWS).total, student)
    noise = normals(7, 3, ROWS, 2)
    plan, step = StepPlan.uniform(3), Ancestral(PROCESS)
    same(file.sample(student, noise), rollout(method.student, step, plan, noise[0], Cond(), lambda i, j: noise[i + 1]))


@pytest.mark.parametrize("eta", [0.0, 0.75])
@pytest.mark.parametrize("huber", [None, 0.3])
@pytest.mark.parametrize("taught", [True, False], ids=["teacher", "data"])
def test_multistep_consistency_has_the_package_s_loss_and_samples(
    taught: bool, huber: float | None, eta: float
) -> None:
    """The file inverts a step of DDIM, where the package has the inverse solved."""
    file = example("multistep_consistency")
    student = shaken(file.FromTeacher(2, 8), 1)
    teach = file.teacher if taught else None
    parts = {"teacher": None if teach is None else Known(teach), "teacher_steps": TeacherSteps(64, 64)}
    networks = nn.ModuleDict({"model": student})
    method = Consistency(networks, Known(student), PROCESS, 2, **parts, eta=eta, huber=huber)
    t, s, border = (time[:, None] for time in method.times(0, DRAWS))
    ours = file.consistency_loss(student, teach, POINTS, t, s, border, drawn("z_t", 2), eta, huber or 0.0)
    theirs = method.loss(Batch(POINTS, None, DRAWS.row), 0, DRAWS).total
    same(ours, theirs)
    same_slopes(ours, theirs, student)
    noise = normals(7, ROWS, 2)
    theirs = rollout(method.student, DDIM(PROCESS), StepPlan.uniform(2), noise, Cond(), lambda i, j: noise)
    same(file.sample(student, noise, 2), theirs)


def test_multistep_consistency_has_the_package_s_steps_of_a_teacher() -> None:
    file, steps = example("multistep_consistency"), TeacherSteps(64, 1280, 100)
    for segments in (1, 3, 8):
        for iteration in (0, 10, 50, 99, 100):
            total = segments * steps.of_segment(iteration, segments)
            assert file.teacher_steps(iteration / 100, segments) == total
            t, s, border = file.draw_times(2000, segments, total)
            torch.testing.assert_close(t - s, torch.full_like(t, 1 / total))
            same(border, torch.floor(s * segments + 1e-9) / segments)


def test_em_distillation_has_the_package_s_losses() -> None:
    file = example("em_distillation")
    assert (file.LEAST, file.LARGEST) == TIMES
    generator, auxiliary = shaken(file.Generator(), 1), shaken(file.Auxiliary(), 2)
    parts = roles(Known, generator, auxiliary, file.teacher) | {"student": Known(lambda z, t: generator(z))}
    method = EMDistillation(**parts, process=PROCESS, langevin=Langevin(steps=3))
    batch, state = Batch(POINTS, None, DRAWS.row), (drawn("z", 2), drawn("eps", 2))
    t = method.drawn_times(batch, DRAWS)[:, None]
    ours, theirs = file.auxiliary_loss(generator, auxiliary, t, *state), method.auxiliary_loss(batch, 0, DRAWS).total
    same(ours, theirs)
    same_slopes(ours, theirs, auxiliary)
    normal = [(drawn(f"langevin {i} eps", 2), drawn(f"langevin {i} z", 2)) for i in range(3)]
    ours = file.generator_loss(generator, auxiliary, file.teacher, t, *state, normal)
    theirs = method.student_loss(batch, 1, DRAWS).total
    same(ours, theirs)
    same_slopes(ours, theirs, generator)


def test_discrete_moment_matching_has_the_package_s_losses() -> None:
    """Losses, of which the auxiliary's is twice the paper's: deviances in place of cross-entropies."""
    file = example("discrete_moment_matching")
    student, auxiliary = shaken(file.FromTeacher(file.PLANES, 8), 1), shaken(file.FromTeacher(0, 8), 2)
    size = file.V + 1

    def of(network: Any) -> Known:
        def probabilities(z: Tensor, t: Tensor) -> Tensor:
            tokens, noise = tokens_of(z[:, :size]), z[:, size:, 0].mT
            if network is file.teacher:
                x_hat = network(tokens)
            else:
                x_hat = network(tokens, t, noise) if network is student else network(tokens, t)
            return nn.functional.pad(x_hat.double(), (0, 1)).permute(0, 2, 1)[:, :, None]

        return Known(probabilities)

    process = NoisePlanes(MASKED, file.PLANES)
    states = FromData(1, process)
    method = MomentMatching(**roles(of, student, auxiliary, file.teacher), process=process, states=states)
    torch.manual_seed(0)
    tokens = file.draw_data(ROWS)
    batch = Batch(one_hot(tokens, size), None, DRAWS.row)
    at = states(method.student, batch, Cond(), DRAWS)
    t, s, shape = at.t[:, None], at.s[:, None], batch.x.shape[1:]
    at_t, at_s = (noise[:, :, 0] for noise in process.noise(DRAWS, ["z_t", "z_s"], *shape))
    uniforms = at_t[:, 0], DRAWS.uniform("x", file.LENGTH), at_s[:, 0]
    x_hat, z_s = file.student_states(student, tokens, t, s, at_t[:, 1:].mT, uniforms)
    estimates = auxiliary(z_s, s), file.teacher(z_s).double()
    assert 0.2 < (z_s == file.MASK).double().mean() < 0.8
    ours, theirs = file.auxiliary_loss(x_hat, *estimates, z_s, s), method.auxiliary_loss(batch, 0, DRAWS).total
    same(2 * ours, theirs)
    same_slopes(2 * ours, theirs, auxiliary)
    same_slopes(file.student_loss(x_hat, *estimates, z_s, s), method.student_loss(batch, 1, DRAWS).total, student)


@pytest.mark.parametrize("priced", [True, False])
def test_unified_latents_have_the_package_s_loss(priced: bool) -> None:
    file = example("unified_latents")
    encoder = shaken(nn.Linear(2, 1), 1)
    prior = shaken(file.Denoiser(file.LATENTS, 1, width=8), 2)
    decoder = shaken(file.Denoiser(file.IMAGES, 2, given=1, width=8), 3)
    networks = nn.ModuleDict({"encoder": encoder, "prior": prior, "decoder": decoder})
    processes = NoisyEnd(Cosine(-15.0, 5.0)), PROCESS
    settings = Sigmoid(file.BIAS), file.FACTOR, 0 if priced else 1
    method = UnifiedLatents(networks, encoder, Known(prior), Known(decoder), *processes, *settings)
    theirs = method.loss(Batch(POINTS, None, DRAWS.row), 0, DRAWS).total
    times = stratified_uniform(DRAWS)[:, None], stratified_uniform(DRAWS, "t of x", SILVER)[:, None]
    eps = drawn("z_t", 1), drawn("z_0", 1), drawn("x_t", 2)
    ours = file.unified_loss(encoder, prior, decoder, POINTS, times, eps, priced=priced)
    same(ours, theirs)
    same_slopes(ours, theirs, encoder, prior, decoder)


class Silent(Rolling):
    """A process that draws zeros."""

    def noise(self, draws: Draws, streams, *shape: int) -> Tensor:
        return 0 * super().noise(draws, streams, *shape).double()


def window_of(file: ModuleType, network: Any, process: Rolling) -> Known:
    """A denoiser of windows (n, F, 1, 1) by a network of windows (n, F)."""

    def x_hat(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        y = y.flatten(1).expand(len(z), 1)
        return network(z.flatten(1), process.clock(t), y)[..., None, None]

    return Known(x_hat)


def test_rolling_diffusion_has_the_package_s_loss() -> None:
    file, process = example("rolling_diffusion"), Rolling(frames=4)
    network = shaken(file.Denoiser(8), 1)
    model = window_of(file, network, process)
    method = RollingDenoising(nn.ModuleDict({"model": network}), model, process, Sigmoid(), SingleTime(), whole=WHOLE)
    x, y = normals(8, ROWS, 4, 1, 1), normals(9, ROWS, 1, 1, 1)
    theirs = method.loss(Batch(x, None, DRAWS.row, given=y), 0, DRAWS).total
    t, tau = method.rolled(DRAWS)
    z, _ = process.pair(x, t, tau, *process.noise(DRAWS, ["z_tau", "z_t"], 4, 1, 1).double())
    c, x, y, z = process.clock(t)[:, None], x.flatten(1), y.flatten(1), z.flatten(1)
    alpha, sigma = file.scales(file.frame_times(c))
    eps = torch.where(sigma > 0, (z - alpha * x) / sigma.clamp(min=1e-9), 0)  # of one path with z_tau
    ours = file.rolling_loss(network, x, y, c, eps)
    same(ours, theirs)
    same_slopes(ours, theirs, network)


def test_rolling_diffusion_has_the_package_s_step() -> None:
    file, process = example("rolling_diffusion"), Rolling(frames=4)
    t = torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s = t, t * torch.linspace(0, 1, ROWS, dtype=torch.float64)
    z, x, eps = normals(8, 3, ROWS, 4)
    wide = (part[..., None, None] for part in (z, x))
    theirs = process.posterior(*wide, t, s).sample(eps[..., None, None])
    times = (file.frame_times(process.clock(time)[:, None]) for time in (t, s))
    same(file.less_noise(z, x, *times, eps), theirs.flatten(1))


def test_rolling_diffusion_rolls_as_the_package_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, which both draw in an order of their own: three frames after the first."""
    file, process = example("rolling_diffusion"), Silent(frames=4)
    network, y = shaken(file.Denoiser(8), 1), normals(9, 5, 1)
    windows = roll(window_of(file, network, process), process, Forecast(1, 4), y[..., None, None], torch.arange(5), 3)
    theirs = torch.cat([next(windows).frame.flatten(1) for _ in range(4)], 1)
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.zeros(*shape, dtype=torch.float64))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    same(file.roll(network, y, 4, 3), theirs)
    assert theirs.std(0).min() > 0.01


def coupled(z: Tensor, t: Tensor) -> Tensor:
    """A denoiser of no particular meaning, in which pixels and channels depend on one another."""
    return 0.3 * torch.tanh(z + 0.5 * z.roll(1, 3) - 0.4 * z.roll(1, 1)) + 0.1 * z * t.view(-1, 1, 1, 1)


@pytest.mark.parametrize("most", [1e9, 1e-3])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.6, 0.4), (0.3, 0.0)])
def test_the_covariance_aware_step_is_the_package_s(t: float, s: float, most: float) -> None:
    file = example("covariance_aware_step")
    z, probe, noise = normals(3, 3, 4, 3, 8, 6)
    times, draws = (f64(t)[0], f64(s)[0]), iter((probe, noise))
    theirs, _ = FourierCovariance(PROCESS, most=most)(coupled, z, *times, lambda: next(draws), ())
    same(file.covariance_step(coupled, z, *times, torch.where(probe < 0, -1.0, 1.0).to(z), noise, most), theirs)
    ddim, _ = DDIM(PROCESS)(coupled, z, *times, lambda: z, ())
    same(file.ddim_step(coupled, z, *times), ddim)


SMALL = {  # of `main`, for half a second
    "covariance_aware_step": {"n": 2},
    "rolling_diffusion": {"iterations": 8, "rows": 8, "steps": 1},
}


@pytest.mark.parametrize("name", FAMILY)
def test_each_is_one_short_file_that_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    imported = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else str(node.module).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert len(source.splitlines()) <= 200
    assert imported <= {"torch", "math", "itertools"}
    figures = example(name).main(**SMALL.get(name, {"iterations": 8}))
    assert len(capsys.readouterr().out.splitlines()) >= len(figures) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "least", "most"),
    [
        ("moment_matching", "student in 2 steps", -0.01, 0.08),
        ("multistep_consistency", "student in 2 steps", 0.0, 0.2),
        ("em_distillation", "generator", -0.01, 0.05),
        ("discrete_moment_matching", "student in 1 step", 0.0, 0.2),
        ("unified_latents", "cosine of the latent's axis and the long one", 0.99, 1.0),
        ("rolling_diffusion", "Rolling Diffusion, correlation", 0.7, 0.85),
        ("covariance_aware_step", "aware, steps 1", 0.0, 0.1),
    ],
)
def test_each_does_what_it_says(name: str, figure: str, least: float, most: float) -> None:
    assert least < example(name).main()[figure] < most


def test_the_page_of_equations_has_every_file_and_names_what_is_there() -> None:
    """Functions, which move less than lines do."""
    page = (ROOT / "docs" / "equations.md").read_text()
    named = re.findall(r"`examples\.(\w+)\.([\w.]+)`", page)
    for file, function in named:
        assert callable(getattr(example(file), function)), f"examples/{file}.py has no {function}"
    assert {file for file, _ in named} == {*FAMILY, "dual_rate_in_one_file"}
