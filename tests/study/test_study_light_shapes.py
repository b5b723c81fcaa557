"""The other shapes of light networks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dualrate as dr
from benchmarks.calls import CPU
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import TwoConditional, TwoNetworks
from dualrate.system.device import environment
from studies import light_shapes
from studies.common import add_rows
from studies.light_shapes import SHAPES, OfImages, Shapes, bare, coarse


def test_it_begins_at_the_second_level_as_wide_as_the_heavy_network() -> None:
    heavy, light = (
        dr.UViTConfig(8, 3, (dr.Level("conv", fine, 1), dr.Level("conv", wide, blocks)), embedding=16, periodic=True)
        for fine, wide, blocks in ((8, 16, 3), (8, 8, 1))
    )
    pair = coarse(TwoConditional(heavy, light, (1, 4, 4)))
    assert pair.light.levels == (dr.Level("conv", 16, 1),)
    assert pair.light.sides(0) == heavy.sides(1)
    assert pair.build(GaussianProcess(Cosine()))


def test_forecasts_of_each_shape_are_compared_with_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, times = Shapes("kolmogorov", tmp_path), {"dual": 1, "coarse": 3, "bare": 2}
    trainings = [(shape, seed, {"seconds": 1.0, "seed": seed, "network": shape}) for shape in SHAPES for seed in (0, 1)]
    crps = {shape: [[scale * (start + 1.0)] for start in range(3)] for shape, scale in times.items()}
    add_rows(tmp_path, [{"kind": "loss", "losses": [times[shape], seed]} | row for shape, seed, row in trainings])
    finals = [(row | {"steps": steps, "crps": crps[shape]}) for shape, _, row in trainings for steps in (4, 8)]
    add_rows(tmp_path, [{"kind": "final"} | row for row in finals])
    taken = {(shape, steps, n): [9.0 * ms] * 2 for shape, ms in times.items() for steps in (4, 8) for n in (1, 16, 64)}
    monkeypatch.setattr(Shapes, "milliseconds", lambda self: taken)
    _, _, *lines = shapes.comparison(1.0).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [line[:2] for line in cells] == [[shape, steps] for shape in SHAPES for steps in ("4", "8")]
    for shape, _, loss, score, ratio, *each in cells:
        scale = times[shape]
        assert loss == f"{scale:.3f}, {(scale + 1) / 2:.3f}"
        assert score.startswith(f"{2 * scale:.4f} [")
        assert ratio == f"{scale:.3f} [{scale:.3f}, {scale:.3f}]"
        assert each == [f"{9 * scale:.2f}, x {scale:.2f}"] * 3


def test_a_bare_one_has_no_blocks_where_it_is_finest() -> None:
    heavy, light = (
        dr.UViTConfig(8, 3, (dr.Level("conv", fine, 1), dr.Level("conv", wide, blocks)), embedding=16)
        for fine, wide, blocks in ((8, 16, 3), (4, 8, 1))
    )
    pair = bare(TwoNetworks(heavy, light))
    assert isinstance(pair.light, dr.UViTConfig)
    assert pair.light.levels == (dr.Level("conv", 4, 0), dr.Level("conv", 16, 1))
    assert pair.build(GaussianProcess(Cosine()))


def test_pairs_of_images_are_trained_and_compared_in_each_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0)
    for split, kind, count in (("train", "a", 120), ("train", "b", 120), ("test", "a", 4), ("test", "b", 4)):
        folder = tmp_path / "images" / split / kind
        folder.mkdir(parents=True)
        for i in range(count):
            grey = noise.integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(grey).save(folder / f"{i}.png")
    for name, value in {"AGES": (0.25,), "TIMES": 3, "HELD_OUT": 8, "PLANS": (2,), "DRAWN": 200, "EPOCHS": 1}.items():
        monkeypatch.setattr(light_shapes, name, value)
    kept, of_another = tmp_path / "kept.json", {"processor": "another", "kind": "final"}
    kept.write_text(json.dumps([of_another, {"processor": environment(CPU)["processor"]}]))
    monkeypatch.setattr(light_shapes, "KEPT", kept)
    monkeypatch.setattr(OfImages, "speed", lambda *of: 500.0)  # two updates a second
    shapes = OfImages("images", tmp_path / "out", str(tmp_path / "images"))
    (tmp_path / "out").mkdir()
    shapes.train_all(1.0, [0])
    assert [row["network"] for row in shapes.rows] == list(SHAPES)
    _, _, dual, *lines = shapes.comparison(1.0).splitlines()
    assert "1.000, 1.000, 1.000" in dual
    assert len(lines) == 2
    first, *rows = json.loads(kept.read_text())
    assert first == of_another
    assert [row["network"] for row in rows] == list(SHAPES)
    monkeypatch.setattr(light_shapes, "TIMED", 0.0)
    monkeypatch.setattr(light_shapes, "over", lambda heavy, light, seconds, scale: scale)
    header, _, *timed = shapes.shares(1.0).splitlines()
    assert "share" in header
    assert [line.split("|")[-2].strip() for line in timed if "dual" in line] == ["1.000 [1.000, 1.000]"] * 2
    assert len(timed) == 6
    assert all(0 < float(line.split("|")[-3]) < 1 for line in timed)  # a light call has fewer multiply-adds
    known = len(shapes.rows)
    shapes.train_all(1.0, [0])  # nothing is missing
    assert len(shapes.rows) == known
