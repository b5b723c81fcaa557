"""Pictures of a source by their names; a codec's decoder with other samplers and steps."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from latents.autoencoders import photos
from latents.tiny_stage import NETWORKS, first_stage, untrained
from PIL import Image

import dualrate as dr
from dualrate.codecs.codec import CodecFolder, NoCodec, read_codec
from dualrate.data.conditions import Latent
from dualrate.data.images import every_image
from dualrate.diffusion.random import Draws
from dualrate.drawing.measure import image_batches
from dualrate.drawing.samples import grids_below
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional
from dualrate.methods.denoising import DenoisingConfig
from dualrate.runs.store import load

PHOTOS = photos(5)
PAGE = Path(__file__).parents[2] / "docs" / "unified-latents.md"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/: five; images.npz; first: a run of a codec; decoder, base: of its latents."""
    root = tmp_path_factory.mktemp("files")
    for name, photo in zip(("a", "b/c", "b/d", "b/e", "f g"), PHOTOS, strict=True):
        (root / f"photos/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo.transpose(1, 2, 0)).save(root / f"photos/{name}.png")
    np.savez(root / "images.npz", images=photos(12).transpose(0, 2, 3, 1))
    first = first_stage(root / "images.npz")
    untrained(first, root / "first")
    codec, data = CodecFolder.at(root / "first"), dr.DataConfig(str(root / "images.npz"))
    decoder = OneConditional(NETWORKS.decoder, (2, 4, 4))
    given = Latent(codec)
    untrained(Experiment("decoder", decoder, DenoisingConfig(), first.fit, data, condition=given), root / "decoder")
    base = dr.OneNetwork(NETWORKS.prior)
    untrained(Experiment("base", base, DenoisingConfig(), first.fit, data, first.process, codec), root / "base")
    return root


def test_every_image_of_a_source_comes_by_its_name(root: Path, tmp_path: Path) -> None:
    found = list(every_image(root / "photos"))
    assert [name for name, _ in found] == ["a.png", "b/c.png", "b/d.png", "b/e.png", "f g.png"]
    assert all(np.array_equal(image, photo) for (_, image), photo in zip(found, PHOTOS, strict=True))
    ((name, image),) = every_image(root / "photos" / "b" / "c.png", size=8, channels=1)
    assert (name, image.shape) == ("c.png", (1, 8, 8))
    rows = [name for name, _ in every_image(root / "images.npz")]  # a tenth of which training holds out
    assert rows == [f"images.npz[{i}]" for i in range(12)]
    with tarfile.open(tmp_path / "mixed.tar", "w") as tar:
        for file in ("b/e", "a", "f g", "b/c"):
            tar.add(root / f"photos/{file}.png", f"{file[-1]}.png")
    assert [name[-5:] for name, _ in every_image(tmp_path / "mixed.tar")] == ["e.png", "a.png", "g.png", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        every_image(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no data at"):
        every_image(tmp_path / "nothing")


def test_pictures_of_two_shapes_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(root / "photos", folder)
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(folder / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png is \(3, 8, 16\) .*, a.png is \(3, 16, 16\); expected one shape"):
        list(image_batches(every_image(folder), 1))


def test_another_sampler_or_number_of_steps_is_another_codec_of_the_same_latents(root: Path) -> None:
    """The run that trained the codec, and a decoder's run."""
    for name, own in (("first", ("dpm++2m", 3)), ("decoder", ("sde-dpm++2m:0.1", 16))):
        plain, same = read_codec(root / name), read_codec(root / name, "cpu", *own)
        asked = {how: read_codec(root / name, "cpu", *how) for how in ((None, 2), ("ddim", None), ("ddim", 2))}
        codecs = (plain, *asked.values())
        assert len({codec.fingerprint for codec in codecs}) == 4
        assert {codec.latents for codec in codecs} == {read_codec(root / "first").latents}
        found = [(codec.decoding.sampler, codec.decoding.plan.num_steps) for codec in (same, *asked.values())]
        assert found == [own, (own[0], 2), ("ddim", own[1]), ("ddim", 2)]
        draws, z_0 = Draws(0, torch.arange(2)), torch.zeros(2, 2, 4, 4)
        assert torch.equal(plain.decode(z_0, draws), same.decode(z_0, draws))
        assert not torch.equal(plain.decode(z_0, draws), asked["ddim", 2].decode(z_0, draws))
    for sampler, said in (
        ("ddin", "no sampler .ddin. .did you mean ddim"),
        ("ddim:0.1", "means nothing to ddim"),
    ):
        with pytest.raises(ValueError, match=said):
            read_codec(root / "first", "cpu", sampler)


def test_models_of_latents_are_drawn_with_other_steps_of_their_decoder(root: Path) -> None:
    """The images have another origin then, so that what is kept of them is not mixed up."""
    base, first, decoder = (load(root / name, note=str) for name in ("base", "first", "decoder"))
    for model in (base, first):
        asked = (model, model.with_codec(None, None, 2), model.with_codec(None, "ddim"))
        drawers = [dr.Drawer(one, dr.DDIM(one.process), dr.StepPlan.uniform(2)) for one in asked]
        assert len({drawer.origin("net").digest for drawer in drawers}) == 3
        decode = model.call_cost.decode
        assert [3 * one.call_cost.decode for one in asked] == [3 * decode, 2 * decode, 3 * decode]
        drawn = [drawer.draw(range(2)).images for drawer in drawers]
        assert not np.array_equal(drawn[0], drawn[1])
    assert base.with_codec(root / "decoder", steps=2).codec.decoding.plan.num_steps == 2
    with pytest.raises(ValueError, match="is a decoder, which draws by --sampler and --steps"):
        decoder.with_codec(None, steps=2)
    with pytest.raises(ValueError, match="NoCodec has no decoder that takes steps"):
        NoCodec().under(None, 2)


def test_the_grid_beside_samples_is_no_picture(tmp_path: Path) -> None:
    """A picture of that name where nothing was sampled is one."""
    drawn = tmp_path / "drawn"
    for folder in (drawn, drawn / "own"):
        folder.mkdir()
        for name, photo in (("000000", PHOTOS[0]), ("grid", PHOTOS[1])):
            Image.fromarray(photo.transpose(1, 2, 0)).save(folder / f"{name}.png")
    (drawn / "sample.json").write_text("{}")
    names = [name for name, _ in every_image(drawn, without=grids_below(drawn))]
    assert names == ["000000.png", "own/000000.png", "own/grid.png"]


def test_the_page_s_lines_go_there_and_back(root: Path, monkeypatch) -> None:
    monkeypatch.chdir(root)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(block.replace("runs/stage-1", "first").replace("size=28, channels=1", "size=16, channels=3"), names)
    assert (names["latents"].shape, names["pictures"].shape) == ((5, 2, 4, 4), (5, 3, 16, 16))
    assert names["pictures"].dtype == torch.uint8
