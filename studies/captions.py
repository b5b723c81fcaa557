"""Text to image in miniature: do pictures show the count, the colour and the place that their captions say?

    python -m studies.captions OUT --seconds 1800 --seed 0    all that OUT lacks: data, trainings, rows.jsonl
    python -m studies.captions OUT page                       the table, in Markdown; OUT/pictures.png, OUT/front.png

A caption names two groups of shapes, "two red circles left of a blue square". A PixArt transformer is trained by a plain
loop on pictures of 24 x 24 pixels, then saved as a pipeline of diffusers. All that follows is dualrate's own: `data
encode --prompts`, `retrofit`, `distill`, samplers, caches. Against these stand fewer steps of the same model, and a
smaller one that trained for as many seconds as model and retrofit.

The text encoder is a table: a word's vector and its position's, orthogonal to all others. The autoencoder is an identity,
so latents are pixels. Words of a fifth of the captions are never seen together in training. Pictures are judged by a
rule (`read`, `judged`), and no network.

One thread in float32: run it alone on its core. A stage that is in OUT is not run again; one that was interrupted begins
anew, those by dualrate go on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

import dualrate as dr
from dualrate.system.files import write_whole

Row = dict[str, Any]
Pixels = NDArray[np.uint8]  # (24, 24, 3)

# Captions and their pictures

SIDE, SIZE, APART = 24, 6, 8  # of a picture; of a shape, in pixels; between the corners of shapes of a group
BACKGROUND = (246, 243, 236)
COLOURS = {"red": (222, 66, 60), "green": (52, 152, 92), "blue": (58, 104, 208), "yellow": (240, 186, 40)}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("a", "two", "three")
PLACES = {"left of": (1, 1), "right of": (1, -1), "above": (0, 1), "below": (0, -1)}  # axis, and the first group's sign
ASPECTS = ("count", "colour", "place", "shape")


class Group(NamedTuple):
    count: int
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{'s' * (self.count > 1)}"


class Caption(NamedTuple):
    first: Group
    place: str
    second: Group

    def __str__(self) -> str:
        return f"{self.first} {self.place} {self.second}"


@cache
def captions() -> tuple[list[Caption], list[Caption]]:
    """All there are, in an order by chance: those of training, and the fifth whose words it never has together."""
    groups = [Group(*of) for of in product((1, 2, 3), COLOURS, SHAPES)]
    all_ = [Caption(*of) for of in product(groups, PLACES, groups) if of[0].colour != of[2].colour]
    order = np.random.default_rng(0).permutation(len(all_))
    cut = len(all_) // 5
    return [all_[i] for i in order[cut:]], [all_[i] for i in order[:cut]]


@cache
def covered(shape: str) -> NDArray[np.float64]:
    """(6, 6) in [0, 1]: of each pixel the share that the shape covers."""
    fine = 16
    y, x = np.mgrid[: SIZE * fine, : SIZE * fine] / (SIZE * fine / 2) - 1 + 1 / (SIZE * fine)  # in (-1, 1)
    inside = {"circle": x**2 + y**2 < 1, "square": np.ones_like(x) > 0, "triangle": 2 * np.abs(x) < y + 1}[shape]
    return inside.reshape(SIZE, fine, SIZE, fine).mean((1, 3))


def drawn(caption: Caption, rng: np.random.Generator) -> Pixels:
    """A picture of it: each group in its half, its shapes one beside the other along the line between the halves."""
    picture = np.empty((SIDE, SIDE, 3))
    picture[:] = BACKGROUND
    axis, sign = PLACES[caption.place]
    for group, half in ((caption.first, sign), (caption.second, -sign)):
        across = rng.integers(0, SIDE // 2 - SIZE, group.count) + (0 if half > 0 else SIDE // 2 + 1)
        slack = SIDE - SIZE - APART * (group.count - 1)
        along = np.sort(rng.integers(0, slack + 1, group.count)) + APART * np.arange(group.count)
        alpha = covered(group.shape)[..., None]
        for corner in zip(*((across, along) if axis == 0 else (along, across)), strict=True):
            part = picture[tuple(slice(start, start + SIZE) for start in corner)]
            part += alpha * (np.array(COLOURS[group.colour]) - part)
    return picture.round().astype(np.uint8)


# The reader of pictures

LEAST = 9  # pixels of a shape; what is smaller is a speck, and no shape


class Seen(NamedTuple):
    """A shape in a picture; centre: (y, x) in pixels."""

    colour: str
    shape: str
    centre: tuple[float, float]


def read(picture: Pixels) -> list[Seen]:
    """The shapes: connected pixels that are nearer to a colour than to the background.

    A pixel is of the colour whose direction from the background it has; a mixture of both keeps that. The shape is the
    one with the nearest share of its box, of what its pixels are covered.
    """
    away = picture.astype(float) - BACKGROUND
    inks = np.array(list(COLOURS.values()), float) - BACKGROUND
    sizes = np.linalg.norm(inks, axis=1)
    along = away @ (inks / sizes[:, None]).T
    nearest, cover = along.argmax(-1), (along / sizes).clip(0, 1)
    found = []
    for number, colour in enumerate(COLOURS):
        labels, count = ndimage.label((nearest == number) & (cover[..., number] > 0.5))  # pyright: ignore[reportGeneralTypeIssues]
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            inside = labels[box] == label
            if inside.sum() < LEAST:
                continue
            filled = inside.mean()
            shape = min(SHAPES, key=lambda one: abs(filled - _filled(one)))
            found.append(Seen(colour, shape, ndimage.center_of_mass(labels == label)))
    return found


@cache
def _filled(shape: str) -> float:
    """The share of its box that a whole shape fills, of pixels that are covered by more than half."""
    inside = covered(shape) > 0.5
    (box,) = ndimage.find_objects(inside.astype(int))
    return inside[box].mean()


def judged(caption: Caption, seen: Sequence[Seen]) -> dict[str, bool]:
    """Whether the picture has what the caption says.

    colour: there are shapes of its two colours, and of no other
    count:  of each of its colours there are as many as it says
    place:  each of the first colour is beyond each of the second, on the side that it says
    shape:  there are some of each of its colours, and all are its shapes
    """
    axis, sign = PLACES[caption.place]
    groups = (caption.first, caption.second)
    by_colour = [[one for one in seen if one.colour == group.colour] for group in groups]
    there = all(by_colour)
    first, second = ([sign * one.centre[axis] for one in of] for of in by_colour)
    return {
        "count": all(len(of) == group.count for of, group in zip(by_colour, groups, strict=True)),
        "colour": there and len(seen) == sum(map(len, by_colour)),
        "place": there and max(first) < min(second),
        "shape": there and all(one.shape == g.shape for of, g in zip(by_colour, groups, strict=True) for one in of),
    }


# The pipeline

WORDS = (*COUNTS, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *"left right of above below".split())
TOKENS, WIDTH = 9, 32  # words of the longest caption, and an end; numbers of each
SCALE = 0.05  # of latents within the autoencoder, which squashes large ones
DIFFUSION = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


class Words(ModelMixin, ConfigMixin):
    """The text encoder: captions -> (B, 9, 32), and which tokens there are, (B, 9)."""

    config_name = "config.json"
    table: Tensor

    @register_to_config
    def __init__(self, words: Sequence[str] = WORDS) -> None:
        super().__init__()
        square = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", torch.linalg.qr(square).Q * math.sqrt(WIDTH / 2))

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Raises ValueError for a word that it does not know, and for more words than there are tokens."""
        known, number = self.config["words"], []
        for text in texts:
            words = text.split()
            if strange := [word for word in words if word not in known]:
                raise ValueError(f"the words are {', '.join(known)}, got {strange[0]!r}")
            if len(words) >= TOKENS:
                raise ValueError(f"a caption has at most {TOKENS - 1} words, got {text!r}")
            number.append([*map(known.index, words), len(known)] + [-1] * (TOKENS - 1 - len(words)))
        number = torch.tensor(number)
        there = number >= 0
        made = self.table[number.clamp(min=0)] + self.table[-TOKENS:]
        return made * there[..., None], there.float()


