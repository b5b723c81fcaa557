"""Nothing in a step of a sampler, a training loss, or an update of weights waits for the device to learn a value.

A GPU works on what was asked of it while the program asks for more; `bool(x.any())`, `x[mask]` or `torch.unique(x)`
make the program wait until it has done all, and cannot be captured in a graph. Here the device is played: a tensor is
on it if it was put there, or was computed of one that is.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.denoisers.early_exit import EarlyExit
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Batch, Cond, Reuse, shared_time
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.forecasts import rolling
from dualrate.forecasts.rolling_process import Rolling
from dualrate.methods import (
    consistency,
    denoising,
    early_exit,
    em_distillation,
    moment_matching,
    student_states,
    times,
)
from dualrate.methods.early_exit import EarlyExitNetwork
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.sampling.catalogue import SAMPLERS, make_step
from dualrate.sampling.trajectory import trajectory
from dualrate.system.progress import Silent
from dualrate.training import loop
from dualrate.training.config import FitConfig
from dualrate.training.loop import fit

ROWS, SHAPE = 6, (1, 8, 8)
PROCESS, ROLLS = GaussianProcess(Cosine()), Rolling()
NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, embedding=16, head_dim=16)
PLAN = dr.StepPlan.uniform(4, 2)
MOVING = consistency, denoising, early_exit, em_distillation, moment_matching, rolling, student_states, times
WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive", "unique_dim", "masked_select", "equal"}
READS = {torch.Tensor.tolist, torch.Tensor.cpu}
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}  # masks are turned into numbers


class Reads(TorchFunctionMode):
    """Sees what a played device cannot, as there are no copies from the CPU to itself: `x.tolist()`, `x.cpu()`."""

    def __init__(self, device: "Played") -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS and self.device.holds(args):
            self.device.waits.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Played(TorchDispatchMode):
    """A device; waits: the operators of which the program wanted a value at once."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self.waits: list[str] = []
        self.reads = Reads(self)

    def __enter__(self):
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def put(self, tensor: Tensor) -> Tensor:
        self.tensors[id(tensor)] = tensor
        return tensor

    def to_device(self, device: torch.device, *parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.put(part.clone()) for part in parts)

    def holds(self, values: object) -> bool:
        return any(isinstance(value, Tensor) and id(value) in self.tensors for value in tree_leaves(values))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, found = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        if self.holds((args, kwargs)):
            by_mask = name in BY_INDEX and any(self.is_mask(part) for part in tree_leaves(args[1]))
            by_repeats = name == "repeat_interleave" and "output_size" not in (kwargs or {})
            if name in WAITS or by_mask or by_repeats:
                self.waits.append(str(func))
            for part in tree_leaves(found):
                if isinstance(part, Tensor):
                    self.put(part)
        return found

    def is_mask(self, part: object) -> bool:
        return self.holds(part) and isinstance(part, Tensor) and part.dtype == torch.bool


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool((x > 0).any()),
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: torch.unique(x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.equal(x, 2 * x),
        lambda x: x.masked_fill_(x > 0, 1).nonzero(),
        lambda x: torch.arange(2).repeat_interleave(x.long()),
    ],
)
def test_a_wait_is_seen(ask):
    with Played() as device:
        ask(device.put(torch.ones(2)) + 1)
    assert len(device.waits) == 1


def test_what_the_host_knows_is_no_wait():
    with Played() as device:
        x = device.put(torch.ones(2))
        assert bool((torch.ones(2) > 0).any())
        assert (x[torch.tensor([1])] * torch.ones(2)).shape == (2,)
    assert device.waits == []


def built(networks: NetworksConfig) -> tuple[torch.nn.ModuleDict, dr.Denoiser]:
    torch.manual_seed(0)
    made, denoiser = networks.build(PROCESS)
    return made, denoiser


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_of_a_sampler(name):
    """The second of a plan, once its coefficients are known."""
    step = make_step(name, PROCESS)
    z = torch.randn(ROWS, *SHAPE)
    before, t, s = (shared_time(time) for time in PLAN.t[:3])
    carry = step(lambda z, t: 0.5 * z, z, before, t, lambda: z, step.start())[1]
    step(lambda z, t: 0.5 * z, z, t, s, lambda: z, carry)
    with Played() as device:
        device.put(z)
        step(lambda z, t: 0.5 * z, z, t, s, lambda: z, carry)
    assert device.waits == []
    assert len(device.tensors) > 2


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("networks", [OneNetwork(NET), TwoNetworks(NET, NET)])
def test_a_trajectory(networks, guided):
    denoiser = built(networks)[1]
    if guided:
        denoiser = Guided(denoiser, PROCESS, 2.0, NET.num_classes, interval=(0.1, 10.0))
    plan = PLAN if isinstance(networks, TwoNetworks) else dr.StepPlan.uniform(4)
    noise = torch.randn(ROWS, *SHAPE)
    with torch.no_grad(), Played() as device:
        z, label = device.put(noise.clone()), device.put(torch.arange(ROWS) % 3)
        list(trajectory(denoiser, dr.SDEDPMSolver2M(PROCESS), plan, z, Cond(label), lambda i, n: noise))
    assert device.waits == []


