"""The table of classes in docs/diffusers.md: each cell is compared with what a tiny model of the class does."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from latents import autoencoders
from latents.autoencoders import photos
from pipelines.models import (
    dit,
    flux,
    ovis_image,
    pixart,
    prompted,
    qwen_image,
    randomised,
    sana,
    sd3,
    unet,
    unet_text,
)
from pipelines.test_retrofit import saved, tiny_recipe
from pipelines.tiny_pipelines import ROWS, UNETS
from torch import nn

import dualrate as dr
from dualrate.codecs.codec import CodecFolder
from dualrate.comparison.candidates import RunRequest, baselines_of
from dualrate.data.condition_rows import Given
from dualrate.data.latent_set import encode
from dualrate.data.loader import Batches
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.denoisers.guidance import Guided
from dualrate.experiment.experiment import Start
from dualrate.experiment.model import Model
from dualrate.pipelines import foreign
from dualrate.pipelines import recipe as retrofit
from dualrate.pipelines.accelerate import METHODS
from dualrate.pipelines.captions import read_captions
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.export import DualRatePipeline
from dualrate.pipelines.foreign import adopted
from dualrate.pipelines.policies import FirstBlock
from dualrate.pipelines.prompt_set import encode_prompts
from dualrate.pipelines.text_encoders import TextFolder, encoders_fingerprint
from dualrate.system.progress import Silent

PAGE = Path(__file__).parents[2] / "docs/diffusers.md"
ANY = "any other, called `(state, time, label)`"
OF_NOISE = ("UNet2DModel", ANY)
CACHES = ("fora", "taylor", "polynomial", "toca", "duca", "deep-cache")
COUNT = 6
pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")


class Sit(nn.Module):
    """Network of a class that is not known."""

    def __init__(self):
        super().__init__()
        self.conv, self.labels = nn.Conv2d(4, 4, 1), nn.Embedding(4, 4)

    def forward(self, state, time, label):
        return self.conv(state) + time[:, None, None, None] + self.labels(label)[:, :, None, None]


# each: a network, and a pipeline with one
MADE = {
    "DiTTransformer2DModel": (dit, ROWS["DiT"]),
    "UNet2DModel": (unet, UNETS["UNet2D"]),
    "UNet2DConditionModel": (unet_text, UNETS["UNet2DCondition"]),
    "SD3Transformer2DModel": (sd3, ROWS["SD3"]),
    "PixArtTransformer2DModel": (pixart, ROWS["PixArt"]),
    "SanaTransformer2DModel": (sana, ROWS["Sana"]),
    "FluxTransformer2DModel": (flux, ROWS["Flux"]),
    "QwenImageTransformer2DModel": (qwen_image, ROWS["Qwen"]),
    "OvisImageTransformer2DModel": (ovis_image, ROWS["Ovis"]),
    ANY: (Sit, lambda: (SimpleNamespace(components={"net": Sit()}, scheduler=None), None)),
}


def table() -> dict[str, dict[str, str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = next(i for i, row in enumerate(rows) if row[:2] == ["class", "models"])
    width = len(rows[start])
    kept = [row for row in rows[start + 2 :] if len(row) == width]
    return {row[0] if row[0] == ANY else row[0].strip("`"): dict(zip(rows[start], row, strict=True)) for row in kept}


def of_a_class(name):
    """A denoiser with a null class, and three conditions."""
    if name == ANY:
        denoiser = dr.from_diffusers(randomised(Sit()), convention="sit", shape=(4, 8, 8), num_classes=3)
        return denoiser, dr.Cond(torch.tensor([2, 0, 1]))
    if name == "UNet2DModel":
        return prompted(randomised(unet(num_class_embeds=4)), num_classes=3)
    return prompted(randomised(MADE[name][0]()))


@torch.no_grad()
def drawn(denoiser, cond, weight=1.0, channels=4):
    called = denoiser if weight == 1 else Guided(denoiser, denoiser.process, weight, null=denoiser.network.num_classes)
    given = None if cond.given is None else lambda seeds: cond.given[seeds]
    how = dr.DDIM(denoiser.process), dr.StepPlan.uniform(2), (channels, 8, 8), range(3), cond.label.tolist()
    return torch.cat(list(dr.sample_batches(called, *how, given=given)))


def taken(make) -> bool:
    """Whether it is no sentence that refuses."""
    try:
        make()
    except ValueError:
        return False
    return True


def accelerated(pipe, method, refresh=2, draw=lambda: torch.zeros(1)):
    with dr.accelerate(pipe, method, refresh=refresh):
        assert draw().isfinite().all()


class Encoder:
    """Text encoders of a folder of stubs, as `TextFolder`."""

    def __init__(self, folder):
        self.fingerprint, self.size = encoders_fingerprint(folder), adopted(folder).network.prompt.size

    def read(self, device):
        return lambda texts: torch.rand(len(texts), 1, 1, self.size).round()

    def empty(self, device):
        return torch.ones(1, 1, 1, self.size)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images of 8 x 8, and latents of 4 x 8 x 8 of images with captions."""
    root, images = tmp_path_factory.mktemp("abilities"), photos(COUNT)
    labels = np.arange(COUNT) % 2
    np.savez(root / "images.npz", images=images.transpose(0, 2, 3, 1), labels=labels)
    np.savez(root / "small.npz", images=images[:, :, ::2, ::2].transpose(0, 2, 3, 1), labels=labels)
    (root / "captions.txt").write_text("\n".join(map(str, range(COUNT))))
    autoencoders.saved(root / "vae", images)
    encode(root / "images.npz", root / "latents", CodecFolder.at(root / "vae"), mirrored=False)
    return root


