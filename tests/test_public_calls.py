"""Public calls by a value of another kind: one line that says what was expected and how to come by it, or it works."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dualrate as dr
from dualrate.config.ranges import count_or_list
from dualrate.recipes.auto import Auto

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model, out: dr.train("shapes", out), "train takes an experiment, got a str: call a recipe"),
        (lambda model, out: dr.train(model, out), "train takes an experiment, got a Model: call a recipe"),
        (lambda model, out: dr.train(model.experiment, 3), "out is text or a path, got a int: name a file"),
        (lambda model, out: dr.compare(model, model), "compare takes runs by their paths, .*, got a Model"),
        (lambda model, out: dr.compare([model]), "compare takes runs by their paths, .*, got a Model"),
        (lambda model, out: dr.compare("runs/mine", model), "out is text or a path, got a Model: name a file"),
        (lambda model, out: dr.sample(model, 4.0), r"seeds are a whole number, how many, or a list of them, got 4\.0"),
        (lambda model, out: dr.sample(model, "4"), "seeds are a whole number, how many, or a list of them, got '4'"),
        (lambda model, out: dr.sample(model, 1, guidance="2"), r"guidance is a number, got '2': dr\.Choice\("),
        (lambda model, out: dr.sample(model, 1, guidance=dr.Guidance(1.5)), r"guidance is a number, got Guidance\("),
    ],
)
def test_another_kind_is_refused_in_a_line(call, says, tmp_path):
    model = dr.load(GOLDEN / "single")
    with pytest.raises(TypeError, match=f"^{says}.*$") as refused:
        call(model, tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_with_a_precision_an_image_depends_on_its_seed_alone():
    """In bfloat16 it is the one of as many at a time that a drawer in bfloat16 makes, not that in float32."""
    model = dr.load(GOLDEN / "single")
    (exact,), (rounded, _) = (dr.sample(model, seeds, steps=2, precision=precision)
                              for seeds, precision in ([[1], "float32"], [[1, 2], "bfloat16"]))  # fmt: skip
    np.testing.assert_array_equal(exact, dr.sample(model, range(3), steps=2, precision="float32")[1])
    assert (exact != rounded).any()


@pytest.mark.parametrize("count", [2, np.int64(2), torch.tensor(2), np.array(2)])
def test_a_whole_number_of_any_kind_is_a_count(count):
    assert count_or_list("seeds", count) == range(2)


def test_a_drawer_takes_a_count_as_sample_does():
    model = dr.load(GOLDEN / "single")
    drawer = dr.Choice(2).drawer(model, precision="float32")
    np.testing.assert_array_equal(drawer.draw(3).images, dr.sample(model, 3, steps=2, precision="float32"))
    assert len(drawer.draw(torch.tensor([5])).images) == 1
    with pytest.raises(TypeError, match="seeds are a whole number, how many, or a list of them, got 'three'"):
        drawer.draw("three")


@pytest.mark.parametrize("seeds", [[5], (5,), np.array([5]), torch.tensor([5]), range(5, 6)])
def test_a_list_of_one_is_no_count(seeds):
    assert count_or_list("seeds", seeds) is seeds


def test_pictures_without_channels_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"got \(3, 8, 8\): add a channel axis"):
        dr.save_grid(np.zeros((3, 8, 8), np.uint8), tmp_path / "grid.png")
    for floats in (np.linspace(0, 255, 64).reshape(1, 1, 8, 8), torch.full((1, 3, 8, 8), 200.0)):
        with pytest.raises(
            ValueError, match=r"floats in \[-1, 1\], got torch.float(32|64): convert bytes by x / 127\.5 - 1"
        ):
            dr.save_grid(floats, tmp_path / "grid.png")
    with pytest.raises(ValueError, match=r"columns is a whole number from 1 to 4,096, or None, got 0"):
        dr.save_grid(np.zeros((3, 1, 8, 8), np.uint8), tmp_path / "grid.png", columns=0)
    for scale in (0, -1, 1.5):
        with pytest.raises(ValueError, match="scale is a whole number from 1 to 4,096, got"):
            dr.save_grid(np.zeros((3, 1, 8, 8), np.uint8), tmp_path / "grid.png", scale=scale)
    with pytest.raises(FileNotFoundError) as refused:
        dr.save_grid(np.zeros((3, 1, 8, 8), np.uint8), tmp_path / "gone" / "grid.png")
    assert str(refused.value).endswith(f"there is no such folder: make it first: '{tmp_path / 'gone'}'")


def test_one_call_is_one_call():
    assert "StepPlan(2 steps, 1 heavy call, t" in repr(dr.StepPlan.uniform(2, 1))
    assert "StepPlan(1 step, 1 heavy call, t" in repr(dr.StepPlan.uniform(1, 1))


def test_a_recipe_takes_the_place_of_images_and_refuses_what_is_no_choice():
    assert Auto("photos") == Auto(dr.DataConfig("photos")) == Auto(Path("photos"))  # type: ignore[arg-type]
    for field, value, near in (("size", "teeny", "tiny"), ("rate", "singel", "single"), ("trained_by", "crp", "crps")):
        with pytest.raises(ValueError, match=rf"^{field} is .*, got '{value}' \(did you mean {near}\?\)$"):
            Auto("photos", task="colour", **{field: value})  # type: ignore[arg-type]
