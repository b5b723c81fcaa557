"""The public names together: what one gives, each of the others takes or refuses in a sentence; whatever the caller
set as torch's defaults.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dualrate as dr
from dualrate.data.images import to_uint8
from dualrate.diffusion.schedule import Cosine
from dualrate.system.progress import Silent

LEVELS = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1))
NET = dr.UViTConfig(image_size=8, image_channels=1, levels=LEVELS, num_classes=2, embedding=16, head_dim=16)
KINDS = {
    "one": (dr.OneNetwork(NET), dr.DenoisingConfig()),
    "two": (dr.TwoNetworks(NET, NET), dr.DenoisingConfig(dr.TimeSampler(heavy=(1, 4)))),
}
STEPS = (dr.Ancestral, dr.DDIM, lambda process: dr.SDEDPMSolver2M(process, gamma=0.1))


def experiment(root: Path, kind: str, **fit) -> dr.Experiment:
    fit = dr.FitConfig(iterations=1, batch_size=8, precision="float32", **fit)
    return dr.Experiment(kind, *KINDS[kind], fit, dr.DataConfig(str(root / "images.npz")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images, and a run of each kind, one of them released too."""
    root = tmp_path_factory.mktemp("public")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(64) % 2)
    for kind in KINDS:
        dr.train(experiment(root, kind), root / kind, progress=Silent())
    dr.export(root / "two", root / "released")
    return root


@pytest.fixture(scope="module")
def models(root):
    return {name: dr.load(root / name) for name in (*KINDS, "released")}


def drawn(model: dr.Model, plan: dr.StepPlan, label=(0, 1, 0), seeds=range(3), **how):
    return dr.sample_batches(model.denoiser, dr.Ancestral(model.process), plan, model.shape, seeds, label, **how)