@cache
def losses() -> dict[str, tuple[object, Sequence[int]]]:
    """Methods and the iterations whose phases are looked at."""
    single, plain = built(OneNetwork(NET))
    double, dual = built(TwoNetworks(NET, NET))
    on_ddim = DualRate(double["encoder"], double["light"], PROCESS, Reuse.OWN)
    weighting, late = Sigmoid(), dr.TimeSampler(first=(0.6, 0.9))
    found: dict[str, tuple[object, Sequence[int]]] = {
        "heavy": (denoising.Denoising(single, plain, PROCESS, weighting, times.SingleTime(), 3), [0]),
        "dual-rate": (denoising.Denoising(double, dual, PROCESS, weighting, dr.TimeSampler(), 3), [0]),
        "dual-rate, late plans": (denoising.Denoising(double, dual, PROCESS, weighting, late, 3), [0]),
    }
    shared = {"networks": double, "student": dual, "teacher": plain, "process": PROCESS, "weighting": weighting}
    auxiliary = torch.nn.ModuleDict({"auxiliary": UViT(NET)})
    more = {"auxiliaries": auxiliary, "auxiliary": Plain(auxiliary["auxiliary"], PROCESS)}
    for source in (student_states.SegmentRollout(PLAN, PROCESS, 2), student_states.FullRollout(PLAN, PROCESS, 2)):
        method = moment_matching.MomentMatching(states=source, **shared, **more)
        found[f"alternating, {type(source).__name__}"] = (method, [0, 1])
    guided = {"teacher": Guided(plain, PROCESS, 2.0, NET.num_classes, interval=(0.1, 10.0))}
    method = moment_matching.MomentMatching(
        states=student_states.SegmentRollout(PLAN, PROCESS), **(shared | guided), **more
    )
    found["alternating, guided teacher"] = (method, [0, 1])
    pretrained = {"pretraining": 1, "pretraining_states": student_states.ForwardPairs(PLAN, PROCESS)}
    backbone = double.get_submodule("encoder.net")
    method = moment_matching.InstantMomentMatching(
        states=student_states.SegmentRollout(PLAN, PROCESS),
        backbone=backbone,
        **pretrained,
        **shared,
    )
    plain_student = {**shared, "networks": single, "student": plain}
    found["instant"] = (method, [0, 1])
    found["of data"] = (
        moment_matching.MomentMatching(states=student_states.FromData(4, PROCESS), **plain_student, **more),
        [1],
    )
    own = consistency.Consistency(single, plain, PROCESS, 4, plain, guidance=2.0, null=3, huber=0.1)
    found["consistency"] = (own, [0])
    chain = em_distillation.Langevin(2, latent_step=0.01)
    found["em"] = (em_distillation.EMDistillation(langevin=chain, **(plain_student | guided), **more), [0, 1])
    own = consistency.Consistency(double, on_ddim, PROCESS, 4, heavy=2)
    found["consistency, dual"] = (own, [0])
    own = rolling.RollingDenoising(single, Plain(single["model"], ROLLS), ROLLS, weighting, times.SingleTime())
    found["rolling"] = (own, [0])
    deep = replace(NET, levels=(*NET.levels[:-1], replace(NET.levels[-1], blocks=2)))
    exits, leaving = built(EarlyExitNetwork(deep))
    assert isinstance(leaving, EarlyExit)
    found["early exit"] = (early_exit.EarlyExitTraining(exits, leaving, PROCESS, weighting, 3), [0])
    return found


@pytest.mark.parametrize("name", list(losses()))
def test_a_training_loss_and_its_gradient(name, monkeypatch):
    method, iterations = losses()[name]
    sample = torch.arange(ROWS)
    for iteration in iterations:
        (phase,) = method.phases(iteration)
        with Played() as device:
            for module in MOVING:
                monkeypatch.setattr(module, "to_device", device.to_device)
            x, label = device.put(torch.randn(ROWS, *SHAPE)), device.put(sample % 3)
            batch = Batch(x, label, device.put(sample.clone()), here=sample)
            phase.loss(batch, iteration, batch.draws(0)).total.backward()
        assert device.waits == []
        assert len(device.tensors) > 100


class Noise:
    """Batches of it."""

    def batch(self, iteration: int) -> Batch:
        sample = torch.arange(ROWS) + ROWS * iteration
        return Batch(torch.randn(ROWS, *SHAPE), sample % 3, sample)


def on(device: Played, batch: Batch) -> Batch:
    x, label, sample = device.to_device(torch.device("cpu"), batch.x, batch.label, batch.sample)
    return Batch(x, label, sample, here=batch.sample)


@pytest.mark.parametrize("name", ["dual-rate", "alternating, SegmentRollout"])
def test_iterations_wait_where_they_log_alone(name, tmp_path, monkeypatch):
    """As often in four iterations as in two, where one line of the log and one checkpoint are written at the end."""
    monkeypatch.setattr(loop, "_queues", lambda device: True)
    waits, method = [], losses()[name][0]
    for iterations in (2, 4):
        device = Played()
        monkeypatch.setattr(Batch, "to", lambda batch, _, device=device: on(device, batch))
        for module in (denoising, student_states, times):
            monkeypatch.setattr(module, "to_device", device.to_device)
        with device:
            for parameter in (*method.networks.parameters(), *method.auxiliaries.parameters()):
                device.put(parameter)
            config = FitConfig(iterations, ROWS, precision="float32", log_every=iterations)
            done = fit(method, Noise(), config, tmp_path / str(iterations), identity={}, progress=Silent())
        assert done.iteration == iterations
        waits.append(device.waits)
    assert waits[0] == waits[1]
    assert waits[0].count("tolist") >= 1


def test_draws_of_the_host_are_those_of_the_device():
    draws = Draws(3, torch.arange(4))
    told = Draws(3, torch.arange(4), here=torch.arange(4))
    assert torch.equal(told.host.uniform("a", 2), draws.uniform("a", 2))
    batch = Batch(torch.zeros(4, *SHAPE), None, torch.arange(4)).to("cpu")
    assert batch.here is batch.sample
    assert torch.equal(batch[1:3].draws(0).host.row, torch.tensor([1, 2]))
    assert batch[torch.tensor([1])].here is None
