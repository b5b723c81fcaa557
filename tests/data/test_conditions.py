"""Conditions: made as PIL would, by keyed randomness, the same in training and at test time; read, and refused."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from metrics.untrained import untrained
from PIL import Image
from torch import Tensor

import dualrate as dr
from dualrate.codecs.codec import CodecFolder
from dualrate.data import condition_rows as module
from dualrate.data.condition_rows import Given, HeldOut
from dualrate.data.conditions import (
    Colour,
    Condition,
    Conditioned,
    Conditioning,
    Inpainting,
    Latent,
    SuperResolution,
    Unconditional,
    grey,
    hole_mask,
    picture_of,
    read_conditions,
    smaller,
)
from dualrate.data.images import ImageSet, Look, to_float, to_uint8
from dualrate.data.loader import Augment, Batches
from dualrate.data.pairs import Pairs
from dualrate.data.source import Raw
from dualrate.denoisers.denoiser import Metered
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.drawing.likelihood import check_bounded
from dualrate.drawing.measure import ensemble_scores, measure
from dualrate.experiment.experiment import MethodConfig
from dualrate.experiment.network_configs import (
    NetworksConfig,
    OneConditional,
    OneNetwork,
    ThreeConditional,
    TwoConditional,
)
from dualrate.methods.crps import OneCallConfig
from dualrate.methods.residual import ResidualConfig, ResidualNetworks
from dualrate.methods.times import BothTimes
from dualrate.metrics.ensembles import EnsembleScores
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import Architecture
from dualrate.metrics.store import FeatureStore
from dualrate.recipes import auto
from dualrate.recipes.auto import Auto
from dualrate.recipes.tasks import conditional_networks, task_named

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 24)).astype(np.uint8)
TASKS = [SuperResolution(4), Inpainting(7), Colour()]
NET = dr.UViTConfig(24, 3, (dr.Level("conv", 8, 1), dr.Level("conv", 8, 1)), patch=2, embedding=16)
METHOD, FIT = dr.DenoisingConfig(), dr.FitConfig(2)


def images() -> ImageSet:
    return ImageSet(PIXELS, None, (), "pixels")


def png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """pixels: (C, H, W); orientation: as EXIF has it"""
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_a_smaller_image_is_pil_s(factor: int) -> None:
    """Line art, too, which overshoots the range of a pixel: that is cut off after each of two passes."""
    squares = np.random.default_rng(0).integers(0, 2, (4, 6, 6, 3), np.uint8) * np.uint8(255)
    lines = squares.repeat(4, 1).repeat(4, 2)
    for array in (*PIXELS[:2].transpose(0, 2, 3, 1), *lines):
        expected = np.asarray(Image.fromarray(array).resize((24 // factor,) * 2, Image.Resampling.BICUBIC))
        found = to_uint8(smaller(to_float(array.transpose(2, 0, 1)[None].copy()), factor))[0].permute(1, 2, 0)
        assert np.abs(found.numpy().astype(int) - expected).max() <= 1


def test_grey_is_pil_s() -> None:
    expected = np.stack([np.asarray(Image.fromarray(array.transpose(1, 2, 0)).convert("L")) for array in PIXELS])
    assert np.array_equal(to_uint8(grey(to_float(PIXELS)))[:, 0].numpy(), expected)
    assert to_uint8(grey(to_float(np.full((1, 3, 1, 1), 255, np.uint8)))).item() == 255


def test_a_hole_has_its_size_and_is_as_likely_at_every_place() -> None:
    """4 rows of pixels and 5 columns, a hole of 3 x 3: 2 x 3 places, counts within five standard deviations."""
    draws = Draws(1, torch.arange(12_000))
    mask = hole_mask(draws, 3, 4, 5)
    assert ((mask == 0) | (mask == 1)).all()
    hole = 1 - mask[:, 0]
    assert (hole.sum((1, 2)) == 9).all()
    down, right = (hole.amax(axis).argmax(1) for axis in (2, 1))
    assert (hole.amax(2).sum(1) == 3).all()
    assert (hole.amax(1).sum(1) == 3).all()
    counts = torch.bincount(3 * down + right, minlength=6)
    assert len(counts) == 6
    assert (counts - 2000).abs().max() < 5 * (12_000 / 6 * 5 / 6) ** 0.5
    assert torch.equal(hole_mask(Draws(1, torch.tensor([70, 3])), 3, 4, 5), mask[[70, 3]])
    assert not torch.equal(hole_mask(Draws(2, draws.row), 3, 4, 5), mask)


@pytest.mark.parametrize("condition", TASKS, ids=str)
def test_the_condition_of_an_image_does_not_depend_on_its_batch(condition: Condition) -> None:
    """The sixth to the tenth row of a run, by batches of 5 and of 1, the latter as a run that is resumed sees it."""
    augment = Augment(flip=True, translate=2)
    whole = Batches(Conditioned(images(), condition), 5, seed=3, augment=augment).batch(1)
    assert whole.given is not None
    assert whole.given.shape[1:] == condition.shape((3, 24, 24))
    resumed = Batches(Conditioned(images(), condition), 1, seed=3, augment=augment)
    rows = [resumed.batch(number) for number in range(5, 10)]
    assert torch.equal(torch.cat([row.x for row in rows]), whole.x)
    assert torch.equal(torch.cat([row.given for row in rows if row.given is not None]), whole.given)
    if isinstance(condition, Inpainting):  # of this very x, after its augmentation
        image, mask = whole.given[:, :3], whole.given[:, 3:]
        assert torch.equal(image, whole.x * mask)
        assert len({tuple(part.flatten().tolist()) for part in mask}) > 1
    if isinstance(condition, SuperResolution):
        assert torch.equal(whole.given, smaller(whole.x, 4))


@pytest.mark.parametrize("condition", TASKS, ids=str)
def test_a_held_out_image_has_the_condition_of_its_number(condition: Condition) -> None:
    def held() -> HeldOut:
        codec = condition.codec.build(torch.nn.ModuleDict(), "cpu")
        return HeldOut(images(), images(), condition.build("cpu"), "cpu", codec)

    one = held()
    y = one(torch.arange(7))
    assert torch.equal(held()(torch.tensor([6, 2])), y[[6, 2]])
    assert np.array_equal(one.originals(torch.tensor([6, 2])), PIXELS[[1, 2]])
    if not isinstance(condition, Inpainting):
        assert torch.equal(y[6], y[1])
    else:
        assert not torch.equal(y[6, 3], y[1, 3])  # another hole of the same image


def test_kept_conditions_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3 * 1000 + 999)
    codec, made = SuperResolution(2).codec.build(torch.nn.ModuleDict(), "cpu"), []

    def make(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        made.append(len(x))
        return torch.zeros(len(x), 250)

    held = HeldOut(images(), images(), make, "cpu", codec)
    for number in (0, 1, 2, 2, 1, 0, 3, 3, 0):  # of 1000 bytes each, and three of them fit
        held(torch.tensor([number]))
    assert len(made) == 5
    held(torch.arange(5))  # more than all that may be kept
    held(torch.arange(5))
    assert len(made) == 6


def test_conditions_of_one_s_own_come_by_number_round_and_round() -> None:
    y = torch.arange(3.0)[:, None, None, None]
    assert Given(y)(torch.tensor([4, 0, 2])).flatten().tolist() == [1, 0, 2]
    assert Given(y).digest == Given(y.clone()).digest != Given(y + 1).digest
    assert Given(y).digest != Given(y.view(3, 1, 1)).digest


def test_what_is_known_is_put_back_into_a_sample() -> None:
    x, drawn = to_float(PIXELS), torch.full((5, 3, 24, 24), 0.25)
    given = Inpainting(7).build("cpu")(x, Draws(0, torch.arange(5)))
    kept = Inpainting(7).keep(drawn, given)
    mask = given[:, 3:].expand_as(x).bool()
    assert torch.equal(kept[mask], x[mask])
    assert (kept[~mask] == 0.25).all()
    assert (~mask).sum() == 5 * 3 * 49
    assert Colour().keep(drawn, given) is drawn


def test_the_transparent_part_of_a_picture_is_its_hole() -> None:
    alpha = np.full((1, 24, 24), 255, np.uint8)
    alpha[0, 2:9, 5:12] = 0
    found = Inpainting(7).read(png(np.concatenate((PIXELS[0], alpha))), "a.png", 4)
    mask = torch.from_numpy(alpha > 0)
    assert torch.equal(found, torch.cat((to_float(PIXELS[:1])[0] * mask, mask.float())))
    turned = Inpainting(7).read(png(np.concatenate((PIXELS[0], alpha)), orientation=3), "a.png", 4)
    assert torch.equal(turned, found.flip(1, 2))  # by half a turn, as other pictures are
    grey_one = Image.fromarray(np.concatenate((PIXELS[0, :1], alpha)).transpose(1, 2, 0), "LA")
    grey_one.save(file := io.BytesIO(), "PNG")
    of_grey = Inpainting(7).read(file.getvalue(), "grey.png", 2)
    assert torch.equal(of_grey, found[[0, 3]])
    assert torch.equal(Inpainting(7).read(file.getvalue(), "grey.png", 4), of_grey[[0, 0, 0, 1]])
    of_colours = Inpainting(7).read(png(np.concatenate((PIXELS[0], alpha))), "a.png", 2)
    assert torch.equal(of_colours, torch.cat((grey(to_float(PIXELS[:1]))[0] * mask, mask.float())))


def test_pictures_become_grey_or_coloured_as_the_model_s_images_are() -> None:
    colours, one = png(PIXELS[0]), png(PIXELS[0, :1])
    for condition in (SuperResolution(4), Pairs("folder", 24), Colour()):
        assert torch.equal(read_conditions([("a.png", colours)], condition, (1, 24, 24)), grey(to_float(PIXELS[:1])))
    found = read_conditions([("a.png", one)], SuperResolution(4), (3, 24, 24))
    assert torch.equal(found, to_float(PIXELS[:1, [0, 0, 0]]))


def test_pictures_that_are_no_condition_of_the_model_are_refused() -> None:
    whole, small = png(PIXELS[0]), png(PIXELS[0, :, :6, :6])
    opaque = png(np.concatenate((PIXELS[0], np.full((1, 24, 24), 255, np.uint8))))
    for without in (whole, opaque):
        with pytest.raises(ValueError, match=r"a.png has no mask: make the pixels of the hole transparent"):
            Inpainting(7).read(without, "a.png", 4)
    deep = io.BytesIO()
    Image.new("I;16", (24, 24), 9).save(deep, "PNG", transparency=9)
    with pytest.raises(ValueError, match=r"a\.png has grey values of 16 bits: save it with 8"):
        Inpainting(7).read(deep.getvalue(), "a.png", 2)
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[24:29]
    huge = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    for broken in (b"", b"no picture", whole[:900], huge):
        for condition in TASKS:
            with pytest.raises(ValueError, match=r"b.png"):
                condition.read(broken, "b.png", 3)
    task, expected = SuperResolution(4), (3, 6, 6)
    y = read_conditions([("a.png", small), ("b.png", small)], task, expected)
    assert torch.equal(y, to_float(PIXELS[:1, :, :6, :6]).repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"a.png makes a condition of \(3, 24, 24\).*takes \(3, 6, 6\)"):
        read_conditions([("a.png", whole)], task, expected)


@pytest.mark.parametrize("text", ["", "sharpening", "super-resolution:x", "colour:3", "inpainting:-1"])
def test_a_task_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a task is super-resolution:4, inpainting:16, colour or pairs:SOURCE"):
        task_named(text)


def test_tasks_by_name() -> None:
    assert [task_named(text) for text in ("super-resolution:8", "super-resolution", "inpainting", "colour")] == [
        SuperResolution(8),
        SuperResolution(4),
        Inpainting(16),
        Colour(),
    ]
    with pytest.raises(ValueError, match="from 2 to 64"):
        task_named("super-resolution:1")


@pytest.mark.parametrize(
    ("condition", "image", "words"),
    [
        (SuperResolution(5), (3, 24, 24), "are not divisible by 5"),
        (Inpainting(24), (3, 24, 24), "a hole of side 24 covers"),
        (Colour(), (1, 24, 24), "the images are grey and have no colours"),
    ],
)
def test_images_of_which_no_condition_can_be_made(condition: Condition, image: Shape, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        condition.shape(image)


GIVEN = SuperResolution(4).shape((3, 24, 24))


@pytest.mark.parametrize(
    ("networks", "condition", "method", "words"),
    [
        (OneNetwork(NET), Colour(), METHOD, "take no condition: drop it"),
        (OneConditional(NET, GIVEN), Unconditional(), METHOD, "take a condition: give one"),
        (OneConditional(NET, GIVEN), Colour(), METHOD, r"makes conditions of \(1, 24, 24\).*take \(3, 6, 6\)"),
        (OneConditional(replace(NET, num_classes=3), GIVEN), SuperResolution(4), METHOD, "no labels"),
        (OneNetwork(NET), Unconditional(), OneCallConfig(), "is given nothing"),
        (TwoConditional(NET, NET, GIVEN), SuperResolution(4), ResidualConfig(), "needs ResidualNetworks"),
        (TwoConditional(NET, NET, GIVEN), SuperResolution(4), dr.DenoisingConfig(BothTimes()), "pass GivenTimes"),
        (ThreeConditional(NET, NET, NET, GIVEN), SuperResolution(4), METHOD, "ages: pass BothTimes"),
    ],
)
def test_experiments_that_do_not_fit_together(
    networks: NetworksConfig, condition: Conditioning, method: MethodConfig, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dr.Experiment("run", networks, method, FIT, condition=condition)


def test_a_condition_is_part_of_what_a_run_is() -> None:
    four, eight = (
        dr.Experiment("run", OneConditional(NET, task.shape((3, 24, 24))), METHOD, FIT, condition=task)
        for task in (SuperResolution(4), SuperResolution(8))
    )
    assert four.identity["condition"] != eight.identity["condition"]
    assert "condition" not in dr.Experiment("run", OneNetwork(NET), METHOD, FIT).identity


@pytest.mark.parametrize("task", ["super-resolution:4", "inpainting:7", "colour"])
@pytest.mark.parametrize("trained_by", ["diffusion", "residual", "corrdiff", "crps", "energy", "regression"])
def test_every_task_has_networks_for_every_method(task: str, trained_by) -> None:
    condition = task_named(task)
    for rate in ("dual", "both", "single", "medium", "light"):
        if rate != "dual" and (
            trained_by in ("residual", "corrdiff") or (rate == "both" and trained_by != "diffusion")
        ):
            with pytest.raises(ValueError, match=f"drop --rate {rate}"):
                conditional_networks(condition, (3, 24, 24), NET, rate, trained_by)
            continue
        networks, method = conditional_networks(condition, (3, 24, 24), NET, rate, trained_by)
        experiment = dr.Experiment("run", networks, method, FIT, condition=condition)
        assert experiment.networks.given == condition.shape((3, 24, 24))
        assert experiment.networks.single_rate == (rate not in ("dual", "both"))
        assert experiment.networks.ages == (rate == "both")
        if isinstance(networks, ResidualNetworks):
            assert networks.features == (trained_by == "residual")


def test_a_factor_that_the_networks_do_not_take_is_refused_before_images_are_read(monkeypatch) -> None:
    look = Look("photos", Raw([], 0, None, ()))
    look.__dict__["shapes"] = ((3, 48, 48),)
    monkeypatch.setattr(auto, "look_at", lambda *of: look)
    monkeypatch.setattr(auto, "account", lambda *of: "")
    with pytest.raises(ValueError, match=r"of \(3, 16, 16\) .* no multiples .* the factor of super-resolution"):
        Auto(dr.DataConfig("photos"), "tiny", task="super-resolution:3")()
    with pytest.raises(ValueError, match="48 x 48 are not divisible by 5: give another factor"):
        Auto(dr.DataConfig("photos"), "tiny", task="super-resolution:5")()
    assert Auto(dr.DataConfig("photos"), "tiny", task="super-resolution:8")().networks.given == (3, 6, 6)


def test_auto_refuses_what_is_of_a_task_without_one() -> None:
    with pytest.raises(ValueError, match="need a condition: give a --task"):
        Auto(trained_by="crps")
    with pytest.raises(ValueError, match="need a condition: give a --task"):
        Auto(rate="medium")
    with pytest.raises(ValueError, match="need a condition: give a --task"):
        Auto(rate="both")
    with pytest.raises(ValueError, match="a task is super-resolution:4, inpainting:16, colour or pairs:SOURCE"):
        Auto(task="sharpening")


def test_a_model_refuses_conditions_of_another_shape() -> None:
    networks = TwoConditional(NET, NET, GIVEN)
    experiment = dr.Experiment("run", networks, METHOD, FIT, condition=SuperResolution(4))
    model = dr.Model("run", experiment, *experiment.build(), 0, "hash")
    y = torch.zeros(2, *GIVEN)
    assert model.with_given(Given(y)).given is not None
    with pytest.raises(ValueError, match=r"takes conditions of shape \(N, 3, 6, 6\), got \(2, 3, 24, 24\)"):
        model.with_given(Given(torch.zeros(2, 3, 24, 24)))
    plain = dr.Experiment("plain", OneNetwork(NET), METHOD, FIT)
    with pytest.raises(ValueError, match="makes samples of noise alone"):
        dr.Model("plain", plain, *plain.build(), 0, "hash").with_given(Given(y))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 6, 6, dtype=torch.uint8), torch.full((1, 3, 6, 6), 200.0)])
def test_conditions_of_8_bits_are_refused(wrong: Tensor) -> None:
    for given in (wrong, wrong.numpy()):
        with pytest.raises(ValueError, match=r"conditions are numbers from -1 to 1.* x / 127\.5 - 1"):
            drawer().draw(given)


def test_a_picture_is_no_condition_of_noise_or_of_latents(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
    plain = dr.Experiment("plain", OneNetwork(NET), METHOD, FIT)
    with pytest.raises(ValueError, match="plain makes images of noise alone: drop the conditions"):
        plain.read_given(tmp_path)
    latent = Latent(CodecFolder("a", "b"))
    decoder = dr.Experiment("decoder", OneConditional(NET, (4, 6, 6)), METHOD, FIT, condition=latent)
    with pytest.raises(ValueError, match=r"decoder is a decoder, .* not pictures: pass them as an array"):
        decoder.read_given(tmp_path)


def test_a_hole_of_one_s_own_hides_what_is_below_it() -> None:
    image, mask = torch.rand(2, 3, 24, 24), (torch.rand(2, 1, 24, 24) > 0.5).float()
    given = Inpainting(7).accepted(torch.cat((image, mask), 1))
    assert torch.equal(given, torch.cat((image * mask, mask), 1))
    assert torch.equal(Inpainting(7).unknown(given), mask == 0)
    with pytest.raises(ValueError, match="the last channel of a condition is its mask"):
        Inpainting(7).accepted(torch.cat((image, 2 * mask - 1), 1))


def test_a_condition_is_shown_in_the_samples_colours() -> None:
    colours = to_float(PIXELS[:2])
    assert np.array_equal(picture_of(colours, (1, 24, 24)), to_uint8(grey(colours)).numpy())
    assert np.array_equal(picture_of(colours, (3, 24, 24)), PIXELS[:2])


def drawer(**changes) -> dr.Drawer:
    torch.manual_seed(0)
    experiment = dr.Experiment("run", TwoConditional(NET, NET, GIVEN), METHOD, FIT, condition=SuperResolution(4))
    networks, denoiser = experiment.build()
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = dr.Model("run", experiment, networks, denoiser, 0, "hash")
    return dr.Drawer(model, dr.DDIM(experiment.gaussian), dr.StepPlan.uniform(2, 1), **changes)


def test_a_drawer_draws_members_of_conditions_of_one_s_own() -> None:
    y: Tensor = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, *GIVEN)
    drawn = drawer().draw(y, members=3).images.astype(int)
    assert drawn.shape == (6, 3, 24, 24)
    assert np.abs(drawer(batch_size=2, members=3).draw(y).images - drawn).max() <= 1
    assert np.abs(drawer().draw(y).images - drawn[::3]).max() <= 1
    assert np.abs(drawer().draw(y.flip(0)).images - drawn[::3]).max() > 1
    of_doubles = drawer().draw(y.double().requires_grad_(), members=3).images
    assert np.array_equal(of_doubles, drawer().draw(y, members=3).images)
    assert np.array_equal(drawer().draw(y.numpy(), members=3).images, of_doubles)
    with pytest.raises(ValueError, match="members"):
        drawer().draw(y, members=0)
    experiment = dr.Experiment("plain", OneNetwork(NET), METHOD, FIT)
    plain = dr.Model("plain", experiment, *experiment.build(), 0, "hash")
    one = dr.Drawer(plain, dr.DDIM(experiment.gaussian), dr.StepPlan.uniform(2))
    assert np.array_equal(one.draw(torch.tensor([3, 1])).images, one.draw([3, 1]).images)  # seeds, in a tensor
    with pytest.raises(ValueError, match="no condition that members would share"):
        one.draw([3, 1], members=2)


def test_a_model_of_conditions_has_no_bound() -> None:
    with pytest.raises(ValueError, match="of which no bound is known here"):
        check_bounded(drawer().model)


class Means:
    """Feature net whose feature is the mean of each image."""

    identity = metric = "means"
    dim = usual_count = 1

    def features(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).float().flatten(1).mean(1, keepdim=True)


def test_members_are_scored_against_the_images_of_their_conditions_each_once(tmp_path: Path) -> None:
    """However many seeds are asked for; and in batches that hold all members of a condition."""
    own = drawer(members=3, batch_size=7)
    pictures, codec = images(), SuperResolution(4).codec.build(torch.nn.ModuleDict(), "cpu")
    held = HeldOut(pictures, pictures, SuperResolution(4).build("cpu"), "cpu", codec)
    own.model.__dict__["given"] = held  # in place of the experiment's, which has no images
    count = len(pictures)
    store = FeatureStore.open(tmp_path, replace(own, members=1).origin("means"))
    store.write([1], torch.full((1, 1), -1.0))  # from before
    found = ensemble_scores(own, range(10 * count), [(store, Means())])
    wanted_first = Means().features(own.draw(range(count), members=1).images)
    wanted_first[1] = -1
    torch.testing.assert_close(store.read(range(count)).features, wanted_first, rtol=0, atol=1)
    drawn = own.draw(range(count)).images.reshape(count, 3, *pictures.shape)
    wanted = EnsembleScores.of([(drawn, pictures.images[:], None)])
    assert found is not None
    assert (found.conditions, found.members) == (count, 3)
    assert found.crps == pytest.approx(wanted.crps, rel=1e-6)
    assert ensemble_scores(replace(own, members=1), range(4)) is None


def test_what_is_kept_is_of_the_conditions_that_it_was_drawn_of() -> None:
    own, codec = drawer(), SuperResolution(4).codec.build(torch.nn.ModuleDict(), "cpu")
    origins = []
    for pixels in (PIXELS, 255 - PIXELS):
        pictures = replace(images(), images=pixels)
        own.model.__dict__["given"] = HeldOut(pictures, pictures, SuperResolution(4).build("cpu"), "cpu", codec)
        origins.append(own.origin("means"))
    assert origins[0] != origins[1]


def test_a_measurement_draws_every_member_once() -> None:
    """Ten seeds are five conditions: all members of the first five, member 0 of the others."""
    own = drawer(members=3)
    metered = Metered(own.model.denoiser)
    own = replace(own, model=replace(own.model, denoiser=metered))
    counted = own.cost.macs and metered.meter.light  # rows of the calls that tell what one costs
    pictures, codec = images(), SuperResolution(4).codec.build(torch.nn.ModuleDict(), "cpu")
    own.model.__dict__["given"] = HeldOut(pictures, pictures, SuperResolution(4).build("cpu"), "cpu", codec)
    real = replace(pictures, images=np.concatenate((PIXELS, PIXELS)))
    row = measure(
        own, range(10), Evaluator(untrained(Architecture(3, 24, 2, features=4)), real, None), ensemble=True
    ).row
    assert metered.meter.light - counted == own.plan.num_steps * (5 * 3 + 5)
    assert row.ensemble == ensemble_scores(own, range(10))
    assert (row.score.fingerprint.count, row.macs) == (10, own.cost.macs)
