"""Calls recorded as CUDA graphs. A GPU's recording is played: a launch computes again from the same buffers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Betas, Cosine
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.sampling.catalogue import SAMPLERS, make_step
from dualrate.sampling.trajectory import sample_batches
from dualrate.system import device as graphs
from dualrate.system.device import graph_calls

PROCESS = GaussianProcess(Cosine())
NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, embedding=16, head_dim=16)
DUAL, ONE = TwoNetworks(NET, NET), OneNetwork(NET)
X = torch.arange(12.0).view(3, 4)


class Played:
    """records: calls that were recorded; launches: how often they were launched."""

    def __init__(self) -> None:
        self.records = self.launches = 0

    def __call__(self, call, device):
        self.records += 1
        output = call()
        for tensor in tree_leaves(output):
            tensor.fill_(torch.nan)  # a recording computes nothing

        def launch():
            self.launches += 1
            for held, made in zip(tree_leaves(output), tree_leaves(call()), strict=True):
                held.copy_(made)

        return launch, output


@pytest.fixture
def played() -> Played:
    return Played()


def denoiser_of(networks: NetworksConfig, played: Played | None = None) -> DualRate | Plain:
    modules, denoiser = networks.build(PROCESS)
    for i, weight in enumerate(modules.parameters()):
        nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(i))
    modules.eval().requires_grad_(False)
    for network in modules.values() if played else ():
        graph_calls(network, played)
    return denoiser


def late(steps: int) -> StepPlan:
    """The first two steps alone, then a heavy call every second one."""
    plan = StepPlan.uniform(steps, steps // 2)
    return replace(plan, refresh=(Refresh.NONE, Refresh.NONE, *plan.refresh[2:]))


def recorded_cases() -> list:
    """Every sampler; of one network and in bfloat16, which ask the same of a recording, those that call differently."""
    differently = "ancestral", "heun", "covariance-dct"  # once, twice, and for a derivative
    return [
        pytest.param(name, networks, bfloat16, id=f"{name}-{label}-{'bfloat16' if bfloat16 else 'float32'}")
        for label, networks in (("dual-rate", DUAL), ("one network", ONE))
        for bfloat16 in (False, True)
        for name in SAMPLERS
        if name in differently or (networks is DUAL and not bfloat16)
    ]


@pytest.mark.parametrize(("name", "networks", "bfloat16"), recorded_cases())
def test_images_are_those_of_calls_that_are_not_recorded(name, networks, bfloat16, played):
    """Also of a last batch that is smaller, and with the heavy calls of several segments."""
    reuses = networks is DUAL and SAMPLERS[name].markovian
    plan = late(6) if reuses else StepPlan.uniform(3)
    step, seeds = make_step(name, PROCESS), range(5)

    def images(denoiser) -> Tensor:
        labels = [seed % 3 for seed in seeds]
        return torch.cat(
            list(sample_batches(denoiser, step, plan, (1, 8, 8), seeds, labels, batch_size=3, bfloat16=bfloat16))
        )

    expected = images(denoiser_of(networks))
    assert torch.equal(images(denoiser_of(networks, played)), expected)
    light = (
        0 if name in ("covariance-dct", "covariance-dft") else 2
    )  # of a batch of three and of two; calls with a derivative are not recorded
    if networks is ONE:
        assert played.records == light
    if reuses:
        assert played.records == 2 + 2 * light  # heavy ones; light ones with a context and without
    assert played.launches >= 2 * played.records


def test_guided_branches_are_recorded_as_one_batch(played):
    step, plan = dr.Ancestral(PROCESS), StepPlan.uniform(4, 2)

    def images(denoiser) -> Tensor:
        return torch.cat(
            list(sample_batches(Guided(denoiser, PROCESS, 2.0, 3), step, plan, (1, 8, 8), range(2), [0, 1]))
        )

    assert torch.equal(images(denoiser_of(DUAL, played)), images(denoiser_of(DUAL)))
    assert played.records == 2


def linear(played: Played) -> nn.Linear:
    network = nn.Linear(4, 4).eval()
    graph_calls(network, played)
    return network


def test_what_a_call_left_stays_when_the_next_is_launched(played):
    network = linear(played)
    with torch.no_grad():
        first = network(X)
        kept = first.clone()
        network(X + 1)
    assert torch.equal(first, kept)


def test_an_input_that_changed_in_place_is_seen(played):
    network, x = linear(played), X.clone()
    with torch.no_grad():
        first = network(x)
        x += 1
        assert torch.equal(network(x), nn.functional.linear(x, network.weight, network.bias))
    assert not torch.equal(first, network(x))


@torch.inference_mode()
def test_changes_of_inference_tensors_which_nobody_counts_are_seen(played):
    network, x = linear(played), X.clone()
    network(x)
    x += 1
    assert torch.equal(network(x), nn.functional.linear(x, network.weight, network.bias))
    with torch.inference_mode(False), torch.no_grad():  # whose buffers are of another kind
        assert torch.equal(network(X), nn.functional.linear(X, network.weight, network.bias))


def test_calls_with_a_derivative_and_those_of_training_are_not_recorded(played):
    network = linear(played)
    network(X).sum().backward()
    assert network.weight.grad is not None
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(network(forward_ad.make_dual(X, torch.ones_like(X)))).tangent
    assert torch.equal(tangent, torch.ones_like(X) @ network.weight.T)
    network.train()
    with torch.no_grad():
        network(X)
    assert played.records == 0


def test_inputs_of_another_kind_are_recorded_anew_and_the_oldest_dropped(played):
    network = linear(played)
    with torch.no_grad():
        for x in (X, X[:2], X.T.contiguous().T, X, X[:2]):
            network(x)
        assert played.records == 3
        with torch.autocast("cpu", torch.bfloat16):
            assert network(X).dtype == torch.bfloat16
        assert network(X).dtype == torch.float32
        assert played.records == 4
        for size in range(2 * graphs.KEPT):
            network(X.repeat(4 + size, 1))
            network(X[:1])  # used again and again, so kept
        assert played.records == 4 + 1 + 2 * graphs.KEPT
        network(X)
        assert played.records == 4 + 1 + 2 * graphs.KEPT + 1


def test_no_cast_of_a_weight_outlives_the_recording(played):
    seen = []

    class Asking(nn.Linear):
        def forward(self, x):
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
            return super().forward(x)

    network = Asking(4, 4).eval()
    graph_calls(network, played)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(X)
    assert set(seen) == {(True, False)}


def waits():
    """As a recording fails whose end fails because something in it did before."""
    try:
        raise RuntimeError("not permitted when a stream is capturing\nlong story")
    finally:
        raise RuntimeError("failed due to a previous error")


def runs_short():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def runs_short_and_fails():
    try:
        runs_short()
    finally:
        raise RuntimeError("failed due to a previous error")


def says_nothing():
    raise RuntimeError


@pytest.mark.parametrize(
    ("fails", "raised", "said"),
    [
        (waits, ValueError, r"\(not permitted when a stream is capturing\): draw without graphs"),
        (says_nothing, ValueError, r"\(RuntimeError\): draw without graphs"),
        (runs_short, torch.OutOfMemoryError, "^CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        (runs_short_and_fails, torch.OutOfMemoryError, "^CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_a_way_out(fails, raised, said):
    try:
        raise KeyError("the caller's own")
    except KeyError:
        with pytest.raises(raised, match=said), graphs.refusing():
            fails()


def test_so_are_calls_on_a_cpu():
    network = nn.Linear(4, 4).eval()
    graph_calls(network)
    with torch.no_grad(), pytest.raises(ValueError, match="need a GPU, and this is the cpu: draw without graphs"):
        network(X)


class FromTheHost(TorchDispatchMode):
    """found: operators that took a tensor of the CPU, which a recording would not read again."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs))
        if any(isinstance(part, Tensor) and part.device.type == "cpu" for part in given):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_network_takes_nothing_from_the_host(monkeypatch):
    """On a device without numbers, on which waiting for one is an error."""
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    modules, _ = DUAL.build(PROCESS)
    encoder, light = (modules[name].to("meta").eval() for name in ("encoder", "light"))
    betas = Betas(steps=77)  # of which no test asked before
    z, t = torch.zeros(2, 1, 8, 8, device="meta"), torch.zeros(2, device="meta")
    label, present = (torch.zeros(2, dtype=kind, device="meta") for kind in (torch.int64, torch.bool))
    with torch.no_grad(), FromTheHost() as host:
        features, _ = encoder(z, t, label)
        light(z, t, label, features, t, None)
        light(z, t, label, features, t, present)
        light(z, t, label, (), None, None)
        assert not host.found
        betas.index(t.double())
        assert "aten._to_copy.default" in host.found  # the table of betas is made here and copied
        host.found.clear()
        betas.index(t.double())
        assert not host.found  # once
        torch.zeros(2).to("meta")
    assert host.found == ["aten._to_copy.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_gpu_launches_what_it_recorded(bfloat16):
    launches = []

    def counting(call, device):
        launch, output = graphs.record_graph(call, device)
        return lambda: (launch(), launches.append(1)), output

    def images(*, recorded: bool) -> Tensor:
        denoiser = denoiser_of(DUAL)
        for network in (denoiser.encoder, denoiser.light):
            network.cuda()
            if recorded:
                graph_calls(network, counting)
        how = {"batch_size": 3, "device": "cuda", "bfloat16": bfloat16}
        return torch.cat(
            list(sample_batches(denoiser, dr.Ancestral(PROCESS), late(6), (1, 8, 8), range(5), [0] * 5, **how))
        )

    assert torch.equal(images(recorded=True), images(recorded=False))
    assert len(launches) > 12
