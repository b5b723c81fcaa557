"""Latents that a model draws for decoders: the same for all of them, kept as they are drawn, compared on, refused."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from latents.autoencoders import photos
from latents.folding import LOG_SNR, NoisyFolder
from metrics.untrained import untrained
from runs.made import saved_random

import dualrate as dr
from dualrate.cli.main import main
from dualrate.compare import measure as comparing
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Cond
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.latents import FIRST, draw_latents, nearness
from dualrate.experiment.experiment import Experiment, Model
from dualrate.experiment.network_configs import OneDecoder, TwoDecoders
from dualrate.methods.denoising import DenoisingConfig
from dualrate.metrics.features import Architecture
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import load
from dualrate.sampling.trajectory import rollout
from dualrate.training.config import FitConfig

LATENT = (12, 8, 8)
NET = UViTConfig(16, 3, (Level("conv", 8, 1), Level("transformer", 16, 2)), patch=2, embedding=16, head_dim=16)
LIGHT = replace(NET, levels=(Level("conv", 4, 1), Level("conv", 8, 1)))
BASE = replace(NET, image_size=8, image_channels=12, num_classes=2)
COUNT = 16
PROCESS = NoisyEnd(Cosine(log_snr_max=LOG_SNR))


CODEC, OTHER = NoisyFolder("a folder", "f" * 64), NoisyFolder("another", "e" * 64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights: decoders `heavy`, `dual` and `other`, of another codec; `base` of latents; a feature net."""
    tmp_path = tmp_path_factory.mktemp("runs")
    np.savez(tmp_path / "images.npz", images=photos(40).transpose(0, 2, 3, 1))
    data = dr.DataConfig(str(tmp_path / "images.npz"))

    def write(name: str, networks: object, method: DenoisingConfig, **more: object) -> None:
        one = Experiment(name, networks, method, FitConfig(iterations=1), data, **more)
        saved_random(one, tmp_path / name, seed=len(name))

    given = DenoisingConfig(latents=CODEC)
    write("heavy", OneDecoder(NET, LATENT), given)
    write("dual", TwoDecoders(NET, LIGHT, LATENT), given)
    write("other", OneDecoder(LIGHT, LATENT), DenoisingConfig(latents=OTHER))
    write("base", dr.OneNetwork(BASE), DenoisingConfig(), codec=CODEC, process=PROCESS)
    small = replace(BASE, image_size=4)
    write("small", dr.OneNetwork(small), DenoisingConfig(), codec=CODEC, process=PROCESS)
    untrained(Architecture(3, 16, 2, features=4), "noise net").save(tmp_path / "net")
    return tmp_path


@pytest.fixture
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, in the current directory."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparing, "BATCH", 2)
    monkeypatch.setattr(comparing, "CALLING", 0.001)
    return tmp_path


@pytest.fixture
def dualrate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command, called with these arguments."""

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dualrate", *arguments])
        main()

    return call


def drawer_of(model: Model, steps: int = 3) -> Drawer:
    return Choice(steps, sampler="ancestral").drawer(model, batch_size=4, precision="float32")


def test_latents_are_what_the_model_draws_of_seeds_that_no_image_has(here: Path) -> None:
    """The numbers of z_1 are none of those that a decoder's image starts from."""
    drawer = drawer_of(load("base"))
    found = draw_latents(drawer, 7, here / "kept")
    seeds = range(FIRST, FIRST + 7)
    how = {"label": [seed % 2 for seed in range(7)], "batch_size": 7}
    (z_0,) = dr.sample_batches(drawer.denoiser, drawer.step, drawer.plan, LATENT, seeds, **how)
    torch.testing.assert_close(found.z_0, z_0)
    assert found.macs == 3 * load("base").call_cost.light
    assert found.codec == CODEC.fingerprint
    assert found.drawn_by == "base (ancestral, 3 steps)"
    own = Draws(0, torch.arange(7)).normal("start", *NET.shape)[:, :, 0, 0]
    begin = Draws(0, torch.tensor(seeds)).normal("start", *LATENT)[:, :3, 0, 0]
    assert (own - begin).abs().min() > 1e-4


def test_they_are_drawn_once_and_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualrate.drawing.latents.SHARD", 4)
    drawer, whole = drawer_of(load("base")), draw_latents(drawer_of(load("base")), 12, here / "whole")
    draw, seen = Drawer.states, []

    def killed(self: Drawer, seeds: list[int]):
        seen.append(list(seeds))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return draw(self, seeds)

    monkeypatch.setattr(Drawer, "states", killed)
    with pytest.raises(KeyboardInterrupt):
        draw_latents(drawer, 12, here / "kept")
    again = draw_latents(drawer, 12, here / "kept")
    assert [seed - FIRST for part in seen for seed in part] == [*range(12), *range(8, 12)]
    assert torch.equal(again.z_0, whole.z_0)
    assert again.digest == whole.digest
    assert torch.equal(draw_latents(drawer, 5, here / "kept").z_0, whole.z_0[:5])
    assert len(seen) == 4
    other = draw_latents(drawer_of(load("base"), 2), 5, here / "kept")
    assert other.digest != draw_latents(drawer, 5, here / "kept").digest != whole.digest