class CaptionPipeline(DiffusionPipeline):
    """Called with captions it draws pictures, (B, 3, 24, 24) in [-1, 1]."""

    _optional_components = ["transformer", "vae", "scheduler"]  # noqa: RUF012  # diffusers' name, and a list there

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, text_encoder: Words) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder)

    def encode_prompt(self, prompt: list[str], negative_prompt: str = "", **_: Any) -> tuple[Tensor, ...]:
        """Embeddings and masks of texts, then of the negative one, as pipelines of PixArt return them."""
        return *self.text_encoder(prompt), *self.text_encoder([negative_prompt] * len(prompt))

    @torch.no_grad()
    def __call__(self, texts: list[str], steps: int, guidance: float, generator: torch.Generator) -> Tensor:
        net, scheduler, count = self.transformer, self.scheduler, len(texts)
        text, mask, empty, none = self.encode_prompt(texts)
        guided = guidance != 1
        if guided:
            text, mask = torch.cat((empty, text)), torch.cat((none, mask))
        given = {"encoder_hidden_states": text, "encoder_attention_mask": mask, "return_dict": False}
        scheduler.set_timesteps(steps)
        z = torch.randn(count, 3, SIDE, SIDE, generator=generator)
        for t in scheduler.timesteps:
            v = net(torch.cat((z, z)) if guided else z, timestep=t.expand(len(text)), **given)[0]
            if guided:
                without, v = v.chunk(2)
                v = without + guidance * (v - without)
            z = scheduler.step(v, t, z, return_dict=False)[0]
        return self.vae.decode(z / self.vae.config.scaling_factor).sample


