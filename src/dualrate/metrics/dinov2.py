"""DINOv2 features, in which a Frechet distance is called FD-DINOv2 (Stein et al., arXiv 2306.04675). An extra.

The class token after the last norm of DINOv2 ViT-L/14 (Oquab et al., arXiv 2304.07193), as dgm-eval and EDM2 take it;
images are resized to 224 x 224 as by EDM2's faster way: bicubic with antialiasing, without rounding.

The net is that of transformers, the weights are the official ones in safetensors. Two things are the original's, which
transformers does otherwise: the position embeddings are shrunk by the factor (16 + 0.1) / 37, not 16 / 37, and that is
done once, here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from dualrate.config.ranges import BatchSize, Channels, Images, Ranged
from dualrate.data.packed import Shards
from dualrate.metrics.extractor import features_of_photos, resized
from dualrate.system.files import read_bytes, tensors_of

MODEL, REVISION = "facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFSET = 0.1  # patches; the original adds it to the size that position embeddings are resized to


@dataclass(frozen=True)
class DinoV2(Ranged):
    """DINOv2 in eval mode on a device, as a `FeatureExtractor`.

    module:   transformers' Dinov2Model: (B, 3, 224, 224) -> last_hidden_state (B, 1 + patches, D), class token first
    identity: "dinov2-large:<first 12 hex digits of the sha256 of the weights it was made of>"
    """

    module: nn.Module
    identity: str
    dim: Channels
    device: torch.device
    batch_size: BatchSize = 50
    metric: str = "FD-DINOv2"
    usual_count: Images = 50_000

    def features(self, images: Tensor | NDArray[np.uint8] | Shards) -> Tensor:
        """(N, D); see `features_of_photos`."""
        how = (self.device, self.batch_size)
        return features_of_photos(
            lambda batch: self.module(prepared(batch)).last_hidden_state[:, 0], images, "DINOv2", *how
        )

    def __reduce__(self) -> tuple[object, ...]:
        """To another process it goes as a word: that loads its own, once, on its device of the same kind."""
        return _loaded, (self.device.type, self.batch_size)


@cache
def _loaded(device: str, batch_size: int) -> DinoV2:
    return replace(load_dinov2(device), batch_size=batch_size)


def prepared(images: Tensor) -> Tensor:
    """What the net takes, (N, 3, 224, 224) float32, of images (N, C, H, W) uint8, C = 1 or 3."""
    x = resized(images, SIZE) / 255
    mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def load_dinov2(device: torch.device | str = "cpu") -> DinoV2:
    """DINOv2 ViT-L/14 from the Hugging Face cache, fetched there once (1.2 GB) if it is not in it.

    Raises ValueError if transformers is missing or does not import, or if the weights are not all there; OSError if
    they cannot be had.
    """
    transformers, hub = _packages()
    config, weights = (_file(hub, name) for name in (CONFIG, WEIGHTS))
    module, identity = build(transformers, config, weights)
    name, dim = MODEL.split("/")[1], module.config.hidden_size
    return DinoV2(module.to(device), f"{name}:{identity[:12]}", dim, torch.device(device))


def build(transformers: Any, config: Path, weights: Path) -> tuple[Any, str]:
    """The net of a config.json and a .safetensors file, and the sha256 (hex) of the very bytes that it was made of."""
    content = read_bytes(weights)
    try:
        tensors = tensors_of(content)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{weights} is no safetensors file ({error}): delete it, and it is fetched again") from error
    module, report = transformers.Dinov2Model.from_pretrained(
        None,
        config=transformers.Dinov2Config.from_json_file(config),
        state_dict=tensors,
        dtype=torch.float32,
        output_loading_info=True,
    )
    absent = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
    if absent:  # transformers would have drawn them at random
        raise ValueError(f"{weights} lacks {len(absent)} of DINOv2's tensors, the first is {absent[0]}: fetch it again")
    module.embeddings.position_embeddings = nn.Parameter(
        shrunk(module.embeddings.position_embeddings.detach(), SIZE // module.config.patch_size)
    )
    return module.eval().requires_grad_(False), hashlib.sha256(content).hexdigest()


def shrunk(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings (1, 1 + patches^2, D) from those of another square grid (1, 1 + side^2, D), class first.

    As in the original: bicubic, sampled as if there were `patches` + 0.1 in a row. Unchanged for the same grid.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if side == patches:
        return positions
    factor = (patches + OFFSET) / side
    grid = positions[:, 1:].unflatten(1, (side, side)).movedim(-1, 1)
    resized = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([positions[:, :1], resized.flatten(2).mT], dim=1)


def _packages() -> tuple[Any, Any]:
    """transformers and huggingface_hub, which it needs."""
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(
            f"FD-DINOv2 needs transformers, and {error.name} is not installed: pip install 'dualrate[dinov2]'. FD in "
            "the data set's own features needs neither"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise ValueError(
            f"transformers does not import beside torch {torch.__version__} ({type(error).__name__}: {error}): "
            "pip install --upgrade 'dualrate[dinov2]', in an environment of its own"
        ) from error
    return transformers, huggingface_hub


def _file(hub: Any, name: str) -> Path:
    """A file of the model, at the pinned revision."""
    try:
        return Path(hub.hf_hub_download(MODEL, name, revision=REVISION))
    except OSError as error:
        raise OSError(
            f"{name} of {MODEL} cannot be fetched ({str(error).splitlines()[0]}). Where there is a network: "
            f"hf download {MODEL} {CONFIG} {WEIGHTS} --revision {REVISION}, then bring its cache here (HF_HOME says "
            "where it is), or evaluate without --features dinov2"
        ) from error