def test_every_kind_of_images_is_saved_as_the_same_grid(root, models, tmp_path):
    model, plan = models["two"], dr.StepPlan.uniform(2, 1)
    (floats,) = drawn(model, plan, (0, 1, 0))
    drawer = dr.Drawer(model, dr.Ancestral(model.process), plan, precision="float32")
    pixels = drawer.draw(range(3)).images
    assert np.array_equal(to_uint8(torch.cat(list(drawer.states(range(3))))), pixels)
    kinds = {
        "uint8": to_uint8(floats).numpy(),
        "tensor of uint8": to_uint8(floats),
        "floats": floats,
        "with a gradient": floats.clone().requires_grad_(),
        "array of floats": floats.numpy(),
        "float64": floats.double(),
        "batches": drawn(model, plan, batch_size=2),
        "list": list(floats.split(1)),
        "a training set's": dr.load_images(root / "images.npz", split="train").images[:3],
    }
    for name, images in kinds.items():
        dr.save_grid(images, tmp_path / f"{name}.png", columns=3)
    found = {name: np.asarray(Image.open(tmp_path / f"{name}.png")) for name in kinds}
    for k in range(3):
        assert np.array_equal(found["uint8"][:, 10 * k : 10 * k + 8], to_uint8(floats)[k, 0])
    for name in set(kinds) - {"uint8", "a training set's"}:
        assert np.array_equal(found[name], found["uint8"]), name
    real = kinds["a training set's"]
    assert np.array_equal(found["a training set's"][:, :8], real[0, 0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8), np.uint8), r"\(N, C, H, W\) of 1 or 3 channels, got \(1, 8, 8\)"),
        (torch.zeros(2, 4, 8, 8), "decode latents first"),
        (torch.zeros(0, 1, 8, 8), r"got \(0, 1, 8, 8\)"),
        (np.zeros((2, 1, 8, 8), int), "uint8, or floats in .* got torch.int64"),
        (torch.full((1, 1, 8, 8), torch.nan), "not finite"),
        ([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], "batches of one shape"),
        ([], "got list"),
        ("images.npy", "got str"),
        (dr.Drawer, "got type"),
    ],
)
def test_what_is_no_grid_of_images_is_refused(images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dr.save_grid(images, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_a_result_that_holds_images_says_where(root, tmp_path):
    with pytest.raises(ValueError, match="got ImageSet: pass the images that it holds"):
        dr.save_grid(dr.load_images(root / "images.npz", split="train"), tmp_path / "grid.png")


def test_every_plan_goes_with_every_model_and_every_step(models):
    """Reused contexts want Markovian steps, which is said."""
    choice = dr.Choice(steps=2, heavy=1)
    plans = [
        dr.StepPlan.uniform(2, 1),
        dr.StepPlan.uniform(2),
        dr.StepPlan.at(2, [0]),
        dr.StepPlan.from_json(dr.StepPlan.uniform(2, 1).to_json()),
        choice.step_plan(models["two"]),
        choice.drawer(models["two"]).plan,
        dr.Choice(steps=2).settled(models["one"]).plan,
    ]
    for kind, plan, made in itertools.product(KINDS, plans, STEPS):
        model = models[kind]
        step = made(model.gaussian)
        if plan.num_heavy < 2 and isinstance(step, dr.DDIM) and model.denoiser.reuse is dr.Reuse.MARKOV:
            with pytest.raises(ValueError, match="Use Ancestral"):
                dr.Drawer(model, step, plan).draw(range(1))
            continue
        drawer = dr.Drawer(model, step, plan, guidance=dr.Guidance(1.5), label=1, precision="float32")
        images = drawer.draw(range(1)).images
        (x,) = dr.sample_batches(drawer.denoiser, drawer.step, drawer.plan, model.shape, range(1), [1])
        assert np.array_equal(to_uint8(x), images)


def test_labels_and_seeds_are_taken_from_whatever_holds_them(root, models):
    model, plan = models["two"], dr.StepPlan.uniform(2, 1)
    (expected,) = drawn(model, plan, [0, 1, 0])
    own = dr.load_images(root / "images.npz", split="train").labels
    zero, one = (own[own == label][0] for label in (0, 1))
    drawer = dr.Drawer(model, dr.Ancestral(model.process), plan)
    for label in ((0, 1, 0), np.array([0, 1, 0]), torch.tensor([0, 1, 0]), [zero, one, zero], drawer.labels(range(3))):
        assert torch.equal(next(drawn(model, plan, label)), expected)
    for seeds in ([0, 1, 2], np.arange(3), torch.arange(3)):
        assert torch.equal(next(drawn(model, plan, seeds=seeds)), expected)
        assert np.array_equal(drawer.draw(seeds).images, drawer.draw(range(3)).images)
    assert dr.Drawer(model, drawer.step, plan, label=one).labels(range(2)) == [1, 1]


@pytest.mark.parametrize("label", [3, -1, 0.5, "cat"])
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_a_label_that_the_networks_do_not_know_is_refused(models, label, weight):
    """2 is the null class. Under a guided denoiser too, whose networks are within another."""
    model, plan = models["two"], dr.StepPlan.uniform(2, 1)
    drawer = dr.Drawer(model, dr.Ancestral(model.process), plan, dr.Guidance(weight), precision="float32")
    denoiser = drawer.denoiser
    args = (denoiser, dr.Ancestral(model.process), plan, model.shape, [0, 1])
    with pytest.raises(ValueError, match=f"labels that these networks know are 0 to 2, got {label!r}"):
        next(dr.sample_batches(*args, label=[0, label]))
    next(dr.sample_batches(*args, label=[0, 2]))


def test_labels_of_networks_without_classes_are_refused():
    networks = dr.OneNetwork(dr.UViTConfig(image_size=8, image_channels=1, levels=LEVELS, embedding=16, head_dim=16))
    made = dr.Experiment("none", networks, dr.DenoisingConfig(), dr.FitConfig(iterations=1))
    step, plan = dr.Ancestral(made.process), dr.StepPlan.uniform(1)
    with pytest.raises(ValueError, match="are none, got 0"):
        next(dr.sample_batches(made.build()[1], step, plan, made.shape, [0], [0]))


def test_a_step_of_another_process_is_refused(models):
    model, plan = models["one"], dr.StepPlan.uniform(2)
    step = dr.Ancestral(dr.GaussianProcess(Cosine(shift=-2.0)))
    with pytest.raises(ValueError, match="the denoiser's process"):
        next(dr.sample_batches(model.denoiser, step, plan, model.shape, [0], [0]))
    with pytest.raises(ValueError, match="the denoiser's process"):
        dr.Drawer(model, step, plan).draw(range(1))


def test_models_go_on_as_experiments_and_drawn_images_as_data(models, tmp_path):
    model = models["two"]
    images = dr.Choice(steps=2, heavy=1).drawer(model).draw(range(16)).images
    np.savez(tmp_path / "drawn.npz", images=images.transpose(0, 2, 3, 1), labels=np.arange(16) % 2)
    data = dr.DataConfig(str(tmp_path / "drawn.npz"))
    again = dr.Experiment("again", model.experiment.networks, model.experiment.method, model.experiment.fit, data)
    assert dr.train(again, tmp_path / "again", progress=Silent()).iteration == 1
    path = dr.load(tmp_path / "again").path
    assert path is not None
    dr.export(path, tmp_path / "released")
    assert dr.load(tmp_path / "released").experiment == again


@contextmanager
def torch_defaults(dtype: torch.dtype = torch.float32, device: str | None = None):
    """Set the caller's defaults. Without a GPU whatever is made on `cuda:0` fails."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
        assert torch.get_default_dtype() == dtype
        assert torch.get_default_device() == torch.device(device or "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


CALLERS = {
    "float64": lambda: torch_defaults(torch.float64),
    "device": lambda: torch_defaults(device="cuda:0"),
    "within a device": lambda: torch.device("cuda:0"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def plain(root):
    return done(root, "plain")


def done(root: Path, name: str) -> list[Any]:
    """Return what training, loading, drawing and exporting come to."""
    made = experiment(root, "two", sample_every=1)
    out = root / f"under {name}"
    dr.train(made, out, progress=Silent())
    (saved,) = (out / "checkpoints").glob("*/model.safetensors")
    weights = load_file(saved, device="cpu")
    dr.export(out, root / f"released under {name}")
    model = dr.load(root / f"released under {name}")
    drawer = dr.Choice(steps=4, heavy=2).drawer(model, guidance=dr.Guidance(1.5), precision="float32")
    images = [drawer.draw(range(2)).images, *drawn(model, dr.StepPlan.uniform(2, 1), batch_size=2)]
    dr.save_grid(images[1], root / "grid.png")
    grids = [path.read_bytes() for path in (root / "grid.png", *(out / "samples").iterdir())]
    built = made.build()[0].state_dict()
    return [weights, built, model.networks.state_dict(), images, grids, drawer.cost.macs, drawer.expected_cost.macs]


@pytest.mark.parametrize("caller", CALLERS)
def test_what_the_caller_set_in_torch_changes_no_bit(root, plain, caller):
    with CALLERS[caller]():
        found = done(root, caller)
    for mine, expected in zip(found, plain, strict=True):
        if isinstance(expected, dict):
            assert {one.dtype for one in mine.values()} == {one.dtype for one in expected.values()}
            assert all(torch.equal(mine[name], one) for name, one in expected.items())
        elif isinstance(expected, list):
            assert all(np.array_equal(one, other) for one, other in zip(mine, expected, strict=True))
        else:
            assert mine == expected


@pytest.mark.parametrize("caller", ["float64", "device"])
def test_so_it_is_with_a_model_of_diffusers(caller, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    net = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    net.save_pretrained(tmp_path)

    def images(source) -> torch.Tensor:
        with pytest.warns(UserWarning, match="seems untrained"):
            denoiser = dr.from_diffusers(source, scheduler)
        return next(dr.sample_batches(denoiser, dr.DDIM(denoiser.process), dr.StepPlan.uniform(2), (1, 8, 8), range(2)))

    expected = images(net)
    with CALLERS[caller]():
        found = [images(source) for source in (net, tmp_path)]
    assert all(torch.equal(one, expected) for one in found)
