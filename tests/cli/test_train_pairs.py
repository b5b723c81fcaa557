"""`dualrate train auto --task pairs:SOURCE`, and what follows it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli.command import call
from PIL import Image

from dualrate.data.condition_rows import HeldOut
from dualrate.data.images import load_images, to_float
from dualrate.data.pairs import Pairs
from dualrate.diffusion.context import Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice
from dualrate.recipes import auto
from dualrate.runs.store import load
from dualrate.training.checkpoint import saved_paths

QUICK = ("--fit.batch-size", 4, "--fit.sample-every", 10)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with sharp/ and small/, pairs of 16 and 8 pixels; tiny is tinier."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    tier = replace(auto.TIERS["tiny"], conv=8, transformers=(None, 64), blocks=(1, 1), embedding=16)
    monkeypatch.setitem(auto.TIERS, "tiny", tier)
    rng = np.random.default_rng(0)
    for name, shape, kind in (("sharp", (16, 16, 3), "png"), ("small", (8, 8), "bmp")):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / name / f"{i}.{kind}")
    return tmp_path


def train(monkeypatch, *options) -> int:
    return call(monkeypatch, "train", "auto", "--size", "tiny", *QUICK, *options)


def folders(monkeypatch, iterations: int, out: str, *more) -> int:
    options = ("--data.source", "sharp", "--task", "pairs:small", "--data.augment.flip", "--out", out, *more)
    return train(monkeypatch, *options, "--fit.iterations", iterations)


def test_a_run_of_pairs_trains_resumes_and_is_drawn_from(here, monkeypatch, capsys):
    assert folders(monkeypatch, 2, "whole") == 0
    assert "each is made of a condition of 1 x 8 x 8 (C, H, W)" in capsys.readouterr().err
    for iterations in (1, 2):
        assert folders(monkeypatch, iterations, "parts") == 0
    assert "resuming at iteration 1" in capsys.readouterr().err
    ends = [saved_paths(here / out / "checkpoints")[-1] for out in ("whole", "parts")]
    whole, parts = ((end / "model.safetensors").read_bytes() for end in ends)
    assert whole == parts
    model = load(here / "whole")
    assert (model.experiment.name, model.experiment.condition) == ("sharp-pairs-small-tiny-dual", Pairs("small", 8, 1))
    assert isinstance(model.given, HeldOut)
    partners = Pairs("small", 8, 1).partners("sharp", "test", label=None, on_bad="fail")
    assert torch.equal(model.given(torch.tensor([0, 2, 4])), to_float(partners.images[np.array([0, 2, 1])]))
    originals = load_images("sharp", split="test").images[:]
    assert (model.given.originals(torch.arange(3)) == originals).all()
    assert call(monkeypatch, "sample", "whole", "--num", 2, "--members", 2, "--steps", 2, "--out", "drawn") == 0
    (here / "given").mkdir()
    (here / "small" / "3.bmp").rename(here / "given" / "3.bmp")
    sample = ("sample", "whole", "--given", "given", "--steps", 2)
    assert call(monkeypatch, *sample, "--members", 2, "--out", "own") == 0
    (here / "sharp" / "3.png").rename(here / "given" / "4.png")
    assert call(monkeypatch, *sample, "--out", "other") == 0  # of 16 x 16, resized as in training
    pictures = json.loads((here / "other" / "sample.json").read_text())["conditions"]
    assert [Path(picture).name for picture in pictures] == ["3.bmp", "4.png"]


def test_members_are_scored_where_no_features_can_be(here, monkeypatch, capsys):
    """A few images have no labels."""
    assert folders(monkeypatch, 1, "run") == 0
    capsys.readouterr()
    assert call(monkeypatch, "evaluate", "run", "--members", 2, "--num", 3, "--steps", 2, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ensemble"]["conditions"] == 3
    assert "no Frechet distance: " in said.err
    assert call(monkeypatch, "evaluate", "run", "--num", 3, "--steps", 2) == 2  # of one member
    assert call(monkeypatch, "evaluate", "run", "--members", 2, "--num", 3, "--steps", 2, "--details") == 2
    assert "drop --details" in capsys.readouterr().err


def test_pairs_that_would_show_different_parts_are_refused(here, monkeypatch, capsys):
    for file in (here / "small").iterdir():
        Image.open(file).resize((16, 8)).save(file)
    assert folders(monkeypatch, 1, "run") == 2
    assert "8 x 16 in small beside 16 x 16 in sharp" in capsys.readouterr().err
    assert not (here / "run").exists()


def test_pairs_that_moved_resume_and_other_partners_do_not(here, monkeypatch, capsys):
    assert folders(monkeypatch, 1, "run") == 0
    (here / "small").rename(here / "moved")
    options = ("--data.source", "sharp", "--data.augment.flip", "--out", "run", "--fit.iterations", 2)
    assert train(monkeypatch, *options, "--task", "pairs:moved") == 0
    Image.new("L", (8, 8)).save(here / "moved" / "1.bmp")
    capsys.readouterr()
    assert train(monkeypatch, *options, "--task", "pairs:moved") == 2
    assert "images: " in capsys.readouterr().err


def test_a_run_of_both_rates_trains_resumes_and_is_planned_and_drawn_from(here, monkeypatch, capsys):
    for iterations, out in ((2, "whole"), (1, "parts"), (2, "parts")):
        assert folders(monkeypatch, iterations, out, "--rate", "both") == 0
    ends = [saved_paths(here / out / "checkpoints")[-1] for out in ("whole", "parts")]
    assert ends[0].joinpath("model.safetensors").read_bytes() == ends[1].joinpath("model.safetensors").read_bytes()
    model = load(here / "whole")
    assert model.experiment.name == "sharp-pairs-small-tiny-both"
    assert (set(model.networks), model.denoiser.reuse) == ({"reader", "encoder", "light"}, Reuse.MARKOV)
    calls = model.call_cost
    budget = calls.shared(4).of(8, 2)
    assert budget < calls.of(8, 2)
    plan = ("--grid", 8, "--steps", 8, "--members", 4, "--budget", f"{budget / 1e9}gmacs", "--images", 2)
    assert call(monkeypatch, "plan", "whole", *plan) == 0
    capsys.readouterr()
    found = StepPlan.from_json((here / "plan.json").read_text())
    options = ("--plan", "plan.json", "--members", 4, "--json")
    assert call(monkeypatch, "cost", "whole", *options) == 0
    told = json.loads(capsys.readouterr().out)
    drawer = Choice(plan=found).drawer(model, members=4)
    assert told["macs_per_image"] == drawer.cost.macs <= budget
    assert told["macs_reading"] == calls.read
    many, one = (replace(drawer, members=m).draw(range(2)).images.astype(int) for m in (3, 1))
    assert np.abs(many[::3] - one).max() <= 1
    assert (
        call(monkeypatch, "sample", "whole", "--num", 2, "--members", 2, "--plan", "plan.json", "--out", "drawn") == 0
    )


def test_columns_train_and_a_missing_partner_ends_it(here, monkeypatch, capsys):
    read = {name: [file.read_bytes() for file in sorted((here / name).iterdir())] for name in ("sharp", "small")}
    pq.write_table(pa.table(read), here / "photos.parquet")
    options = ("--data.source", "photos.parquet#sharp", "--task", "pairs:photos.parquet#small", "--fit.iterations", 2)
    assert train(monkeypatch, *options, "--rate", "light", "--out", "run") == 0
    assert load(here / "run").experiment.name == "photos-parquet-sharp-pairs-photos-parquet-small-tiny-light"
    (here / "small" / "7.bmp").unlink()
    capsys.readouterr()
    assert folders(monkeypatch, 1, "none") == 2
    assert "small lacks 1 of the 30 images of sharp: 7" in capsys.readouterr().err
