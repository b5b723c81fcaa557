"""docs/extending.md as a reader follows it: a package beside the project, and what its commands then do."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli.command import call
from metrics.untrained import untrained
from theory.exact import GaussianMixture, OracleDenoiser
from torch import nn

import dualrate as dr
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics.features import Architecture
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.trajectory import rollout
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig, OptimConfig

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEVELS = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 2))
NET = dr.UViTConfig(8, 1, LEVELS, 2, patch=2, embedding=16, head_dim=16)
SMALL = ["--networks.model.image-size", "8", "--networks.model.num-classes", "2", "--data.source", "images.npz"]
FEW = {  # so that a command takes a moment
    "sample": ["--num", "4"],
    "evaluate": ["--num", "40", "--features", "net"],
    "compare": ["--screen", "20", "--count", "40", "--features", "net"],
    "train": ["--fit.iterations", "2", "--fit.batch-size", "4", *SMALL],
}


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(PAGE.read_text()) if found == kind]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The package, a run, images and a feature net."""
    place = tmp_path_factory.mktemp("beside")
    for text in blocks("python"):
        name = text.split("\n")[0].removeprefix("# ")
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "mydiffusion" / "__init__.py").write_text("")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(place / "images.npz", images=images, labels=np.arange(64) % 2)
    data = DataConfig(str(place / "images.npz"))
    experiment = dr.Experiment("run", dr.OneNetwork(NET), dr.DenoisingConfig(), FitConfig(1), data)
    networks, _ = experiment.build()
    weights = {name: 0.2 * torch.randn(tensor.shape) for name, tensor in networks.state_dict().items()}
    write_experiment(place / "run", experiment)
    checkpoint.save(place / "run" / "checkpoints", 1, {"model": weights}, {"iteration": 1})
    untrained(Architecture(1, 8, 2, features=4)).save(place / "net")
    return place


@pytest.fixture
def beside(place, monkeypatch) -> Path:
    """As if the package were installed, in its folder."""
    from dualrate.comparison import compare as comparison

    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("DUALRATE_CACHE", str(place / "cache"))
    monkeypatch.setattr(comparison, "BATCH", 2)
    return place


@pytest.mark.parametrize("commands", blocks("bash"), ids=["sampler", "denoiser", "method"])
def test_every_command_knows_it(commands, beside, monkeypatch, capsys):
    for line in commands.strip().splitlines():
        arguments = [word.replace("RUN", "run") for word in shlex.split(line)[1:]]
        (command,) = FEW.keys() & set(arguments)
        options = FEW[command] + (["--mixed"] if "runs/huber:8" in arguments else [])  # the same images by another path
        assert call(monkeypatch, *arguments, *options) == 0, f"{line}\n{capsys.readouterr().err}"
    report = next(beside.glob("out/*.json"), None)
    assert report is not None


def test_its_run_is_continued_by_its_method_alone_and_read_where_that_is_imported(beside, monkeypatch, capsys):
    """Where it is not, files name no code to run: config/test_serial.py."""
    assert call(monkeypatch, "train", "mydiffusion.methods:small", *FEW["train"], "--out", "runs/other") == 0
    assert call(monkeypatch, "train", "fashion-mnist-light", *SMALL, "--out", "runs/other") == 2
    assert "holds a run trained by mydiffusion.methods:HuberConfig" in capsys.readouterr().err
    assert load("runs/other").experiment.method.delta == 0.1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_sampler_converges(beside):
    """On one Gaussian every step size must go to the right variance; a churned DDIM gets there."""
    from mydiffusion.samplers import Churned  # pyright: ignore[reportMissingImports]

    process = dr.GaussianProcess(Cosine())
    mixture = GaussianMixture.isotropic(torch.zeros(1, 1, dtype=torch.float64), 0.25)
    draws = Draws(0, torch.arange(2000))
    x = rollout(
        OracleDenoiser(mixture, process), Churned(process), dr.StepPlan.uniform(512), draws.normal("z", 1).double(),
        dr.Cond(), lambda i, j: draws.normal(f"{i} {j}", 1).double(),
    )  # fmt: skip
    assert x.var().item() == pytest.approx(0.25, rel=0.1)


def test_the_step_written_out_is_ddim_and_a_drawer_takes_it(beside):
    from mydiffusion.samplers import Churned, Straight  # pyright: ignore[reportMissingImports]

    model, plan = load("run"), dr.StepPlan.uniform(8)
    written, ours = (dr.Drawer(model, step(model.gaussian), plan).draw(range(4)).images for step in (Straight, dr.DDIM))
    np.testing.assert_allclose(written.astype(int), ours.astype(int), atol=1)  # rounding
    assert len(dr.Drawer(model, Churned(model.gaussian, churn=0.2), plan).draw(range(4)).images) == 4


