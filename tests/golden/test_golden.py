"""Files made before the house was rebuilt: each still loads, resumes and draws the same (tests/golden/golden.py)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from pipelines.stub_texts import encoders
from replay import GOLDEN, HERE, KILLED, drawer_of, drawn, forecast, images, link
from safetensors.torch import load_file

import dualrate as dr
from dualrate.forecasts import recipe as forecasts
from dualrate.report.image_grid import read_png
from dualrate.runs.store import load, read_experiment, read_stored
from dualrate.system.folders import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
DRAWN = dict(np.load(HERE / "images.npz"))
RUNS = sorted(file.parent.relative_to(HERE).as_posix() for file in HERE.rglob("experiment.json"))
EXPERIMENTS = sorted(file.relative_to(HERE).as_posix() for file in HERE.rglob("experiments/*.json"))
FRESH = """
import os, sys
import dualrate
from dualrate.runs.store import read_experiment

def reads(folder):
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    try:
        read_experiment(folder)
    except BaseException as error:
        print(folder, error)
        os._exit(1)
    os._exit(0)

sys.exit(not all([reads(folder) for folder in sys.argv[1:]]))
"""


@pytest.fixture(autouse=True)
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with GOLDEN, where texts are encoded by a stub and nothing was kept."""
    link(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", "cache")
    encoders(monkeypatch)


def as_run(file: str) -> Path:
    """Folder with nothing but this experiment."""
    folder = Path(file.replace("/", "-"))
    folder.mkdir()
    shutil.copyfile(GOLDEN / file, folder / "experiment.json")
    return folder


def check_drawn(samples: np.ndarray, name: str) -> None:
    """Compare up to rounding, since the file may be another machine's."""
    np.testing.assert_allclose(samples, DRAWN[name], rtol=0, atol=2e-4 * max(1.0, np.abs(DRAWN[name]).max()))


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_an_experiment_file_is_read_and_built(file: str) -> None:
    experiment = read_experiment(as_run(file))
    with torch.device("meta"):
        networks, _ = experiment.networks.build(experiment.process)
    assert sum(p.numel() for p in networks.parameters()) > 0


def test_every_class_is_known_where_dualrate_alone_was_imported() -> None:
    """Each file in a process of its own."""
    folders = [*map(as_run, EXPERIMENTS), *(GOLDEN / run for run in RUNS)]
    read = subprocess.run([sys.executable, "-c", FRESH, *map(str, folders)], capture_output=True, text=True)
    assert read.returncode == 0, read.stdout + read.stderr


@pytest.mark.parametrize("name", DRAWN)
def test_a_run_draws_the_same(name: str) -> None:
    check_drawn(drawn(name), name)


@pytest.mark.parametrize("run", ["single", "dual"])
def test_a_run_of_an_earlier_version_is_the_same_run(run: str) -> None:
    """All that decides what it draws is as in today's run, and so are its images."""
    earlier, now = load(GOLDEN / "earlier" / run), load(GOLDEN / run)
    assert (earlier.experiment.drawing, earlier.identity) == (now.experiment.drawing, now.identity)


def test_what_an_earlier_recipe_began_goes_on_by_the_command_to_the_same_bits(monkeypatch, capsys) -> None:
    """Its experiment, and the checkpoint's, lack the fields that came later: poles, forcings, frames a second."""
    fit = dr.FitConfig(2, batch_size=2, log_every=1, precision="float32")
    monkeypatch.setitem(forecasts.TIERS, "tiny", forecasts.ForecastTier((4, 4), (1, 1), fit, embedding=4))
    began = Path(shutil.copytree(GOLDEN / "earlier" / "begun", "began"))
    assert not any(name in (began / "experiment.json").read_text() for name in ("poles", "externals", "fps"))
    words = ["--data.source", GOLDEN / "fields.npz", "--frames", 2, "--fit.optim.decay", "none", "--fit.iterations", 2]
    for out in (began, Path("whole")):
        assert call(monkeypatch, "train", "forecast", *words, "--out", out) == 0
    assert "resuming at iteration 1" in capsys.readouterr().err
    resumed, whole = (load_file(next(out.glob("checkpoints/*2/model.safetensors"))) for out in (began, Path("whole")))
    for name, weight in whole.items():  # the first iteration may have been another machine's: up to rounding
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("run", [run for run in KILLED if run != "dual"])
def test_a_forecast_that_was_killed_goes_on_to_the_same_frames(run: str) -> None:
    out = Path(shutil.copytree(GOLDEN / f"killed-{run}", "out"))
    before = np.load(out / "forecast.npy")
    rest = forecast(run, out)
    assert 0 < rest.drawn < before[..., 0, 0, 0].size
    check_drawn(rest.x, run)
    assert np.array_equal(rest.x[0], before[0])  # which was whole
    assert forecast(run, out).drawn == 0


def test_samples_that_were_killed_go_on_to_the_same_images() -> None:
    out = Path(shutil.copytree(GOLDEN / "killed-dual", "out"))
    before = {file.name: file.read_bytes() for file in out.glob("*.png")}
    rest = images("dual", out)
    assert (len(before), rest.drawn) == (4, 2)
    assert all((out / name).read_bytes() == content for name, content in before.items())
    whole = drawer_of(load(GOLDEN / "dual")).draw(range(6)).images
    np.testing.assert_allclose(np.stack([read_png(file) for file in rest.files]).astype(int), whole, atol=1)


@pytest.mark.parametrize("path", ["dualrate.integrations.diffusers", "dualrate.pipelines.export"])
@pytest.mark.parametrize("saved", [GOLDEN / "pipeline", GOLDEN / "earlier" / "pipeline"], ids=str)
def test_a_pipeline_loads_and_draws_as_its_run(saved: Path, path: str, tmp_path: Path) -> None:
    """By the class at the path that stands in its files, of every place where it has been."""
    pytest.importorskip("diffusers")
    from dualrate.pipelines.export import DualRatePipeline

    folder = Path(shutil.copytree(saved, tmp_path / "pipeline"))
    names = ["model_index.json", "pipeline.py"]
    for file in (folder / name for name in names):
        content = file.read_text()
        assert "dualrate.integrations.diffusers" in content
        file.write_text(content.replace("dualrate.integrations.diffusers", path))
    Manifest.write(folder, names)
    pipeline = DualRatePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    pictures = pipeline(class_labels=1, num_inference_steps=4, num_heavy=2, generator=seeds, output_type="np").images
    drawer = replace(dr.Choice(steps=4, heavy=2).drawer(load(GOLDEN / "dual")), label=1, precision="float32")
    np.testing.assert_allclose(pictures.transpose(0, 3, 1, 2), drawer.draw([0, 1]).images / 255, atol=1 / 255)


@pytest.mark.parametrize("name", sorted(path.name for path in (HERE.parents[1] / "weights").iterdir()))
def test_released_weights_load(name: str) -> None:
    assert read_stored(HERE.parents[1] / "weights" / name).model().iteration > 0
