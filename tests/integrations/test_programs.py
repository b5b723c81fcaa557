"""Networks as programs of torch.export: torch alone draws the same images with them, any number at a time."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from integrations import alone
from latents.folding import NoisyFolder
from runs.made import NET, ONE, TWO, saved

import dualrate as dr
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Refresh
from dualrate.experiment.network_configs import OneDecoder, TwoNetworks
from dualrate.integrations.programs import export_programs, programs_of
from dualrate.networks.uvit import Level
from dualrate.system.folders import Manifest

BATCHES = (2, 5, 7)
PLAN = dr.StepPlan.late(16, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Not to be changed."""
    heavy, light = (  # tracing takes time by operators
        dataclasses.replace(NET, levels=(level,)) for level in (Level("transformer", 16, 1), Level("conv", 8, 1))
    )
    return saved(dataclasses.replace(TWO, networks=TwoNetworks(heavy, light)), tmp_path_factory.mktemp("runs") / "two")


@pytest.fixture(scope="module")
def programs(run, tmp_path_factory):
    """Not to be changed. Some seconds: torch traces two networks, and first imports its compiler."""
    out = tmp_path_factory.mktemp("programs") / "out"
    export_programs(run, out, dr.Choice(plan=PLAN))
    return out


@pytest.fixture(scope="module")
def drawn(run):
    """Of every batch: (noise, labels, images)."""
    model, found = dr.load(run, note=lambda text: None), {}
    drawer = dr.Choice(plan=PLAN, sampler="ancestral").drawer(model, precision="float32")
    for count in BATCHES:
        seeds, draws = range(count), Draws(0, torch.arange(count))
        streams = ["start", *(f"step {i} draw 0" for i in range(PLAN.num_steps - 1))]
        noise = torch.stack([draws.normal(stream, *model.shape) for stream in streams])
        labels = drawer.labels(seeds)
        (images,) = dr.sample_batches(drawer.denoiser, drawer.step, drawer.plan, model.shape, seeds, labels)
        found[count] = noise, torch.tensor(labels), images
    return found


def test_images_drawn_in_torch_alone_are_the_same(programs, drawn):
    """16 steps, 4 of them heavy, 2 without a context."""
    assert (PLAN.num_steps, PLAN.num_heavy, PLAN.refresh.count(Refresh.NONE)) == (16, 4, 2)
    loaded = alone.programs(programs)
    for noise, labels, images in drawn.values():
        with torch.no_grad():
            torch.testing.assert_close(alone.draw(*loaded, noise, labels).float(), images, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_where_there_is_no_dualrate_too(programs, drawn, tmp_path):
    for count, (noise, labels, _) in drawn.items():
        np.savez(tmp_path / f"noise-{count}.npz", noise=noise.numpy(), label=labels.numpy())
    done = subprocess.run([sys.executable, alone.__file__, programs, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for count, (_, _, images) in drawn.items():
        found = torch.from_numpy(np.load(tmp_path / f"images-{count}.npy"))
        torch.testing.assert_close(found, images, rtol=0, atol=1e-5)


def test_a_folder_of_programs_says_how_they_are_called(programs):
    files = sorted(path.name for path in programs.iterdir())
    assert files == ["MANIFEST.json", "encoder.pt2", "light.pt2", "programs.json"]
    manifest = Manifest.read(programs, files[1:])
    assert manifest is not None
    index = json.loads((programs / "programs.json").read_text())
    assert dr.StepPlan.from_json(json.dumps(index["plan"])) == PLAN
    assert index["most_rows"] == {"encoder": 2**16, "light": 2**16}
    assert index["inputs"]["encoder"] == ["float32 (B, 1, 8, 8)", "float32 (B)", "int64 (B)"]
    for name in files[1:]:
        manifest.content(name)


@pytest.mark.slow
def test_a_model_of_one_network_is_one_program_for_any_batch():
    networks, denoiser = ONE.build()
    model = dr.Model("one", ONE, networks.eval(), denoiser, 0, "")
    ((role, (program, most)),) = programs_of(model).items()
    assert (role, most) == ("model", 2**16)
    for rows in (1, 3):
        z, log_snr, label = torch.randn(rows, 1, 8, 8), torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(z, log_snr, label), networks["model"](z, log_snr, label))


def test_a_decoder_has_no_programs(tmp_path):
    networks = OneDecoder(dataclasses.replace(NET, image_channels=3, num_classes=0), (12, 4, 4))
    method = dr.DenoisingConfig(latents=NoisyFolder("a folder", "f" * 64))
    decoder = saved(dataclasses.replace(ONE, networks=networks, method=method), tmp_path / "run")
    with pytest.raises(ValueError, match="is a decoder, which is given latents: export the model that draws them"):
        export_programs(decoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_programs_and_replaces_nothing_else(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "cat.jpg").write_text("mine")
    assert call(monkeypatch, "export", run, "--to", "torch-export", tmp_path) == 2
    assert "holds cat.jpg" in capsys.readouterr().err
    assert Path(tmp_path / "cat.jpg").read_text() == "mine"
