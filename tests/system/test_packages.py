"""Calls that are compiled ahead of time: what is exported is right, and what is kept; one is really compiled."""

import warnings
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import TwoConditional, TwoNetworks
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.system import packages
from dualrate.system.device import compiles
from dualrate.system.packages import package_calls

CPU, PROCESS = torch.device("cpu"), GaussianProcess(Cosine())
NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, embedding=16, head_dim=16)


class Unpacked:
    """In place of a package: the exported program itself."""

    made: ClassVar[dict[str, torch.export.ExportedProgram]] = {}

    def __init__(self, path: str) -> None:
        self.program = self.made[packages.Path(path).read_text()]
        self.module = self.program.module(check_guards=False)
        self.weights: dict[str, Tensor] = {}

    def get_constant_fqns(self) -> list[str]:
        return [*self.program.state_dict, *self.program.constants]

    def load_constants(self, weights: dict[str, Tensor], **how: bool) -> None:
        assert set(weights) == set(self.get_constant_fqns())
        self.weights = {name: weights[name] for name, _ in self.module.named_parameters()}

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        return torch.func.functional_call(self.module, self.weights, tensors)


@pytest.fixture
def exported(monkeypatch) -> dict[str, torch.export.ExportedProgram]:
    """Programs that are packaged, by their files: all but the last step, which takes a compiler and many seconds."""
    made = Unpacked.made = {}

    def keep(program, package_path, inductor_configs):
        name = str(len(made))
        packages.Path(package_path).write_text(name)
        made[name] = program

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", keep)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", Unpacked)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "named")
    return made


LABELS = [0, 1, 2, 0, 1]


def images(denoiser, **how) -> Tensor:
    step, plan = dr.Ancestral(PROCESS), dr.StepPlan.uniform(4, 2)
    return torch.cat(list(dr.sample_batches(denoiser, step, plan, NET.shape, range(5), LABELS, batch_size=3, **how)))


def built(networks):
    modules, denoiser = networks.build(PROCESS)
    for i, weight in enumerate(modules.parameters()):
        nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(i))
    return modules.eval().requires_grad_(False), denoiser


def packaged(networks, cache):
    modules, denoiser = built(networks)
    for network in modules.values():
        package_calls(network, cache)
    return denoiser


PAIR = TwoNetworks(NET, NET)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_images_are_those_of_calls_that_are_not_packaged(exported, tmp_path, bfloat16):
    """One package serves three rows and two."""
    expected = images(built(PAIR)[1], bfloat16=bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(images(packaged(PAIR, tmp_path), bfloat16=bfloat16), expected)
    assert len(exported) == len(list(tmp_path.iterdir())) == 2  # a heavy call and a light one


def test_so_are_members_of_a_condition(exported, tmp_path):
    """Their features have fewer rows than they."""
    pair, how = (
        TwoConditional(NET, NET, (1, 4, 4)),
        {"members": 4, "given": lambda rows: torch.ones(len(rows), 1, 4, 4)},
    )
    assert torch.equal(images(packaged(pair, tmp_path), **how), images(built(pair)[1], **how))
    assert exported


def test_networks_of_one_kind_share_what_is_kept(exported, tmp_path):
    """Not their weights; what is compiled for another number of threads is another."""

    def called(width: int = 4) -> Tensor:
        network = nn.Linear(4, width).eval()
        package_calls(network, tmp_path)
        with torch.no_grad():
            output = network(torch.ones(3, 4))
            assert torch.equal(output, nn.Linear.forward(network, torch.ones(3, 4)))
        return output

    assert not torch.equal(called(), called())
    assert len(exported) == 1
    called(5)
    assert len(exported) == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        called()
    finally:
        torch.set_num_threads(threads)
    assert len(exported) == 3


class Scaled(nn.Linear):
    """Equal weights, other code, and a number among the inputs."""

    factor: float

    def forward(self, input: Tensor, added: float = 0.0) -> Tensor:
        return super().forward(input) * self.factor + added


@pytest.mark.parametrize("autocast", [False, True])
def test_other_code_and_other_numbers_have_packages_of_their_own(exported, tmp_path, autocast):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for count, (factor, added) in enumerate(((2.0, 0.0), (3.0, 0.0), (3.0, 1.0), (3.0, 1.0))):
            network = Scaled(4, 4).eval()
            network.factor = factor
            eager = network(torch.ones(3, 4), added)
            package_calls(network, tmp_path)
            assert torch.equal(network(torch.ones(3, 4), added), eager)
            assert len(exported) == min(count + 1, 3)


def test_a_damaged_package_is_made_anew(exported, tmp_path):
    network = nn.Linear(4, 4).eval()
    for _ in range(2):
        other = nn.Linear(4, 4).eval()
        other.load_state_dict(network.state_dict())
        package_calls(other, tmp_path)
        with torch.no_grad():
            assert torch.equal(other(torch.ones(3, 4)), network(torch.ones(3, 4)))
        (file,) = tmp_path.iterdir()
        file.write_text("damaged")
    assert len(exported) == 2


def test_one_row_has_a_package_of_its_own(exported, tmp_path):
    network = nn.Linear(4, 4).eval()
    package_calls(network, tmp_path)
    with torch.no_grad():
        for rows, packages_made in ((1, 1), (2, 2), (1, 2), (7, 2)):
            assert torch.equal(network(torch.ones(rows, 4)), nn.Linear.forward(network, torch.ones(rows, 4)))
            assert len(exported) == packages_made


def test_without_a_compiler_calls_run_as_they_are_with_one_warning(monkeypatch, tmp_path):
    def fail(*of, **how) -> None:
        raise RuntimeError("no g++\nlong story")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "named")
    network = nn.Linear(4, 4).eval()
    package_calls(network, tmp_path)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for rows in (3, 2):
            assert torch.equal(network(torch.ones(rows, 4)), nn.Linear.forward(network, torch.ones(rows, 4)))
    (said,) = (str(one.message) for one in caught if one.category is UserWarning)
    assert said == "calls run uncompiled: RuntimeError: no g++"


def test_what_cannot_be_exported_is_left_to_torch_compile(exported, tmp_path, monkeypatch):
    class Choosing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if input.sum() > 0 else input

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: compiled.append(call) or call)
    network = Choosing(4, 4).eval()
    package_calls(network, tmp_path)
    with torch.no_grad():
        for x in (torch.ones(3, 4), -torch.ones(3, 4)):
            assert torch.equal(network(x), Choosing.forward(network, x))
    assert len(compiled) == 1
    assert not exported

    def fail(*inputs: Tensor) -> None:
        raise FileExistsError("the cache is a file")

    monkeypatch.setattr(torch, "compile", lambda call, dynamic: fail)
    network = Choosing(4, 4).eval()
    package_calls(network, tmp_path)
    with torch.no_grad(), pytest.warns(UserWarning, match="calls run uncompiled: FileExistsError: the cache is a file"):
        assert torch.equal(network(torch.ones(3, 4)), Choosing.forward(network, torch.ones(3, 4)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_compiler_makes_the_same_images(tmp_path, monkeypatch, bfloat16):
    if problem := compiles(CPU):
        pytest.skip(problem)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = images(built(PAIR)[1], bfloat16=bfloat16)
    for _ in range(2):  # then from what is kept
        found = images(packaged(PAIR, tmp_path), bfloat16=bfloat16)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.1 if bfloat16 else 1e-4)
    assert len(list(tmp_path.glob("*.pt2"))) == 2
