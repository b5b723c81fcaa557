"""`dualrate data encode-images` and `decode`: one's own pictures there and back, other samplers and steps, refusals."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from latents.autoencoders import photos
from latents.folding import Folding, Noisy
from latents.tiny_stage import NETWORKS, first_stage, untrained
from PIL import Image

import dualrate as dr
from dualrate.codecs.codec import CodecFolder, NoCodec, read_codec, with_noise
from dualrate.data.conditions import Latent
from dualrate.data.images import every_image, to_float, to_uint8
from dualrate.diffusion.random import Draws
from dualrate.drawing.latents import RECORD, Latents, decode_latents, encode_images
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional
from dualrate.methods.denoising import DenoisingConfig
from dualrate.report.image_grid import read_png
from dualrate.runs.store import load

PHOTOS = photos(5)


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


def pictures(folder: Path) -> np.ndarray:
    return np.stack([read_png(file) for file in sorted(folder.glob("*.png"))])


def test_a_codec_that_loses_nothing_gives_the_pictures_back(root: Path, tmp_path: Path) -> None:
    made = encode_images(every_image(root / "photos"), Folding("f" * 64), tmp_path / "latents", batch_size=2)
    found = Latents.read(tmp_path / "latents")
    assert (found.names, found.codec, found.x.shape) == (made.names, "f" * 64, (5, 12, 8, 8))
    np.testing.assert_allclose(found.x, Folding("").encode(to_float(PHOTOS)).mean.numpy(), atol=1e-5)
    done = decode_latents(found, Folding("f" * 64), tmp_path / "out", batch_size=2, npz=True)
    assert (done.images, done.drawn) == (5, 5)
    back = pictures(tmp_path / "out")
    assert np.abs(back.astype(int) - PHOTOS).max() <= 1
    assert (tmp_path / "out" / "000004-f-g.png").is_file()
    assert np.array_equal(np.load(tmp_path / "out" / "images.npz")["arr_0"].transpose(0, 3, 1, 2), back)


def test_noise_is_of_a_latents_number_and_the_seed(tmp_path: Path) -> None:
    found, codec = Latents(np.zeros((3, 12, 8, 8), np.float32), ("one",) * 3, "e" * 64), Noisy("e" * 64)
    for batch in (1, 3):
        decode_latents(found, codec, tmp_path / str(batch), seed=7, batch_size=batch)
    draws = Draws(7, torch.arange(3))
    expected = to_uint8(codec.decode(with_noise(codec, torch.zeros(3, 12, 8, 8), draws), draws)).numpy()
    assert np.abs(pictures(tmp_path / "1").astype(int) - expected).max() <= 1
    assert np.array_equal(pictures(tmp_path / "3"), expected)


def test_a_killed_decoding_goes_on_and_draws_no_batch_twice(root: Path, tmp_path: Path) -> None:
    codec, out, calls = Folding("f" * 64), tmp_path / "out", []
    latents = encode_images(every_image(root / "photos"), codec, tmp_path / "latents")

    def dying(done: int, total: int) -> None:
        calls.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_latents(latents, codec, out, batch_size=2, progress=dying)
    (out / "000002-d.png").write_bytes(b"half a picture")
    before = (out / "000000-a.png").stat().st_mtime_ns
    assert decode_latents(latents, codec, out, batch_size=2).drawn == 3  # a batch that lacks one, as a whole
    assert (out / "000000-a.png").stat().st_mtime_ns == before
    assert np.abs(pictures(out).astype(int) - PHOTOS).max() <= 1
    assert (calls, decode_latents(latents, codec, out).drawn) == ([0, 2, 4], 0)


def test_decoding_that_was_killed_before_its_first_image_goes_on(root: Path, tmp_path: Path) -> None:
    latents = encode_images(every_image(root / "photos"), Folding("f" * 64), tmp_path / "latents")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{RECORD}.00000000.partial").write_text("{")
    assert decode_latents(latents, Folding("f" * 64), tmp_path / "out").drawn == 5


def test_pictures_of_two_shapes_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(root / "photos", folder)
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(folder / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png is \(3, 8, 16\) .*, a.png is \(3, 16, 16\); expected one shape"):
        encode_images(every_image(folder), Folding("f" * 64), tmp_path / "latents", batch_size=1)
    assert not (tmp_path / "latents").exists()


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    codec = Folding("f" * 64)
    latents = encode_images(every_image(root / "photos"), codec, tmp_path / "latents")
    with pytest.raises(ValueError, match="latents is there already"):
        encode_images(every_image(root / "photos"), codec, tmp_path / "latents")
    with pytest.raises(ValueError, match=r"of the codec ffffffffffff .*, this one's are eeeeeeeeeeee"):
        decode_latents(latents, Folding("e" * 64), tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds a\.png, .* but no decoded\.json"):
        decode_latents(latents, codec, root / "photos")
    decode_latents(latents, codec, tmp_path / "out")
    with pytest.raises(ValueError, match=r"they differ in seed \(0; now 1\): choose another"):
        decode_latents(latents, codec, tmp_path / "out", seed=1)
    codec.fingerprint = "d" * 64  # of the same latents
    with pytest.raises(ValueError, match=r"they differ in codec \(ffffffffffff; now dddddddddddd\)"):
        decode_latents(latents, codec, tmp_path / "out")
    np.savez(tmp_path / "other.npz", latents=latents.x)
    with pytest.raises(ValueError, match="no array codec, which `dualrate data encode-images` writes"):
        Latents.read(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", latents=latents.x[0], names=np.array(["one"]), codec=np.array("f"))
    with pytest.raises(ValueError, match=r"expected finite float32 \(N, C, h, w\)"):
        Latents.read(tmp_path / "other.npz")


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


def test_the_grid_beside_samples_is_no_picture(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A picture of that name where nothing was sampled is one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("drawn", "drawn/own"):
        Path(folder).mkdir()
        for name, photo in (("000000", PHOTOS[0]), ("grid", PHOTOS[1])):
            Image.fromarray(photo.transpose(1, 2, 0)).save(f"{folder}/{name}.png")
    Path("drawn/sample.json").write_text("{}")
    assert call(monkeypatch, "data", "encode-images", "drawn", "--run", root / "first", "--out", "latents") == 0
    assert Latents.read(Path("latents")).names == ("000000.png", "own/000000.png", "own/grid.png")
    assert "1 grid.png left out, which dualrate sample wrote" in capsys.readouterr().err


def test_the_commands_go_there_and_back(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "data", "encode-images", root / "photos", "--run", root / "first", "--out", "latents") == 0
    decode = ("data", "decode", "latents", "--run", root / "decoder", "--steps", 2, "--out", "out", "--json")
    capsys.readouterr()
    assert call(monkeypatch, *decode) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 5
    assert call(monkeypatch, *decode) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 0
    for wrong, said in (
        (("data", "encode-images", root / "photos", "--run", root / "first", "--out", "latents"), "is there already"),
        (
            ("data", "encode-images", root / "photos", "--run", root / "first", "--out", "o", "--channels", 1),
            "a.png: this codec",
        ),
        (
            ("data", "decode", "latents", "--run", root / "first", "--steps", 3, "--out", "out"),
            "steps (2; now 3): choose another",
        ),
        (("data", "decode", root / "images.npz", "--run", root / "first", "--out", "o"), "it has no array"),
        (("data", "decode", "latents", "--run", root / "photos", "--out", "o"), "holds no codec"),
    ):
        assert call(monkeypatch, *wrong) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
