"""Forecasts in the latents of clips: networks see and make latents, and what is given and shown are frames.

    z = E(x^1 ... x^E)       a latent of E frames, by the encoder of a codec that was trained before (clip_recipe.py)
    z' ~ forecast of z       windows or rolls, as of any fields whose channels are those of a latent
    x' = D(z'_0)             each latent by itself as it comes, z'_0 with the noise that its decoder expects

The past of a start is encoded once. A roll-out goes on from latents, and these are not on disk: one that was killed is
drawn again from its start, but for the decoding of what is there. Trained is on a latent from each frame on, encoded
once and kept in the cache, with every clip that is cut into latents from any frame.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualrate.codecs.codec import Codec, CodecFolder, in_parts, with_noise
from dualrate.codecs.diffusion import decoding_of
from dualrate.config.ranges import Side
from dualrate.data.cache import cache_dir
from dualrate.data.source import DataProgress, Split, silent
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.forecasts.clip_recipe import clip_encoder
from dualrate.forecasts.condition import Coder, Forecast
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.statistics import survey
from dualrate.sampling.cost import macs_of
from dualrate.system.device import pick_device, whole_products
from dualrate.system.files import whole

PARTS = 64  # latents that are encoded together for the cache


def clip_codec(codec: Path) -> tuple[CodecFolder, int, Shape]:
    """A codec of clips, the frames of a latent, and (C, H, W) of a frame. Raises as `clip_encoder`."""
    folder = CodecFolder.at(codec)
    encoder = clip_encoder(folder)
    each = encoder.frames // encoder.pieces
    return folder, each, (encoder.image_channels // each, encoder.image_size, encoder.image_size)


@dataclass(frozen=True)
class ClipCoder(Coder):
    """Frames (C, H, W) from 0 to 255, `each` at a time, as latents of a codec. past: latents of a start"""

    codec: Codec
    image: Shape
    past: int
    each: int = 1  # pyright: ignore[reportIncompatibleUnannotatedOverride]
    exact = False

    @property
    def shape(self) -> Shape:
        """(each C, H, W)"""
        return self.each * self.image[0], self.image[1], self.image[2]

    def encoded(self, frames: Tensor) -> Tensor:
        """Latents (N, c, h, w) of frames (N, each, C, H, W)."""
        x = frames.flatten(1, 2).to(self.codec.device, torch.float32)
        with whole_products():
            return self.codec.encode(x / torch.full_like(x[:1, :1, :1, :1], 127.5) - 1).mean.float()

    def decoded(self, x: Tensor, draws: Draws) -> Tensor:
        """Frames (N, each, C, H, W) of latents (N, c, h, w)."""
        decoding = decoding_of(self.codec)

        def images(part: slice, rows: Draws) -> Tensor:
            z_0 = with_noise(self.codec, x[part], rows)
            return decoding.images(z_0, self.shape, rows) if decoding else self.codec.decode(z_0, rows)

        return (in_parts(images, self.shape, draws).unflatten(1, (self.each, -1)) + 1) * 127.5

    def received(self, past: Tensor) -> Tensor:
        return self.encoded(past.unflatten(1, (-1, self.each)).flatten(0, 1)).unflatten(0, (len(past), -1)).cpu()

    def delivered(self, frames: Tensor, rows: Tensor, number: int) -> Tensor:
        latents = frames.flatten(0, 1).to(rows.device).unbind(1)
        pieces = [self.decoded(latent, Draws(number + i, rows)) for i, latent in enumerate(latents)]
        return torch.cat(pieces, 1).clamp(0, 255).unflatten(0, frames.shape[:2]).cpu()

    @property
    def reading(self) -> int:  # pyright: ignore[reportIncompatibleUnannotatedOverride]
        return self.past * macs_of(lambda: self.encoded(torch.zeros(1, self.each, *self.image)))

    @property
    def writing(self) -> int:  # pyright: ignore[reportIncompatibleUnannotatedOverride]
        latent, row = self.encoded(torch.zeros(1, self.each, *self.image)), torch.zeros(1, dtype=torch.int64)
        return macs_of(lambda: self.decoded(latent, Draws(0, row.to(latent.device))))


@dataclass(frozen=True)
class LatentForecast(Forecast):
    """The latents of a clip that come next, of those before; all other fields are as of frames that are latents."""

    clips: Forecast = Forecast()
    """The same forecast, of the frames themselves."""
    latents: CodecFolder = CodecFolder("", "")
    """The codec of clips."""
    image: tuple[Side, Side, Side] = (3, 1, 1)
    """(C, H, W) of a frame."""
    decoder: str = ""
    """sha256 of a decoder in place of the one that was trained with the latents; empty: it is that one."""

    @staticmethod
    def at(codec: CodecFolder, each: int, clips: Forecast, image: Shape, noise: float) -> LatentForecast:
        """Latents of `each` frames for the windows of `clips`; noise: on latents that are known"""
        of_frames = replace(clips, difference=False, noise=0.0, scale=(1.0,) * (image[0] * clips.frames))
        sizes = clips.past // each, clips.frames // each, clips.lead * each
        return LatentForecast(*sizes, clips.difference, noise=noise, clips=of_frames, latents=codec, image=image)

    @property
    def identity(self) -> dict[str, Any]:
        """Without the place of the codec, as of a `Forecast` without its data."""
        of_latents = {"clips": self.clips.identity["condition"], "latents": self.latents.fingerprint}
        return {"condition": super().identity["condition"] | of_latents}

    @property
    def of_data(self) -> Forecast:
        return self.clips

    @property
    def each(self) -> int:
        """Frames of a latent."""
        return self.clips.frames // self.frames

    def frame(self, sample: Shape) -> Shape:
        return self.image

    def coder(self, device: torch.device | str) -> ClipCoder:
        """Raises what reading the codec raises."""
        return ClipCoder(self.latents.read(device), self.image, self.past, self.each)

    def with_codec(self, folder: str | None, sampler: str | None, steps: int | None) -> LatentForecast:
        codec = self.latents if folder is None else CodecFolder(folder, self.latents.fingerprint)
        codec = codec.under(sampler, steps)
        read = codec.read("cpu")
        return replace(self, latents=codec, decoder="" if read.fingerprint == read.latents else read.fingerprint)

    def items(self, data: Any, split: Split, progress: DataProgress = silent) -> Fields:
        """Latents of one split. Raises as `read_fields`, and what reading the codec raises."""
        fields = self.clips.read_fields(data, split, self.clips.statistics, progress)
        lead = self.clips.lead
        lengths = [each.shape[0] - (self.each - 1) * lead for each in fields.trajectories]
        made_of = json.dumps([1, fields.fingerprint, self.latents.fingerprint, self.each, lead])
        key = hashlib.sha256(made_of.encode()).hexdigest()
        file = cache_dir() / "clips" / f"{key[:32]}.npy"
        if not file.is_file():
            coder = self.coder(pick_device(None))
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole(file) as aside, aside.open("wb") as opened:
                parts, total = [], sum(lengths)
                for clip, length in enumerate(lengths):
                    for first in range(0, length, PARTS):
                        count = min(PARTS, length - first)
                        frames = torch.from_numpy(fields.frames(clip, first, count + (self.each - 1) * lead))
                        pieces = torch.stack([frames[i * lead : i * lead + count] for i in range(self.each)], 1)
                        parts.append(coder.encoded(pieces).cpu().numpy())
                        progress(sum(map(len, parts)), total, "encoding clips")
                np.save(opened, np.concatenate(parts))
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        clips: Sequence[Any] = np.split(array, np.cumsum(lengths)[:-1])
        names = tuple(f"latent {i}" for i in range(array.shape[1]))
        statistics = self.statistics if self.statistics.mean else survey(fields.name, clips, names)[1]
        return Fields(
            fields.name, clips, names, fields.step, statistics, key, metadata=Metadata(time=fields.metadata.time)
        )
