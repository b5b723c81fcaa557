"""A model of latents, from its cache to its images: trained, drawn, counted, scored; what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from latents.autoencoders import autoencoder, photos, saved
from PIL import Image
from reader import commands
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dualrate as dr
from dualrate.cli import main
from dualrate.codecs.codec import CodecFolder, NoCodec, round_trip
from dualrate.data.images import load_images, to_float, to_uint8
from dualrate.diffusion.random import Draws
from dualrate.drawing.cost import cost_report
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.measure import measure
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment, on_codec_of_data
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.evaluate import Evaluator, class_weights
from dualrate.metrics.features import Architecture, Card, FeatureNet
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.options.training import Run
from dualrate.recipes.auto import Auto
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.cost import macs_of
from dualrate.sampling.trajectory import sample_batches
from dualrate.system.folders import Manifest
from dualrate.training.config import FitConfig

PAGE = Path(__file__).parent.parent.parent / "docs" / "latents.md"
NET = UViTConfig(8, 4, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
FIT = FitConfig(iterations=2, batch_size=4, precision="float32", sample_every=2, checkpoint_every=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec, images, and their latents as the command makes them."""
    root = tmp_path_factory.mktemp("latent")
    images = photos(80)
    np.savez(root / "images.npz", images=images.transpose(0, 2, 3, 1), labels=np.arange(80) % 3)
    saved(root / "vae", images)
    with pytest.MonkeyPatch.context() as patch:
        arguments = ("--codec", root / "vae", "--batch-size", 40, "--device", "cpu")
        assert call(patch, "data", "encode", root / "images.npz", root / "latents", *arguments) == 0
    return root


@pytest.fixture(scope="module")
def experiment(root: Path) -> Experiment:
    method = DenoisingConfig(times=TimeSampler())
    data = DataConfig(str(root / "latents"))
    return on_codec_of_data(Experiment("latent", TwoNetworks(NET, NET), method, FIT, data))


