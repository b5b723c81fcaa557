"""The demo at a tiny scale: it trains, measures what is there, and goes on when it is called again."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from metrics.squares import two_classes
from metrics.untrained import untrained
from runs.made import saved_random

from dualrate.cli import demo
from dualrate.comparison import compare as comparison
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.metrics.features import Architecture
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import fashion_mnist
from dualrate.runs.store import load
from dualrate.system.progress import Silent
from dualrate.training.config import FitConfig, FitResult

NET = UViTConfig(12, 1, (Level("transformer", 16, 1),), 2, patch=4, embedding=16, head_dim=16)
PAIR = DenoisingConfig(times=TimeSampler((2, 4)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set, a feature net, two released models of three, and a recipe that trains for 6 iterations."""
    squares = two_classes(200)
    np.savez(tmp_path / "squares.npz", images=squares.images, labels=squares.labels)
    untrained(Architecture(1, 12, 2, features=8), "squares", 0.75).save(tmp_path / "net")
    data = DataConfig(str(tmp_path / "squares.npz"))
    saved_random(Experiment("heavy", OneNetwork(NET), DenoisingConfig(SingleTime()), FitConfig(1), data),
                 tmp_path / "weights/heavy")  # fmt: skip
    saved_random(Experiment("dual", TwoNetworks(NET, NET), PAIR, FitConfig(1), data), tmp_path / "weights/dual")
    fit = FitConfig(6, batch_size=8, log_every=2, precision="float32")
    monkeypatch.setattr(
        fashion_mnist,
        "first",
        lambda seconds: Experiment("first", OneNetwork(NET), DenoisingConfig(SingleTime()), fit, data),
    )
    monkeypatch.setattr(demo, "IMAGES", (("two", "dual", "4/2"), ("one", "heavy", "3"), ("gone", "nowhere", "2")))
    monkeypatch.setattr(demo, "compare", partial(comparison.compare, features=tmp_path / "net"))
    monkeypatch.setattr(comparison, "BATCH", 2)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_there_is_measured_beside_the_model_that_it_trained(place, monkeypatch, capsys):
    assert call(monkeypatch, "demo", "--count", "192") == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith("demo/report.html")
    assert "weights not found, so not measured: nowhere" in said.err
    assert "not measured: kuramoto-sivashinsky-dual, kuramoto-sivashinsky-large" in said.err
    rows = json.loads((place / "demo/images.json").read_text())["front"]
    assert {(row["network"], row["num_steps"], row["num_heavy"]) for row in rows} == {
        ("two", 4, 2),
        ("one", 3, 3),
    }
    page = (place / "demo/report.html").read_text()
    assert page.count("<img") == 3
    assert "Here there were 6." in page
    assert "The best plan of two rates is" in page
    assert "Trained here, in 2 minutes" in page
    features = {file: file.stat().st_mtime_ns for file in (place / "demo").rglob("*.safetensors")}
    assert call(monkeypatch, "demo", "--count", "192") == 0
    assert all(file.stat().st_mtime_ns == at for file, at in features.items())


def test_without_the_pair_of_forecasts_there_is_no_section_of_it(tmp_path, monkeypatch):
    (tmp_path / "kuramoto-sivashinsky-large").mkdir()
    (tmp_path / "kuramoto-sivashinsky-large" / "experiment.json").touch()
    monkeypatch.setattr(demo, "compare", lambda *of, **how: pytest.fail("nothing is measured"))
    assert not [*demo.Demo(weights=tmp_path, out=tmp_path / "out")._forecasts(Silent())]


def test_forecasts_are_shown_with_the_memory_of_their_members(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "GOLDEN").symlink_to(Path(__file__).parents[1] / "golden")
    monkeypatch.setattr(demo, "FORECASTS", (("pair", "channels", "2"), ("other", "leads", "2")))
    monkeypatch.setattr(demo, "STARTS", 2)
    monkeypatch.setattr(demo, "MEMBERS", 3)
    early, section = demo.Demo(weights=Path("GOLDEN"), out=tmp_path / "out")._forecasts(Silent())
    assert early.drawings == section.drawings
    assert early.table is None
    assert section.table.header[-1] == "MB for 3 members"
    assert all(float(line[-1]) > 0 for line in section.table.cells)
    megabytes = 4 * sum(load(Path("GOLDEN/channels")).parameters.values()) / 1e6
    assert f"pair {megabytes:.3g} MB" in " ".join(section.text)


def test_an_interrupted_training_measures_nothing(place, monkeypatch):
    stopped = FitResult.__new__(FitResult)
    object.__setattr__(stopped, "stopped", "signal")
    monkeypatch.setattr(demo, "train", lambda *of, **how: stopped)
    assert call(monkeypatch, "demo", "--count", "192") != 0
    page = (place / "demo/report.html").read_text()  # of what was measured before
    assert "The best plan of two rates is" in page
    assert "Here there were" not in page


def test_too_few_images_for_the_score_are_refused_before_anything_starts(place, monkeypatch, capsys):
    assert call(monkeypatch, "demo", "--count", "50") == 2
    assert "count is a whole number from 192 to 10,000,000, or None, got 50" in capsys.readouterr().err
    assert not (place / "demo").exists()


def test_a_quick_demo_is_smaller_in_a_folder_of_its_own(place, monkeypatch):
    monkeypatch.setattr(demo, "QUICK", 1)
    assert call(monkeypatch, "demo", "--quick") == 0
    rows = json.loads((place / "demo/quick/images.json").read_text())["front"]
    assert [(row["network"], row["fingerprint"]["count"]) for row in rows] == [("two", 192)]
    assert "Trained here, in 20 seconds" in (place / "demo/quick/report.html").read_text()


def test_pictures_are_on_the_page_before_anything_is_measured_unless_there_is_a_whole_one(place, monkeypatch):
    pages, report = [], place / "demo/report.html"
    monkeypatch.setattr(demo, "compare", lambda *of, **how: pages.append(report.read_text()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.Demo().run()
    assert "<img" in pages[0]
    report.write_text("whole")
    with pytest.raises(ZeroDivisionError):
        demo.Demo().run()
    assert pages[1] == "whole"
