"""`dualrate doctor` on runs and images, and its trial of training: every finding can be provoked."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from doctor.findings import levels, only
from PIL import Image
from runs.made import ONE, saved

from dualrate.data.cache import cache_dir
from dualrate.doctor import machine as trial
from dualrate.doctor import stored
from dualrate.doctor import stored as images
from dualrate.runs.release import export

CPU = torch.device("cpu")


# Runs


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """Two checkpoints; fashion-mnist is nowhere."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored.fashion_mnist, "INSTALLED", tmp_path / "none")
    return saved(ONE, tmp_path / "run", 5, 7)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_an_intact_run_without_its_images(run):
    found = list(stored.check_stored(run))
    assert "fashion-mnist is not on this machine" in only(found, "warning").what
    assert any("load reads iteration 7" in finding.what for finding in found)
    assert not cache_dir().exists()


def test_a_flipped_bit_is_named_and_an_older_checkpoint_is_loaded(run):
    flip(run / "checkpoints/step-00000007/model.safetensors")
    found = list(stored.check_stored(run))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "step-00000007/model.safetensors" in finding.what for finding in found)
    assert any("load reads iteration 5" in finding.what for finding in found)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000005", "step-00000007"]


def test_no_intact_checkpoint_is_a_problem(run):
    for name in ("step-00000005", "step-00000007"):
        flip(run / "checkpoints" / name / "model.safetensors")
    assert levels(stored.check_stored(run)) == ["ok", "warning", "warning", "problem", "warning"]


def test_what_was_set_aside_and_an_experiment_that_is_gone(run):
    (run / "checkpoints/step-00000007").rename(run / "checkpoints/step-00000007.corrupt")
    assert any("set aside" in finding.what for finding in stored.check_stored(run))
    (run / "experiment.json").unlink()
    assert stored.is_stored(run)
    only(stored.check_stored(run), "problem")


def test_a_checkpoint_of_another_format_is_a_problem(run, monkeypatch):
    monkeypatch.setattr(stored.checkpoint, "FORMAT", 2)
    assert "problem" in levels(stored.check_stored(run))


def test_released_weights(run, tmp_path):
    released = tmp_path / "released"
    export(run, released, lambda text: None)
    assert levels(stored.check_stored(released)) == ["ok", "ok", "warning"]  # the images
    (released / "MANIFEST.json").unlink()
    assert "problem" in levels(stored.check_stored(released))


def test_images_of_a_run_that_are_gone_are_a_warning(tmp_path):
    assert "no data at" in only(stored.check_source(str(tmp_path / "gone")), "warning").what


# Images


def folder_of(path: Path, sizes=(16,), classes=("cat", "dog")) -> Path:
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (sizes[i % len(sizes)], 16), (i, i, i)).save(path / name / f"{i}.png")
    return path


def test_a_good_folder_is_counted(tmp_path):
    found = list(images.check_images(str(folder_of(tmp_path))))
    assert set(levels(found)) == {"ok"}
    assert "15 images, 2 class(es)" in found[0].what
    assert "7 to 8 images a class" in found[1].what


def test_a_folder_without_images_is_a_problem(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    found = list(images.check_images(str(tmp_path)))
    assert set(levels(found)) == {"problem"}
    assert "no images in" in found[0].what


def test_rejected_files_are_named(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:40])
    found = [finding for finding in images.check_images(str(tmp_path)) if finding.level != "ok"]
    assert levels(found) == ["problem"]
    assert "cat/broken.png" in found[0].what
    assert "--data.on-bad skip" in found[0].remedy


def test_no_image_that_can_be_decoded_is_a_problem(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"none")
    assert any("none of" in finding.what for finding in images.check_images(str(tmp_path)))


def test_images_of_several_shapes_are_a_warning(tmp_path):
    found = list(images.check_images(str(folder_of(tmp_path, sizes=(16, 20)))))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "--data.size" in finding.remedy for finding in found)


def test_an_archive_with_a_class_of_no_image(tmp_path):
    pixels = np.zeros((40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(40) % 2 * 2)
    found = list(images.check_images(str(tmp_path / "a.npz")))
    assert "problem" not in levels(found)
    assert any(finding.level == "warning" and "1 class(es): 1" in finding.what for finding in found)


def test_parquet_is_read(tmp_path):
    file = folder_of(tmp_path / "images") / "cat" / "0.png"
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": i % 2} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(images.check_images(str(tmp_path / "a.parquet")))
    assert set(levels(found)) == {"ok"}
    assert "18 images, 2 class(es)" in found[0].what


def test_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setattr(images.fashion_mnist, "INSTALLED", tmp_path / "none")
    only(images.check_images("fashion-mnist"), "warning")
    assert not list(tmp_path.iterdir())


# Training


def test_three_steps_saved_and_resumed():
    assert levels(trial.check_trial(CPU)) == ["ok"]


def test_a_resume_to_other_weights_is_a_problem(monkeypatch):
    weights = iter(torch.tensor([1.0, 2.0, 3.0]))
    monkeypatch.setattr(trial, "trained", lambda *of: {"weight": next(weights)})
    assert "differ by 2" in only(trial.check_trial(CPU), "problem").what
