"""CLIP score: how well images fit the texts that they were made of, by a CLIPModel of transformers in a folder.

    score = mean over images of 100 max(cos(image's embedding, text's embedding), 0)

Source: Hessel et al. 2021, arXiv 2104.08718, eq. (1), with w = 100, as most report it, for 2.5. Higher is better.
Images are resized to the model's side, bicubic with antialiasing and without rounding; texts are cut to its length.
The folder has config.json, model.safetensors and the tokenizer's files; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.codecs.codec import ON_PIXELS, Codec
from dualrate.data.cache import cache_dir
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics.distances import resampling_weights
from dualrate.metrics.evaluate import RESAMPLING_SEED, Evaluator
from dualrate.metrics.pretrained import CONFIG, METRICS, WEIGHTS, PhotoNet, check_all_there, needs, normalised
from dualrate.pipelines.prompt_set import Texts, has_prompts, read_prompts
from dualrate.system.device import pick_device, whole_products
from dualrate.system.files import read_json
from dualrate.system.progress import Reporter, image_progress

METRIC = METRICS["clip"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the images it was trained on
VOCABULARY = ("tokenizer.json", "vocab.json")
AT_A_TIME = 50  # images, and texts


def is_clip(folder: Path) -> bool:
    """Whether a folder holds a CLIPModel."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    return isinstance(config, dict) and config.get("model_type") == "clip"


class ClipImages(nn.Module):
    """uint8 (B, C, H, W) -> embeddings (B, D)"""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.side = net, net.config.vision_config.image_size

    def forward(self, images: Tensor) -> Tensor:
        x = normalised(images, self.side, MEAN, STD)
        return self.net.visual_projection(self.net.vision_model(x).pooler_output)


@dataclass(frozen=True)
class Clip(PhotoNet):
    """The image's half as a `FeatureExtractor`, whose features are embeddings, and the text's. folder: it is from"""

    folder: str = ""
    tokenizer: Any = None

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 on the CPU."""
        net, parts = cast(ClipImages, self.module).net, []
        longest = net.config.text_config.max_position_embeddings
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), whole_products():
            for start in range(0, len(texts), self.batch_size):
                part = list(texts[start : start + self.batch_size])
                words = self.tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
                inputs = {name: words[name].to(self.device) for name in ("input_ids", "attention_mask")}
                parts.append(net.text_projection(net.text_model(**inputs).pooler_output).float().cpu())
        return torch.cat(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return load_clip, (Path(self.folder), self.device.type)


def load_clip(folder: Path, device: torch.device | str | None = None) -> Clip:
    """The net in a folder. device: as of `pick_device`

    Raises ValueError without transformers, and for a folder that lacks weights or a tokenizer.
    """
    device = pick_device(device)
    with needs(METRIC, "clip", "transformers"):
        from transformers import CLIPModel, CLIPTokenizer  # pyright: ignore[reportMissingImports]
    try:
        if not any((folder / name).is_file() for name in VOCABULARY):  # transformers would make do with none
            raise OSError(f"no {' or '.join(VOCABULARY)}")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        net, report = CLIPModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no whole CLIPModel ({(str(error).splitlines() or [''])[0]}): its {CONFIG}, {WEIGHTS} and "
            "tokenizer are needed (hf download openai/clip-vit-large-patch14 --local-dir FOLDER)"
        ) from error
    check_all_there(report, "CLIP", folder)
    with (folder / WEIGHTS).open("rb") as file:
        identity = f"clip:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    module = ClipImages(net.requires_grad_(False)).to(device).eval()
    parts = (module, identity, net.config.projection_dim, device, AT_A_TIME)
    return Clip("clip", *parts, folder=str(folder), tokenizer=tokenizer)


def evaluator_of(folder: Path, data: DataConfig, device: torch.device | str | None, progress: Reporter) -> ClipScore:
    """The CLIP score by the net in a folder, with the captions of the held-out images, where the data are latents with
    prompts. Raises as `load_clip`, and what reading the images raises."""
    captions = read_prompts(data.source, "test").texts if has_prompts(data.source) else None
    held_out = None if captions is None else data.images("test")
    keep, shown = cache_dir() / "real-features", image_progress(progress)
    return ClipScore(load_clip(folder, device), None, held_out, keep, shown, captions=captions or ())


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """(N,) float64: 100 max(cos, 0) of embeddings, (N, D) both."""
    return 100 * F.cosine_similarity(images.double(), texts.double()).clamp(min=0)


@dataclass(frozen=True)
class ClipScore(Evaluator[Clip]):
    """Scores images by the texts that they were made of; it compares with no images.

    held_out:  real images with captions, whose own score is the floor
    captions:  theirs; texts: of the images that are scored, in their order
    """

    better = "higher"
    captions: Sequence[str] | Texts = ()
    texts: Sequence[str] | None = None

    def check_count(self, count: int) -> None:
        """Raises ValueError for fewer images than an interval needs."""
        if count < 2:
            raise ValueError(f"got {count} image: an interval needs 2 at least, draw more")

    def value(self, features: Tensor, of: Tensor | None = None) -> tuple[float, str, int | None]:
        digest = hashlib.sha256("\n".join(self.texts or ()).encode()).hexdigest()
        return self.each(features).mean().item(), f"texts:{digest[:12]}", None

    def _note(self, *_: int, **__: Any) -> str:
        return ""

    def replicates(
        self, features: Tensor, strata: Tensor | None = None, resamples: int = 200, *, of: Tensor | None = None
    ) -> NDArray[np.float64]:
        """Means of resampled images, (resamples,)."""
        values = self.each(features)
        strata = torch.zeros(len(values), dtype=torch.int64) if strata is None else strata
        weights = resampling_weights(strata, resamples, RESAMPLING_SEED)
        return np.array([float(weight @ values) / len(values) for weight in weights])

    def each(self, features: Tensor) -> Tensor:
        """(N,) float64. Raises ValueError where the images' texts are not known, or are not as many."""
        texts = self.texts or ()
        if len(texts) != len(features):
            raise ValueError(f"{METRIC} is of images and their texts, got {len(features)} and {len(texts)}")
        if "texts" not in self._known:
            self._known["texts"] = self.net.texts(texts)
        return clip_scores(features, self._known["texts"])

    def floor(self, count: int, codec: Codec = ON_PIXELS) -> tuple[float, int]:
        """The score of the first `count` held-out images with their captions; (NaN, 0) without any."""
        if self.held_out is None or not len(self.captions):
            return math.nan, 0
        count = min(count, len(self.held_out))
        if ("floor", count) not in self._known:
            words = self.net.texts([self.captions[i] for i in range(count)])
            self._known["floor", count] = clip_scores(self._features(self.held_out)[:count], words).mean().item()
        return self._known["floor", count], count

    def of_texts(self, texts: Sequence[str] | None) -> Self:
        """Raises ValueError where there are none."""
        if texts is None:
            raise ValueError(
                f"{METRIC} is of images and the texts that they were made of, which are not known here: name a model "
                "of texts by its run or its pipeline, encode captions again where that was long ago, or drop CLIP"
            )
        if (key := tuple(texts)) not in self._known:  # those of a comparison have the same
            self._known[key] = replace(self, texts=key)
        return self._known[key]
