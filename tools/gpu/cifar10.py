"""CIFAR-10 on a device: packed for the way, as training batches, and as what losses are measured on."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dualrate as dr
from dualrate.data.condition_rows import Make
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid, Weighting, x_loss_weight
from dualrate.methods.times import to_device
from dualrate.system.device import pays
from tools.gpu.piece import Job, Row

SHAPE, CLASSES = (3, 32, 32), 10
SPLITS = ("train", "test")


def network(conv: int, transformers: tuple[int, int], blocks: int, middle: int, classes: int) -> dr.UViTConfig:
    """A U-ViT of `blocks` blocks at 32 x 32 and at 16 x 16, `middle` at 8 x 8."""
    levels = (
        dr.Level("conv", conv, blocks),
        dr.Level("transformer", transformers[0], blocks),
        dr.Level("transformer", transformers[1], middle),
    )
    return dr.UViTConfig(32, 3, levels, num_classes=classes, embedding=256, head_dim=32)


def pack(source: Path, target: Path) -> None:
    """Write train.parquet and test.parquet of the folder `source` as one file: of 60,000 JPEGs, 17 MB."""
    from pyarrow import parquet

    packed: dict[str, np.ndarray] = {}
    for split in SPLITS:
        table = parquet.read_table(source / f"{split}.parquet", columns=["image", "label"])
        pictures = [image["bytes"] for image in table["image"].to_pylist()]
        packed[f"{split}_sizes"] = np.array([len(picture) for picture in pictures])
        packed[f"{split}_labels"] = table["label"].to_numpy().astype(np.uint8)
        packed[f"{split}_bytes"] = np.frombuffer(b"".join(pictures), np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **packed)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Images:
    """pixels: (N, 3, 32, 32) uint8; labels: (N,) int64; both on the device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Images:
        return Images(self.pixels[:count], self.labels[:count])

    @property
    def x(self) -> Tensor:
        """Pixels in [-1, 1]."""
        return self.pixels / 127.5 - 1


def images(job: Job, split: str) -> Images:
    """The images of a split, which are decoded once a machine; made-up ones in a smoke test."""
    file = job.work / f"{split}.npz"
    if not file.is_file():
        job.work.mkdir(parents=True, exist_ok=True)
        pixels, labels = _made_up(split) if job.smoke else _unpacked(job.data, split)
        np.savez(file, images=pixels, labels=labels)
    with np.load(file) as archive:
        pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous()
        return Images(pixels.to(job.device), torch.from_numpy(archive["labels"]).long().to(job.device))


def _unpacked(data: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    if data is None:
        raise ValueError("this piece reads CIFAR-10: make a file by `python -m tools.gpu pack`, and give it as --data")
    with np.load(data) as packed:
        ends = np.cumsum(packed[f"{split}_sizes"])
        content, labels = packed[f"{split}_bytes"].tobytes(), packed[f"{split}_labels"]
    pictures = (content[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return np.stack([np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in pictures]), labels


def _made_up(split: str, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Noise around a grey of its class."""
    rng = np.random.default_rng(SPLITS.index(split))
    labels = np.arange(count, dtype=np.uint8) % CLASSES
    grey = rng.normal(25 * labels[:, None, None, None], 20, (count, 32, 32, 3))
    return np.clip(grey, 0, 255).astype(np.uint8), labels


@dataclass(frozen=True)
class Batches:
    """Random images, half of them mirrored, as a function of the iteration, below 2^24, and a seed below 2^8.

    labelled: with their classes; make: what makes the condition of each, if they have one
    """

    images: Images
    size: int
    labelled: bool = True
    make: Make | None = None
    seed: int = 0

    def batch(self, iteration: int) -> Batch:
        generator = torch.Generator().manual_seed(iteration + (self.seed << 24))
        drawn = (torch.randint(len(self.images), (self.size,), generator=generator),)
        drawn += (torch.rand(self.size, 1, 1, 1, generator=generator) < 0.5,)
        here = iteration * self.size + torch.arange(self.size)
        rows, mirrored, sample = to_device(self.images.labels.device, *drawn, here)
        pixels = self.images.pixels[rows]
        x = torch.where(mirrored, pixels.flip(3), pixels) / 127.5 - 1
        label = self.images.labels[rows] if self.labelled else None
        condition = None if self.make is None else self.make(x, Draws(0, sample, here))
        return Batch(x, label, sample, here=here, given=condition)


def validation(
    denoiser: dr.Denoiser,
    process: dr.GaussianProcess,
    held_out: Images,
    *,
    age: float = 0.0,
    bins: int = 12,
    batch: int = 512,
    weighting: Weighting = Sigmoid(),
) -> list[dict[str, float]]:
    """The error of x_hat at `bins` times, evenly spread, on the same noise for every network.

    age: of the context, in time, on the forward path of the images
    Returns for each time its log-SNR, the mean squared error of a pixel, and the training loss that it stands for.
    """
    rows = []
    for now, errors in image_errors(denoiser, process, held_out, age, bins, batch):
        at, error = torch.tensor(now, dtype=torch.float64), float(errors.mean())
        weight = float(x_loss_weight(weighting, process.schedule, at))
        log_snr = float(process.schedule.log_snr(at))
        rows.append({"log_snr": round(log_snr, 3), "error": error, "loss": weight * error})
    return rows


@torch.no_grad()
def image_errors(
    denoiser: dr.Denoiser,
    process: dr.GaussianProcess,
    held_out: Images,
    age: float = 0.0,
    bins: int = 12,
    batch: int = 512,
) -> Iterator[tuple[float, Tensor]]:
    """Each time of a validation, and the mean squared error of each image's pixels, (N,)."""
    device = held_out.labels.device
    bfloat16 = pays(device)
    for k in range(bins):
        now = (k + 0.5) / bins
        generator, errors = torch.Generator(device).manual_seed(k), []
        for start in range(0, len(held_out), batch):
            part = Images(held_out.pixels[start : start + batch], held_out.labels[start : start + batch])
            x = part.x
            t = torch.full((len(x),), now, dtype=torch.float64, device=device)
            tau, cond = (t + age).clamp(max=1), dr.Cond(part.labels)
            first, second = (torch.randn(x.shape, generator=generator, device=device) for _ in range(2))
            z, z_tau = process.pair(x, t, tau, first, second) if age else (process.add_noise(x, t, first),) * 2
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                context = denoiser.encode(z_tau, tau, cond)
                x_hat = denoiser.denoise(z, t, context.aged() if age else context, cond)
            errors.append((x_hat.float() - x).square().flatten(1).mean(1))
        yield now, torch.cat(errors)


def mean_loss(rows: Sequence[Row]) -> float:
    """The mean of a validation over uniform times, which is the training loss."""
    return sum(row["loss"] for row in rows) / len(rows)
