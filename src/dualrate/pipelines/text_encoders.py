"""The text encoders in a pipeline's folder: texts -> prompts, rows that its network takes.

They are loaded by diffusers and transformers, of safetensors alone and without the network. The prompt that stands for
none is kept in the cache, so that a model is loaded without them where it is known already.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dualrate.config.ranges import as_path
from dualrate.data.cache import cache_dir
from dualrate.pipelines.folder import (
    INDEX,
    NETWORK,
    check_config,
    check_files,
    check_own,
    check_weights,
    digest_of,
    settings_in,
)
from dualrate.pipelines.foreign import ForeignConfig
from dualrate.pipelines.prompts import COMPONENTS, encoded, negative_prompt
from dualrate.system.files import blaming, read_bytes, write_whole

PARTS = ("text_encoder", "tokenizer")  # as folders of a pipeline begin
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
VAE_LAYOUT = f"vae/{NETWORK}"
UNUSED = (*COMPONENTS, "vae", "safety_checker", "feature_extractor", "image_encoder")  # parts that texts do not need


def encoders_fingerprint(folder: Path) -> str:
    """sha256 of all files of its text encoders and tokenizers. Raises ValueError where there are none."""
    files = list[Path]()
    for part in sorted(place for place in folder.glob("*") if place.is_dir() and place.name.startswith(PARTS)):
        check_files(part)
        files += sorted(file for file in part.rglob("*") if file.is_file())
    if not files:
        raise ValueError(
            f"{folder} has no {PARTS[0]}, which makes prompts of texts: name the pipeline's whole folder, or draw in "
            "Python, by dualrate.from_diffusers and dualrate.prompts"
        )
    return digest_of(folder, files)


def read_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline without its network, and without encoders that its model_index.json lacks. dtype: of its weights

    Raises ValueError where transformers is missing, for code of its own, and for text encoders that are quantised or
    hold a LoRA, and tokenizers without a vocabulary.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils.import_utils import is_transformers_available

    if not is_transformers_available():
        raise ValueError(f"the text encoders of {folder} need transformers: pip install transformers")
    index = settings_in(folder / INDEX)
    check_own(folder, index)
    for part in (folder / name for name in index if name.startswith(PARTS[0])):
        check_config(part, settings_in(part / NETWORK) if (part / NETWORK).is_file() else {})
        check_weights(part)  # transformers draws at random what it does not find
    unused = {part: None for part, kind in index.items() if part in UNUSED or kind == [None, None]}
    for part in (folder / name for name in index if name.startswith(PARTS[1]) and name not in unused):
        if not any((part / name).is_file() for name in VOCABULARY):  # transformers would make do with none
            raise ValueError(f"{part} has no vocabulary ({', '.join(VOCABULARY)}): fetch the pipeline again")
    with blaming(folder / INDEX):
        return DiffusionPipeline.from_pretrained(
            folder, **unused, dtype=dtype, use_safetensors=True, local_files_only=True
        )


def copy_encoders(folder: Path, target: Path) -> None:
    """All that `read_pipeline` reads of a pipeline's folder, into a new one."""
    target.mkdir()
    shutil.copyfile(folder / INDEX, target / INDEX)
    if (layout := folder / VAE_LAYOUT).is_file():
        (target / VAE_LAYOUT).parent.mkdir()
        shutil.copyfile(layout, target / VAE_LAYOUT)
    for part in folder.iterdir():
        if part.is_dir() and part.name.startswith((*PARTS, "scheduler")):
            shutil.copytree(part, target / part.name)


@lru_cache(1)
def _pipeline(texts: TextFolder, device: str, dtype: torch.dtype) -> Any:
    folder, config = Path(texts.folder), json.loads(texts.network.config)
    pipeline = read_pipeline(folder, dtype).to(device)
    pipeline.default_sample_size = texts.network.shape[1]  # for which it would ask its network
    # SD3 without its T5 asks the network for a width; a pipeline's own `__setattr__` takes modules alone
    vars(pipeline)["transformer"] = SimpleNamespace(config=SimpleNamespace(**config), dtype=dtype)
    if (layout := folder / VAE_LAYOUT).is_file() and (blocks := settings_in(layout).get("block_out_channels")):
        with blaming(layout):
            vars(pipeline)["vae_scale_factor"] = 2 ** (len(blocks) - 1)  # a property of its class stays, as PRX's
    return pipeline


@dataclass(frozen=True)
class TextFolder:
    """Text encoders of a pipeline, pickled as where they are. fingerprint: sha256 of all their files"""

    folder: str
    fingerprint: str
    network: ForeignConfig

    @staticmethod
    def of(place: str, encoder: str, network: ForeignConfig) -> TextFolder:
        """The text encoders of this sha256 in a folder. Raises ValueError where they are gone, or have changed."""
        folder = as_path(place)
        way = "name prompts that were encoded before (--prompt LATENTS), or put the pipeline back"
        if not (folder / INDEX).is_file():
            raise ValueError(f"the pipeline whose text encoders read prompts is gone from {folder}: {way}")
        if (fingerprint := encoders_fingerprint(folder)) != encoder:
            raise ValueError(
                f"the text encoders in {folder} are others (sha256 {fingerprint[:12]}, expected {encoder[:12]}): {way}"
            )
        return TextFolder(str(folder), fingerprint, network)

    @property
    def size(self) -> int:
        """D, the numbers of a prompt."""
        return self.network.prompt.size

    def read(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Callable[[Sequence[str]], Tensor]:
        """texts -> (B, 1, 1, D), by encoders of this dtype."""
        pipeline, layout, kind = _pipeline(self, str(device), dtype), self.network.prompt, self.network.spec
        return lambda texts: layout.packed(encoded(kind, layout, list(texts), pipeline))

    def empty(self, device: torch.device | str) -> Tensor:
        """(1, 1, 1, D): the prompt for no text. Raises ValueError as `read_pipeline` where it is not cached."""
        if (file := self.cache_file).is_file():
            return torch.from_numpy(np.load(io.BytesIO(read_bytes(file)), allow_pickle=False))
        empty = self.negative(None, device)
        self.keep(empty)
        return empty

    def negative(self, text: str | None, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
        """(1, 1, 1, D): the prompt that a text stands for where it is the negative one; None: of none."""
        pipeline = _pipeline(self, str(device), dtype)
        return cast(Tensor, negative_prompt(self.network.spec, self.network.prompt, text, pipeline))

    @property
    def cache_file(self) -> Path:
        """The file of the empty prompt in the cache."""
        named = repr((self.fingerprint, self.network.kind, self.network.config, self.size))
        return cache_dir() / "prompts" / f"{hashlib.sha256(named.encode()).hexdigest()}.npy"

    def keep(self, empty: Tensor) -> None:
        """Put the empty prompt, (1, 1, 1, D), into the cache."""
        content = io.BytesIO()
        np.save(content, empty.float().cpu().numpy(), allow_pickle=False)
        self.cache_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.cache_file, content.getvalue())