def test_seed_i_of_a_decoder_is_an_image_of_latent_i(here: Path) -> None:
    latents = draw_latents(drawer_of(load("base")), 5, here / "kept")
    model = load("dual")
    drawer = drawer_of(model.with_latents(latents), 4)
    noise = Draws(0, torch.arange(3, 7)).normal("start", *NET.shape)
    step = replace(drawer, step=dr.DDIM(model.process))
    with torch.no_grad():
        cond = Cond(z_0=latents.z_0[[3, 4, 0, 1]])  # counted round
        x = rollout(model.denoiser, step.step, step.plan, noise, cond, lambda i, j: noise)
    torch.testing.assert_close(next(step.states(range(3, 7))), x)
    assert nearness(drawer, range(3)) is None  # there is no image that it should be near to
    assert nearness(drawer_of(model), range(3)) is not None
    assert drawer.origin("net").digest != drawer_of(model, 4).origin("net").digest


def test_decoders_are_compared_on_them(
    here: Path, dualrate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compare", "heavy:2@ddim", "dual:2@ddim", "--latents-by", "base", "--features", "net"]
    command += ["--screen", "10", "--count", str(COUNT), "--device", "cpu"]
    dualrate(*command)
    found = json.loads((here / "report.json").read_text())
    base = Choice().drawer(load("base"))
    macs = base.plan.num_steps * load("base").call_cost.light
    drawn_by, weights = f"base ({base.sampler}, 32 steps)", load("base").weights_hash
    given = {"drawn_by": drawn_by, "weights": weights, "count": COUNT, "macs": macs, "codec": CODEC.fingerprint}
    assert given.items() <= found["latents"].items()
    assert {row["latents_by"] for row in found["front"]} == {drawn_by}
    assert [row["network"] for row in found["front"]] == ["heavy", "dual"]
    assert all("psnr" not in row for row in found["front"])
    page = (here / "report.html").read_text()
    assert f"Images of {COUNT} latents drawn by {drawn_by}, so distances are gFDs." in page
    kept = sorted(path for path in (here / "report.cells").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in kept]
    monkeypatch.setattr("dualrate.compare.comparison.compare_page", lambda results: "")  # figures take their time
    dualrate(*command)
    assert [path.stat().st_mtime_ns for path in kept] == times  # all of it was there
    left_out = ("--latents-by", "base", "heavy:2@ddim")
    dualrate(*(word for word in command if word not in left_out), "--out", "held-out.html")
    other = json.loads((here / "held-out.json").read_text())
    assert "latents" not in other
    assert all("psnr" in row for row in other["front"])
    (scored,), (held_out,) = (
        [row["value"] for row in one["front"] if row["network"] == "dual"] for one in (found, other)
    )
    assert scored != held_out


def test_workers_are_given_them_too(here: Path) -> None:
    latents = draw_latents(drawer_of(load("base")), 12, here / "kept")
    drawer = drawer_of(load("dual").with_latents(latents), 4)
    again = pickle.loads(bytes(ForkingPickler.dumps(drawer)))
    assert again.model.weights_hash == drawer.model.weights_hash
    assert torch.equal(next(again.states(range(4))), next(drawer.states(range(4))))


@pytest.mark.parametrize(
    ("entries", "by", "says"),
    [
        (["base:3"], "base", "base is no decoder, and what is to be drawn is of ffffffffffff"),
        (["other:3"], "base", "other decodes latents of the codec eeeeeeeeeeee, and what is to be drawn is of fff"),
        (["heavy:3"], "heavy", "decodes latents of the codec ffffffffffff, and what is to be drawn is pixels"),
        (["heavy:3"], "nowhere", "nowhere"),
        (["heavy:3", "dual:8/3@ddim"], "base", "so there are 8 heavy calls, not 3"),
        (["heavy:3"], "small", "heavy decodes latents (12, 8, 8) (C, h, w), those to be drawn are (12, 4, 4)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    here: Path,
    dualrate: Callable[..., None],
    entries: list[str],
    by: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        dualrate("compare", *entries, "--latents-by", by, "--features", "net", "--screen", "10", "--count", str(COUNT))
    assert says in capsys.readouterr().err
    assert not list(here.rglob("latents-*"))