def folder_of(root, name) -> tuple[Path, Path]:
    """Its pipeline in a folder, and what it is trained on."""
    net, folder = randomised(MADE[name][0]()), root / name
    parts, data = {}, root / "small.npz"
    if name != "UNet2DModel":
        shutil.copytree(root / "vae", folder / "vae")
        parts, data = {"vae": ["diffusers", "AutoencoderKL"]}, root / f"latents of {name}"
        shutil.copytree(root / "latents", data)
    for part in ("text_encoder", "tokenizer"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    saved(folder, net, "unet" if hasattr(net, "down_blocks") else "transformer", **parts)
    if adopted(folder).network.prompt.parts:
        captions = read_captions(root / "captions.txt", root / "images.npz")
        encode_prompts(captions, data, Encoder(folder))
    return folder, data


def retrofitted(root, name) -> Model:
    """Its light network alone gets gradients."""
    folder, data = folder_of(root, name)
    experiment = retrofit.RetrofitRecipe(dr.DataConfig(str(data)), share=1.0)(folder, Silent())
    batches = Batches(experiment.seen(experiment.data.load("train")), 2, 0)
    start = Start(True, torch.device("cpu"), False, dr.load, batches.batch, print)
    method, batch = experiment.method.prepare(experiment, start).method, batches.batch(0)
    networks = method.networks
    networks["light"].requires_grad_(True)
    method.phases(0)[0].loss(batch, 0, batch.draws(0)).total.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in networks["light"].parameters())
    assert not any(weight.requires_grad for weight in networks["encoder"].net.parameters())
    return Model("pair", experiment, networks.eval().requires_grad_(False), method.denoiser(), 0, "0")


def baselines(folder) -> set[str | None]:
    """The caches that `dualrate compare FOLDER --baselines` tries."""
    requests = [RunRequest.parse(str(folder))]
    return {one.denoiser for one in baselines_of(requests, {folder: dr.load(folder)}, progress=Silent())}


def exported(model, folder) -> None:
    """It draws what the run draws. That the folder does is seen elsewhere, for it takes a second."""
    pipe = DualRatePipeline.of(model, dr.Choice(steps=2, heavy=1))
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    prompt = {"prompt": "a red circle"} if model.experiment.networks.given else {}
    found = pipe(**prompt, batch_size=1, generator=generator, output_type="latent").images
    if prompt:
        model = model.with_given(Given(TextFolder.read(None, "cpu")(["a red circle"])))
    drawer = replace(dr.Choice(steps=2, heavy=1).drawer(model), precision="float32")
    torch.testing.assert_close(found, next(drawer.states([3])), rtol=1e-4, atol=1e-4)


def test_the_table_has_a_row_of_each_class():
    assert table().keys() == MADE.keys() == {*KINDS, ANY}


@pytest.mark.parametrize("name", MADE)
def test_a_row_says_what_the_class_does(root, tmp_path, monkeypatch, name):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(foreign, "USUAL_SIDE", 8)
    tiny_recipe(monkeypatch)
    row, (denoiser, cond) = table()[name], of_a_class(name)
    channels = 3 if name == "UNet2DModel" else 4
    plain = drawn(denoiser, cond, channels=channels)
    assert plain.isfinite().all()
    words = {"prompts"} if cond.given is not None else {"classes", *(["noise"] if name in OF_NOISE else [])}
    assert set(re.findall(r"\w+", row["draws"])) == words
    assert (row["guidance"] != "-") == (not torch.equal(drawn(denoiser, cond, 2.0, channels), plain))
    assert ("num_classes" in row["guidance"]) == (name == "UNet2DModel")
    pipe, draw = MADE[name][1]()
    of_pipe = [method for method in METHODS if taken(lambda method=method: accelerated(pipe, method))]
    assert set(re.findall(r"`([\w-]+)`", row["`dr.accelerate`"])) == set(of_pipe)
    for method in of_pipe[:1]:
        accelerated(pipe, method, draw=draw)
    adaptive = any(taken(lambda method=method: accelerated(pipe, method, FirstBlock(0.1))) for method in of_pipe)
    assert (row["policies"] == "yes") == adaptive
    caches = {one for one in CACHES if taken(lambda one=one: denoiser_named(one)(denoiser, denoiser.process))}
    assert set(re.findall(r"`([\w-]+)`", row["`--denoiser`"])) == caches
    assert (row["retrofit"], row["export"]) == (("-", "-") if name == ANY else ("yes", "yes"))
    if name == ANY:
        saved(tmp_path / "any", unet(), "unet")
        index = tmp_path / "any" / "unet" / "config.json"
        index.write_text(index.read_text().replace("UNet2DModel", "Sit"))
        assert not taken(lambda: retrofit.RetrofitRecipe(dr.DataConfig(str(root / "small.npz")))(tmp_path / "any"))
        return
    model = retrofitted(root, name)
    assert baselines(root / name) == caches
    size = model.experiment.networks.given
    ones = lambda texts: torch.ones(len(texts), *(size or (1,)))  # noqa: E731
    monkeypatch.setattr(TextFolder, "read", lambda self, *how: ones)
    exported(model, tmp_path / "pipeline")