def identity() -> AutoencoderTiny:
    """An autoencoder whose scaled latents are the pixels, in [-1, 1], to 1e-4."""
    one = {"in_channels": 3, "out_channels": 3, "latent_channels": 3, "num_encoder_blocks": (0,)}
    one |= {"num_decoder_blocks": (0,), "encoder_block_out_channels": (3,), "decoder_block_out_channels": (3,)}
    made = AutoencoderTiny(**one, scaling_factor=1 / SCALE)
    for layers, factor, shift in ((made.encoder.layers, 2 * SCALE, -SCALE), (made.decoder.layers, 1, 0)):
        first, last = (layer for layer in layers if isinstance(layer, nn.Conv2d))
        for layer in (first, last):
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            last.weight *= factor
            last.bias += shift
    first = made.decoder.layers[0]
    with torch.no_grad():  # it wants [0, 1] in between
        first.weight /= 2 * SCALE
        first.bias += 0.5
    return made


@dataclass(frozen=True)
class Size:
    """Of a PixArt transformer; patch: side, in pixels."""

    layers: int
    heads: int
    head: int = 32
    patch: int = 3

    def network(self) -> PixArtTransformer2DModel:
        """With weights as the paper's training starts from: attention to a text adds nothing, nor does the whole."""
        inner = self.heads * self.head
        net = PixArtTransformer2DModel(
            num_attention_heads=self.heads, attention_head_dim=self.head, num_layers=self.layers, in_channels=3,
            out_channels=3, cross_attention_dim=inner, caption_channels=WIDTH, sample_size=SIDE, patch_size=self.patch,
        )  # fmt: skip
        net.register_to_config(dualrate_tokens=TOKENS)
        nn.init.normal_(net.adaln_single.linear.weight, std=0.02)
        for layer in (net.proj_out, *(block.attn2.to_out[0] for block in net.transformer_blocks)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return net


def pipeline(net: PixArtTransformer2DModel) -> CaptionPipeline:
    solver = DPMSolverMultistepScheduler(**DIFFUSION, lambda_min_clipped=-5.1)
    return CaptionPipeline(net, identity(), solver, Words())


# Training of the model

BATCH, DROPPED = 64, 0.1


def batches(rng: np.random.Generator) -> Iterator[tuple[list[str], Tensor]]:
    """Captions of training, and pictures of them, (B, 3, 24, 24) in [-1, 1]."""
    known, _ = captions()
    while True:
        texts = [known[i] for i in rng.integers(0, len(known), BATCH)]
        pictures = np.stack([drawn(text, rng) for text in texts])
        yield [str(text) for text in texts], torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1


def train(size: Size, seconds: float, seed: int, rate: float) -> tuple[CaptionPipeline, Row]:
    """A pipeline with a network that was trained so long: the squared error in v, at times by chance."""
    torch.manual_seed(seed)
    rng, pipe, noise = np.random.default_rng(seed), pipeline(size.network()), DDPMScheduler(**DIFFUSION)
    net: Any = pipe.transformer
    optimiser = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.0)
    begun, iteration, losses = time.perf_counter(), 0, []
    for texts, x in batches(rng):
        share = (time.perf_counter() - begun) / seconds
        if share >= 1:
            break
        optimiser.param_groups[0]["lr"] = rate * min(1, (iteration + 1) / 100) * (1 + math.cos(math.pi * share)) / 2
        texts = ["" if drop else text for text, drop in zip(texts, rng.random(BATCH) < DROPPED, strict=True)]
        text, mask = pipe.text_encoder(texts)
        t, eps = torch.randint(0, 1000, (BATCH,)), torch.randn_like(x)
        z, v = noise.add_noise(x, eps, t), noise.get_velocity(x, eps, t)
        given = {"encoder_hidden_states": text, "encoder_attention_mask": mask, "return_dict": False}
        loss = F.mse_loss(net(z, timestep=t, **given)[0], v)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        iteration += 1
        if iteration % 200 == 0:
            print(f"{iteration} iterations, {share * seconds:.0f} s, loss {np.mean(losses[-200:]):.4f}", flush=True)
    return pipe, {"iterations": iteration, "loss": float(np.mean(losses[-200:]))}
