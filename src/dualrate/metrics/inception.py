"""Inception features, in which a Frechet distance is called FID (Heusel et al., arXiv 1706.08500). An extra.

The net is torch-fidelity's port of the TensorFlow graph of 2015-12-05: its 2048 features of the last pooling, with that
graph's own bilinear resize to 299 x 299. torch-fidelity needs torchvision, hence `pip install 'dualrate[eval]'`.

The weights are a pickle, which torch-fidelity unpacks with all that pickles can do. So their sha256 is pinned here, and
what torch-fidelity gets are the very bytes that were checked, never a path whose content could change.
"""

from __future__ import annotations

import hashlib
import io
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualrate.config.ranges import BatchSize, Channels, Images, Ranged
from dualrate.data.packed import Shards
from dualrate.metrics.extractor import features_of_photos
from dualrate.system.files import naming, write_whole

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256, SIZE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2", 95_628_359
LAYER, DIM = "2048", 2048
_TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True)
class Inception(Ranged):
    """Inception-v3 in eval mode on a device, as a `FeatureExtractor`.

    module:   torch-fidelity's extractor: uint8 (B, 3, H, W) -> a tuple that holds (B, 2048) float32
    """

    module: nn.Module
    device: torch.device
    batch_size: BatchSize = 100
    metric: str = "FID"
    identity: str = f"torch-fidelity/inception-2015-12-05:{SHA256[:12]}"
    dim: Channels = DIM
    usual_count: Images = 50_000

    def features(self, images: Tensor | NDArray[np.uint8] | Shards) -> Tensor:
        """(N, 2048); see `features_of_photos`."""
        how = (self.device, self.batch_size)
        return features_of_photos(lambda batch: self.module(batch.expand(-1, 3, -1, -1))[0], images, "Inception", *how)

    def __reduce__(self) -> tuple[object, ...]:
        """To another process it goes as a word: that loads its own, once, on its device of the same kind."""
        return _loaded, (self.device.type, self.batch_size)


@cache
def _loaded(device: str, batch_size: int) -> Inception:
    return replace(load_inception(device), batch_size=batch_size)


def load_inception(device: torch.device | str = "cpu", *, note: Callable[[str], None] = lambda text: None) -> Inception:
    """Inception-v3 with the weights in `weights_path()`, fetched there once (96 MB) if they are nowhere.

    Raises ValueError if torch-fidelity or torchvision is missing or does not import, or if the weights are not those
    that FID is defined by, which are then not opened; OSError if they cannot be had.
    """
    extractor = _extractor_class()
    weights = _weights(weights_path(), note)
    module = extractor("inception", [LAYER], feature_extractor_weights_path=io.BytesIO(weights))
    return Inception(module.to(device).eval(), torch.device(device))


def weights_path() -> Path:
    """Where torch-fidelity and torchmetrics keep the weights too: $TORCH_HOME/hub/checkpoints."""
    return Path(torch.hub.get_dir(), "checkpoints", WEIGHTS)


def _extractor_class() -> Callable[..., nn.Module]:
    build = f"torch {torch.__version__}"
    try:
        from torch_fidelity import FeatureExtractorInceptionV3  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name == "torch_fidelity":
            raise ValueError(
                "FID needs torch-fidelity, which is not installed: pip install 'dualrate[eval]'. That brings "
                f"torchvision, which must be built for your {build}: PyPI's is for CUDA and does not import beside a "
                "CPU-only torch, such as that of constraints/cpu.txt, which needs the one of "
                "https://download.pytorch.org/whl/cpu. FD in the data set's own features needs neither"
            ) from error
        raise _broken(build, error) from error
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another build fails in any of these ways
        raise _broken(build, error) from error
    return FeatureExtractorInceptionV3


def _broken(build: str, error: Exception) -> ValueError:
    first = (str(error).splitlines() or [""])[0]
    return ValueError(
        f"torch-fidelity does not import beside {build} ({type(error).__name__}: {first}). Mostly torchvision is "
        "missing or of another build: install torch and torchvision together, from one index (PyPI for CUDA, "
        "https://download.pytorch.org/whl/cpu without), in an environment of its own"
    )


def _weights(path: Path, note: Callable[[str], None]) -> bytes:
    """The content of the weights file, checked before anything opens it."""
    if path.exists():
        with naming(path), path.open("rb") as file:
            return _checked(file.read(SIZE + 1), path)
    note(f"fetching Inception's weights (96 MB), once, to {path}")
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response:
            content = response.read(SIZE + 1)
    except (OSError, HTTPException) as error:
        raise OSError(
            f"Inception's weights cannot be fetched from {URL} ({error}); put the file there by hand: {path} (sha256 "
            f"{SHA256}; TORCH_HOME moves the folder), or evaluate without --features inception"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _checked(content, URL))
    return content


def _checked(content: bytes, source: Path | str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{source} has {'more than ' if len(content) > SIZE else ''}{min(len(content), SIZE)} bytes with sha256 "
            f"{found}; Inception's weights are {SIZE} bytes with {SHA256}. It was not opened: delete it and run again, "
            f"or put the file from {URL} at {weights_path()}"
        )
    return content
