"""How many operators an iteration has beside its network: a GPU takes longer to launch most than to run them."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dualrate.data.conditions import smaller
from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.context import Batch
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.methods.denoising import Denoising
from dualrate.methods.times import SingleTime
from dualrate.system.progress import Silent
from dualrate.training import loop
from dualrate.training.config import FitConfig

PROCESS = GaussianProcess(Cosine())
VIEWS = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "t", "transpose", "unbind"}
VIEWS |= {"unsqueeze", "view"}
MADE = {"empty", "empty_like", "_record_function_enter_new", "_record_function_exit"}  # what computes nothing


class Counted(TorchDispatchMode):
    """names: of the operators that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (name := func.overloadpacket.__name__) not in VIEWS | MADE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Scaled(nn.Module):
    """A network of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z, log_snr, label):
        return self.scale * z


class Noise:
    def batch(self, iteration: int) -> Batch:
        return Batch(torch.zeros(4, 1, 8, 8), None, 4 * iteration + torch.arange(4))


def test_a_condition_is_made_without_a_wait():
    with Counted() as counted:
        smaller(torch.zeros(2, 3, 8, 8), 4)
    assert "_local_scalar_dense" not in counted.names
    assert len(counted.names) < 12, counted.names


def test_an_iteration(tmp_path, monkeypatch):
    """Six iterations are compared with three."""
    monkeypatch.setattr(loop, "_queues", lambda device: True)
    found = []
    for iterations in (3, 6):
        networks = nn.ModuleDict({"model": Scaled()})
        method = Denoising(networks, Plain(networks["model"], PROCESS), PROCESS, Sigmoid(), SingleTime())
        config = FitConfig(iterations, 4, precision="float32", log_every=iterations)
        with Counted() as counted:
            loop.fit(method, Noise(), config, tmp_path / str(iterations), identity={}, progress=Silent())
        found.append(len(counted.names))
    assert (found[1] - found[0]) / 3 < 220
