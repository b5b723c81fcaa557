"""The likelihood of held-out images: a mean of bounds, image by image, and what is refused."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dualrate.cli.main import main
from dualrate.data.images import ImageSet, to_float
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.drawing.likelihood import GREY_LEVEL, bits_per_dimension, ending, fit_variance
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.bound import mean_errors, variational_bound
from dualrate.sampling.ddim import DDIM
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig
from tests.theory.common import PROCESS

CLASSES, SIZE = 3, 8
LEVELS = (Level("conv", 8, 1), Level("transformer", 16, 1))
NET = UViTConfig(SIZE, 1, LEVELS, patch=2, embedding=16, head_dim=16, num_classes=CLASSES)
PLAN = ending(StepPlan.uniform(4, 2), PROCESS.schedule, GREY_LEVEL)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Networks in float32, so that batches of other sizes agree."""
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A dual-rate run with random weights, and its images."""
    place = tmp_path_factory.mktemp("likelihood")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, SIZE, SIZE, 1), dtype=np.uint8)
    np.savez(place / "images.npz", images=images, labels=np.arange(64) % CLASSES)
    data = DataConfig(str(place / "images.npz"))
    experiment = Experiment(
        "two", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(iterations=1), data
    )
    write_experiment(place / "run", experiment)
    networks, _ = experiment.build()
    for parameter in networks.parameters():  # heads start at zero, and then nothing depends on the label
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    checkpoint.save(place / "run" / "checkpoints", 1, {"model": networks.state_dict()}, {"iteration": 1})
    return place / "run"


@pytest.fixture(scope="module")
def model(run):
    return load(run)


def image_set(count: int = 9, labels: bool = True, size: int = SIZE) -> ImageSet:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    names = tuple("abc") if labels else ()
    return ImageSet(images, np.arange(count) % CLASSES if labels else None, names, "some")


def judged(model, images=None, count=9, *, seed=0, progress=None, **drawing):
    drawer = Drawer(model, Ancestral(model.process), PLAN, **drawing)
    images = image_set() if images is None else images
    return bits_per_dimension(drawer, images, count=count, seed=seed, progress=progress)


def direct(model, denoiser):
    """Bits per dimension of every image of `image_set`, from the bound itself."""
    images = image_set()
    x, cond = to_float(images.images), Cond(torch.tensor(images.labels))
    draws = Draws(5, torch.arange(9))
    return variational_bound(denoiser, Ancestral(model.process), PLAN, x, cond, draws)


def test_it_is_the_bound_of_every_image_with_means_and_standard_errors(model):
    found, bound = judged(model, seed=5), direct(model, model.denoiser)
    bits = SIZE * SIZE * math.log(2)
    np.testing.assert_allclose(found.images, bound.bits_per_dimension, rtol=1e-5)
    for estimate, terms in (
        (found.total, bound.total),
        (found.prior, bound.prior),
        (found.steps, bound.steps.sum(1)),
        (found.reconstruction, bound.reconstruction),
    ):
        assert estimate.value == pytest.approx(terms.mean().item() / bits, rel=1e-5)
        assert estimate.error == pytest.approx(np.std(terms.numpy(), ddof=1) / 3 / bits, rel=1e-4)
    np.testing.assert_allclose(found.each_step, bound.steps.mean(0) / bits, rtol=1e-5)
    assert found.total.value == pytest.approx(found.prior.value + sum(found.each_step) + found.reconstruction.value)


def test_an_image_has_its_own_noise_whatever_the_batch_and_the_count(model):
    whole = judged(model)
    np.testing.assert_allclose(judged(model, batch_size=2).images, whole.images, rtol=1e-4)
    few = judged(model, count=3).images  # spread over the set
    np.testing.assert_allclose(few, [whole.images[i] for i in (0, 4, 8)], rtol=1e-4)
    other = judged(model, seed=1).images
    assert all(abs(a - b) > 1e-4 for a, b in zip(other, whole.images, strict=True))


def test_guided_as_the_sampler_is(model):
    guided = Guided(model.denoiser, model.process, 3.0, CLASSES)
    found = judged(model, guidance=Guidance(3.0), seed=5)
    np.testing.assert_allclose(found.images, direct(model, guided).bits_per_dimension, rtol=1e-4)
    assert abs(found.total.value - judged(model, seed=5).total.value) > 1e-4


def test_the_variance_is_fitted_to_the_images_given(model):
    """And judged on others, with other noise: lower than the plain step's, as x_hat here is no good."""
    train, test = image_set(16), image_set()
    drawer = Drawer(model, Ancestral(model.process), PLAN)
    step = fit_variance(replace(drawer, batch_size=5), train, count=16)
    whole = fit_variance(drawer, train, count=16)
    np.testing.assert_allclose(step.excess, whole.excess, rtol=1e-4)
    assert step.t == PLAN.t[:-1]
    uncut = replace(drawer, plan=StepPlan.uniform(4, 2))
    assert fit_variance(uncut, train, count=16) == whole
    assert judged(model).images == bits_per_dimension(uncut, image_set(), count=9).images
    fitted = bits_per_dimension(replace(drawer, step=step), test, count=9)
    assert fitted.total.value < 0.5 * judged(model).total.value
    x, cond, draws = to_float(train.images), Cond(torch.tensor(train.labels)), Draws(0, torch.arange(16))
    same_noise = mean_errors(model.denoiser, Ancestral(model.process), PLAN, x, cond, draws).mean(0)
    assert (abs(same_noise - torch.tensor(step.excess)) > 1e-6 * same_noise).all()