@pytest.fixture(scope="module")
def run(root: Path, experiment: Experiment) -> Path:
    dr.train(experiment, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def drawer(run: Path) -> Drawer:
    model = load(run)
    return Drawer(model, Ancestral(model.process), dr.StepPlan.uniform(4, 2), batch_size=2, precision="float32")


def test_training_knows_latents_and_shows_images(run: Path, experiment: Experiment, root: Path) -> None:
    assert experiment.codec == CodecFolder.at(root / "vae")
    (grid,) = (run / "samples").iterdir()
    assert grid.name == "0000002.png"
    stopped = replace(experiment, fit=replace(FIT, iterations=1))
    dr.train(stopped, root / "stopped")
    dr.train(experiment, root / "stopped")
    one, other = (load(path).networks.state_dict() for path in (run, root / "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_are_decoded_latents(drawer: Drawer) -> None:
    images = drawer.draw(range(3, 6)).images
    assert images.shape == (3, 3, 16, 16)
    model = drawer.model
    assert (model.shape, model.image_shape) == ((4, 8, 8), (3, 16, 16))
    z = torch.cat(list(sample_batches(model.denoiser, drawer.step, drawer.plan, model.shape, range(3, 6), [0, 1, 2])))
    expected = to_uint8(model.codec.decode(z, Draws(0, torch.arange(3, 6))))
    assert np.abs(images.astype(int) - expected.numpy()).max() <= 1


def test_an_images_cost_is_its_calls_and_its_decoding(drawer: Drawer) -> None:
    cost = drawer.cost
    decode = cost.calls.decode
    assert decode > 0
    assert cost.macs == cost.heavy_calls * cost.calls.heavy + cost.light_calls * cost.calls.light + decode
    assert 4 * cost.macs == pytest.approx(macs_of(lambda: drawer.draw(range(4))), rel=0.01)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # torch counts this attention too
        drawer.draw(range(4))
    assert 4 * cost.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert drawer.model.call_cost.of(4, 2) == pytest.approx(cost.macs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualrate.drawing.cost.seconds_per_call", lambda call, **how: float(call() is not None))
        report = cost_report(drawer)
    assert (report["macs_decode"], report["seconds_decode"]) == (decode, 1.0)


def test_the_floor_is_what_the_codec_lets_through(drawer: Drawer, root: Path) -> None:
    kind = Architecture(3, 16, 2, features=4)
    module = kind.build()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    net = FeatureNet(Card("noise", "0" * 64, kind, "", None, 0, 1), module.eval().requires_grad_(False))
    train, test = (load_images(root / "images.npz", split=split) for split in ("train", "test"))
    score = measure(drawer, range(9), Evaluator(net, train, test)).row.score
    back = to_uint8(round_trip(drawer.model.codec, to_float(test.images[:]), Draws(0, torch.arange(len(test)))))
    through, reference, held = (
        GaussianStats.of(net.features(one)) for one in (back.numpy(), train.images, test.images)
    )
    weights = class_weights(test, torch.arange(len(test)), train)
    alike = GaussianStats.of(net.features(back.numpy()), weights)
    assert score.floor == pytest.approx(frechet_distance(alike, reference), rel=1e-3)
    rfd = float(score.note.split("rFD ")[1].split()[0])
    assert rfd == pytest.approx(frechet_distance(through, held), rel=1e-3)
    assert score.floor != pytest.approx(Evaluator(net, train, test).floor(9)[0], rel=1e-2)


def test_the_commands_take_a_latent_run(run: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    quick = ("--steps", 2, "--heavy", 1, "--device", "cpu")
    assert call(monkeypatch, "sample", run, "--num", 2, *quick, "--out", root / "drawn") == 0
    assert call(monkeypatch, "sample", run, "--num", 2, *quick, "--out", root / "drawn") == 0  # all there
    assert call(monkeypatch, "export", run, "--out", root / "released") == 0
    assert "16 x 16, 3 channels" in (root / "released" / "README.md").read_text()
    assert call(monkeypatch, "data", "verify", root / "latents") == 0
    capsys.readouterr()
    code = call(monkeypatch, "data", "codec", root / "vae", "--data", root / "images.npz", "--num", 32, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (code, found["images"]) == (0, 32)
    assert call(monkeypatch, "data", "codek") == 2


def test_auto_fits_latents(root: Path) -> None:
    made = Auto(DataConfig(str(root / "latents")), "tiny")()
    assert (made.shape, made.num_classes) == ((4, 8, 8), 3)
    assert made.codec == CodecFolder.at(root / "vae")


def test_what_does_not_belong_together_is_refused(
    run: Path, root: Path, experiment: Experiment, tmp_path: Path
) -> None:
    pixels = replace(experiment, data=DataConfig(str(root / "images.npz")))
    for wrong, message in (
        (replace(experiment, codec=NoCodec()), r"is latents by the codec .*, and latent is trained on a set of"),
        (replace(experiment, codec=CodecFolder("x", "0" * 64)), "is trained on latents by the codec 000000000000"),
        (pixels, "is a set of pictures, and latent is trained on latents"),
        (replace(experiment, networks=TwoNetworks(*2 * [replace(NET, image_channels=3)])), r"images of \(4, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dr.train(wrong, tmp_path / "run")
    write_experiment(run, experiment)
    autoencoder("kl").save_pretrained(root / "other")
    moved = replace(
        load(run), experiment=replace(experiment, codec=replace(experiment.codec, folder=str(root / "other")))
    )
    with pytest.raises(ValueError, match="is another one"):
        Drawer(moved, Ancestral(moved.process), dr.StepPlan.uniform(4, 2)).draw([0])


def test_a_codec_that_was_moved_is_the_same_run(run: Path, root: Path, experiment: Experiment, drawer: Drawer) -> None:
    shutil.copytree(root / "vae", root / "moved")
    moved = drawer.model.with_codec(root / "moved")
    assert replace(drawer, model=moved).origin("") == drawer.origin("")
    assert (replace(drawer, model=moved).draw([0]).images == drawer.draw([0]).images).all()
    assert pickle.loads(ForkingPickler.dumps(moved)).experiment.codec.folder == str(root / "moved")
    assert "codec" not in replace(experiment, codec=NoCodec()).identity
    with pytest.raises(ValueError, match="is another one"):
        _ = drawer.model.with_codec(root / "other").image_shape
    pixels = replace(drawer.model, experiment=replace(experiment, codec=NoCodec()))
    with pytest.raises(ValueError, match="drop the codec"):
        pixels.with_codec(root / "vae")
    assert pixels.with_codec(None) is pixels


def test_training_goes_on_where_its_latents_and_their_codec_were_moved(
    root: Path, run: Path, experiment: Experiment, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(root / "latents", tmp_path / "latents")
    made = tmp_path / "latents" / "dataset.json"
    made.write_text(made.read_text().replace(str(root / "vae"), str(root / "gone")))
    Manifest.write(tmp_path / "latents", list(Manifest.read(tmp_path / "latents", ()).entries))
    shutil.copytree(root / "vae", tmp_path / "vae")
    here = replace(
        experiment, data=DataConfig(str(tmp_path / "latents")), fit=replace(FIT, iterations=3), codec=NoCodec()
    )
    with pytest.raises(ValueError, match=r"gone holds no codec.*name its new place \(--codec\)"):
        Run(out=tmp_path / "run", device="cpu").train(here)
    assert Run(out=tmp_path / "run", device="cpu", codec=tmp_path / "vae").train(here).iteration == 3
    assert load(tmp_path / "run").experiment.codec.folder == str(tmp_path / "vae")


def test_the_commands_of_the_page_are_commands(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding runs; what comes after it is read, and the training's networks are made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae").symlink_to(root / "vae")
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(photos(20, 40)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "photos" / f"{i}.png")
    check, encode, train, *others = [words[1:] for words in commands(PAGE)]
    assert call(monkeypatch, *check[:-1], 16, "--device", "cpu") in (0, 1)  # of other images than it was made for
    assert call(monkeypatch, *encode[:-4], "--size", 16, "--device", "cpu") == 0
    experiment = main.parsed(train).experiment
    assert (experiment.shape, experiment.networks.single_rate) == ((4, 8, 8), True)
    assert [(type(command).__name__, command.sampling.heavy) for command in map(main.parsed, others)] == [
        ("Sample", None), ("Cost", None)
    ]  # fmt: skip
    assert encode[-4:] == ["--size", "64", "--nproc", "2"]