def test_the_method_lowers_its_loss(beside):
    from mydiffusion.methods import HuberConfig, small  # pyright: ignore[reportMissingImports]

    from dualrate.training.loop import fit

    class Data:
        def batch(self, iteration):
            sample = torch.arange(8) + 8 * iteration
            return Batch(torch.full((8, 1, 28, 28), 0.5), sample % 10, sample)

    experiment = small()
    method = HuberConfig().prepare(experiment, None).method
    optim = OptimConfig(lr=1e-2, warmup=0)
    config = FitConfig(iterations=30, batch_size=8, precision="float32", optim=optim)
    batch = Data().batch(0)

    def loss() -> float:
        return method.loss(batch, 0, Draws(0, batch.sample)).total.item()

    before = loss()
    fit(method, Data(), config, beside / "fit", identity={})
    assert loss() < 0.7 * before
    assert isinstance(method.networks, nn.ModuleDict)


def test_the_loss_of_two_networks_trains_both():
    (lines,) = re.findall(r"the middle of its loss is\n\n((?:    .*\n)+)", PAGE.read_text())
    process = dr.GaussianProcess(Cosine())
    networks, model = dr.TwoNetworks(NET, NET).build(process)
    batch = Batch(torch.randn(4, 1, 8, 8), torch.arange(4) % 2, torch.arange(4))
    values = {"self": SimpleNamespace(process=process, model=model), "batch": batch, "draws": batch.draws(0)}
    t = torch.linspace(0.1, 0.7, 4, dtype=torch.float64)
    exec(textwrap.dedent(lines), values | {"t": t, "tau": t + 0.2, "cond": batch.cond}, values)
    values["x_hat"].square().mean().backward()
    for role in ("encoder", "light"):
        assert any(weight.grad is not None for weight in networks[role].parameters()), role


class Thrice(dr.Step):
    """First order, at the mean of three calls; it declares one."""

    def __init__(self, process: dr.GaussianProcess, *, calls: int = 3) -> None:
        self.process, self.calls = process, calls

    def __call__(self, denoise, z, t, s, draw, carry):
        x_hats = torch.stack([denoise(z + 0.01 * i, t) for i in range(self.calls)])
        return dr.DDIM(self.process)(lambda *_: x_hats.mean(0), z, t, s, draw, carry)


class Honest(Thrice):
    calls_per_step = 3


class Returning(dr.Step):
    """Returns what a step does not."""

    def __init__(self, process: dr.GaussianProcess, what) -> None:
        self.process, self.what = process, what

    def __call__(self, denoise, z, t, s, draw, carry):
        return self.what(denoise(z, t))


def test_a_step_that_calls_more_or_less_than_it_declares_is_refused(place):
    model, plan = dr.load(place / "run"), dr.StepPlan.uniform(4)
    with pytest.raises(
        ValueError,
        match=r"Thrice calls the network 12 times in 4 .*calls_per_step 1 .*: declare calls_per_step = 3",
    ):
        dr.Drawer(model, Thrice(model.gaussian), plan)
    with pytest.raises(ValueError, match=r"Honest calls the network 8 times .* declare calls_per_step = 2"):
        dr.Drawer(model, Honest(model.gaussian, calls=2), plan)
    assert dr.Drawer(model, Honest(model.gaussian), plan).cost.light_calls == 12


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: x, r"test_extending:Returning returned a Tensor; a step returns \(z_s, carry\)"),
        (lambda x: torch.cat([x, x]), "returned a Tensor"),  # of two rows: it would unpack
        (lambda x: None, "returned a NoneType"),
        (lambda x: (x,), "returned a tuple"),
        (lambda x: (None, ()), "returned a tuple"),
        (lambda x: (x.mean(), ()), r"returned z_s of \(\), not \(1, 1, 8, 8\)"),
    ],
)
def test_a_step_that_returns_no_state_is_refused(place, what, message):
    model = dr.load(place / "run")
    with pytest.raises(ValueError, match=message):
        dr.Drawer(model, Returning(model.gaussian, what), dr.StepPlan.uniform(2))


def test_python_takes_a_step_in_a_drawer_and_says_so(place):
    model = dr.load(place / "run")
    for sampler in (dr.DDIM, dr.DDIM(model.gaussian)):
        with pytest.raises(ValueError, match=r"a sampler is a name such as heun, .* dr.Drawer\(model, step, plan\)"):
            dr.sample(model, 2, sampler=sampler)  # pyright: ignore[reportArgumentType]
    for step in ("ddim", dr.DDIM):
        with pytest.raises(ValueError, match="a drawer takes a step such as"):
            dr.Drawer(model, step, dr.StepPlan.uniform(2))  # pyright: ignore[reportArgumentType]