def test_progress_counts_images(model):
    seen = []
    judged(model, batch_size=4, progress=lambda *of: seen.append(of))
    assert seen == [(4, 9), (8, 9), (9, 9)]


def test_a_plan_is_cut_where_the_noise_is_a_grey_level():
    plan = ending(StepPlan.uniform(64, 8), PROCESS.schedule, GREY_LEVEL)
    end = torch.tensor(plan.t[-1], dtype=torch.float64)
    assert (PROCESS.sigma(end) / PROCESS.alpha(end)).item() == pytest.approx(2 / 255)
    assert plan.t[:-1] == StepPlan.uniform(64).t[:-1]
    assert plan.num_heavy == 8
    early = ending(StepPlan.uniform(64, 8), PROCESS.schedule, 0.0)  # t = 1/2
    assert early == StepPlan((*StepPlan.uniform(64).t[:32], early.t[-1]), StepPlan.uniform(64, 8).refresh[:32])
    short = StepPlan.at([0.9, 0.5], [0])
    assert ending(short, PROCESS.schedule, GREY_LEVEL) is short
    with pytest.raises(ValueError, match="choose a later end"):
        ending(short, PROCESS.schedule, -14.0)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (image_set(), {"count": 1}, "at least 2 images"),
        (image_set(), {"count": 10}, "the count is from 1 to 9"),
        (image_set(), {"batch_size": 0}, "batch_size is a whole number from 1"),
        (image_set(labels=False), {}, "knows 3 classes"),
        (image_set(size=4), {}, r"images of \(1, 8, 8\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        judged(model, images, **options)


@dataclass(frozen=True)
class Multistep(DDIM):
    """A step with noise and a history: it keeps the forward law, but has no p(z_s | z_t)."""

    markovian = True


@pytest.mark.parametrize("kind", [DDIM, Multistep])
def test_a_step_without_a_kernel_is_refused(model, kind):
    for measured in (bits_per_dimension, fit_variance):
        with pytest.raises(ValueError, match="Use the ancestral one"):
            measured(Drawer(model, kind(model.process), StepPlan.uniform(4)), image_set(), count=9)


def test_a_model_of_other_steps_alone_has_no_bound(run, model, tmp_path, monkeypatch, capsys):
    """A consistency model is refused as what it is, with no word of a sampler that nobody named."""
    method = ConsistencyConfig(steps=4)
    experiment = replace(model.experiment, networks=OneNetwork(NET), method=method)
    networks, denoiser = experiment.build()
    few = replace(model, experiment=experiment, networks=networks, denoiser=denoiser)
    drawer = Drawer(few, DDIM(few.process), StepPlan.uniform(4))
    with pytest.raises(ValueError, match="was made for ddim alone, which has no likelihood"):
        bits_per_dimension(drawer, image_set(), count=9)
    write_experiment(tmp_path / "few", experiment)
    checkpoint.save(tmp_path / "few" / "checkpoints", 1, {"model": networks.state_dict()}, {"iteration": 1})
    assert command(tmp_path / "few", monkeypatch, "--num", 4) == 2
    assert "dualrate: few was made for ddim alone" in capsys.readouterr().err


def command(run, monkeypatch, *options) -> int:
    monkeypatch.setenv("DUALRATE_CACHE", str(run.parent / "cache"))
    monkeypatch.setattr("sys.argv", ["dualrate", "evaluate", *map(str, (run, "--bound", *options))])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_prints_terms_that_add_up(run, monkeypatch, capsys):
    assert command(run, monkeypatch, "--steps", 4, "--heavy", 2, "--num", 5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (len(found["images"]), found["num_steps"], found["num_heavy"]) == (5, 4, 2)
    assert found["sampler"] == "ancestral, fitted variance"
    terms = sum(found[term]["value"] for term in ("prior", "steps", "reconstruction"))
    assert found["total"]["value"] == pytest.approx(terms)
    assert command(run, monkeypatch, "--steps", 4, "--heavy", 2, "--num", 5) == 0
    shown = capsys.readouterr().out
    assert f"bound           {found['total']['value']:.3f} ± " in shown
    assert f"reconstruction  {found['reconstruction']['value']:.3f} ± " in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "ddim", "--heavy", 4], "ancestral"),
        (["--num", 1], "a count (--num) is 2 to 6"),
        (["--num", 7], "a count (--num) is 2 to 6"),
        (["--gamma", 0.5], "the variance of the steps is measured on training images: drop --gamma"),
        (["--batch-size", 0], "batch_size"),
    ],
)
def test_a_mistake_is_one_line(run, monkeypatch, capsys, options, message):
    assert command(run, monkeypatch, "--steps", 4, "--num", 5, *options) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert said[-1].startswith("dualrate: ")
