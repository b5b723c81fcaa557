"""Judges of images of CIFAR-10: five networks, in whose features a Frechet distance to all training images is measured.

Three are classifiers of these images, one of each architecture of the package. Two are EfficientNets that their authors
trained on ImageNet (benchmarks/peers.py), up to the layer that gives the features. They are trained and read where the
packages are, and travel in a file, 33 MiB, with the statistics of the training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dualrate as dr
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.features import Architecture, Classifier, Mixed, Stacked, train_feature_net
from dualrate.metrics.pretrained import EfficientNetFeatures
from dualrate.system.device import whole_products
from tools.gpu.cifar10 import CLASSES, SHAPE

FILE = "judges.safetensors"
LITE = {"Lite0": "efficientnet-lite0", "Lite2": "efficientnet-lite2"}
TRAINED: dict[str, type[Architecture]] = {"pyramid": Architecture, "stack": Stacked, "mixer": Mixed}


class OfPixels(nn.Module):
    """A classifier's features of images (N, 3, 32, 32) uint8."""

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net.features(images / 127.5 - 1)


def untrained() -> dict[str, nn.Module]:
    """The networks by name; of uint8 images, features (N, D)."""
    from efficientnet_lite_pytorch import EfficientNet

    lite = {name: EfficientNetFeatures(EfficientNet.from_name(kind)) for name, kind in LITE.items()}
    return {**lite, **{name: OfPixels(kind(*SHAPE[:2], CLASSES).build()) for name, kind in TRAINED.items()}}


def prepare(source: str, file: Path) -> None:
    """Train the classifiers on the images of a source, half an hour of a core each, and write the file of judges."""
    from benchmarks.peers import nets

    train, test = (dr.DataConfig(source).images(split) for split in ("train", "test"))
    judges: dict[str, nn.Module] = {name: net.module for name, net in zip(LITE, nets(), strict=True)}
    for name, kind in TRAINED.items():
        net = train_feature_net(train, test, kind=kind, name=name)
        print(net.card.judgement)
        judges[name] = OfPixels(net.module)
    write(judges, torch.as_tensor(train.images[:]), file)


def write(judges: Mapping[str, nn.Module], pixels: Tensor, file: Path) -> None:
    """Write networks, and what they see in images (N, 3, 32, 32) uint8."""
    tensors: dict[str, Tensor] = {}
    for name, net in judges.items():
        seen = GaussianStats.of(features(net.eval(), pixels))
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in net.state_dict().items()}
        tensors |= {f"mean {name}": seen.mean, f"cov {name}": seen.cov}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


@torch.no_grad()
def features(net: nn.Module, pixels: Tensor) -> Tensor:
    """(N, D) on the CPU of images (N, 3, 32, 32) uint8 on the device, in whole float32."""
    with whole_products(), torch.autocast(pixels.device.type, enabled=False):
        return torch.cat([net(part).float().cpu() for part in pixels.split(500)])


class Judges:
    """The networks of a file that `write` wrote, and what they saw."""

    def __init__(self, file: Path, device: torch.device) -> None:
        tensors, self.nets = load_file(file), untrained()
        for name, net in self.nets.items():
            start = f"{name}."
            net.load_state_dict({key.removeprefix(start): tensors[key] for key in tensors if key.startswith(start)})
            net.to(device).eval().requires_grad_(False)
        self.real = {name: GaussianStats(tensors[f"mean {name}"], tensors[f"cov {name}"], None) for name in self.nets}

    def distances(self, pixels: Tensor) -> dict[str, float]:
        """The Frechet distance of images (N, 3, 32, 32) uint8 on the device, by each judge."""
        stats = {name: GaussianStats.of(features(net, pixels)) for name, net in self.nets.items()}
        return {name: frechet_distance(stats[name], self.real[name]) for name in stats}
