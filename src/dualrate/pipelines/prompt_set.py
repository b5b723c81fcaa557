"""Prompts of images: their captions, as the text encoders of a model read them, packed beside latents.

FOLDER/prompts/            a packed folder (cache.py), rows N x 1 x 1 x D float16, in the latents' order
FOLDER/prompts/captions    the captions in their own order, a JSON string a line; where in it a prompt's is, in
                           bytes, stands in the place of a label
FOLDER/prompts/empty.npy   (1, 1, D) float32: the prompt that stands for none
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data import cache as packed
from dualrate.data.cache import SHARD_BYTES, Packed, read_packed
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import SPLITS, DataProgress, Raw, Split, resolved, silent
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.pipelines.captions import Captions
from dualrate.pipelines.text_encoders import TextFolder
from dualrate.system.device import pick_device
from dualrate.system.files import blaming, read_bytes, read_json, whole
from dualrate.system.folders import Damaged
from dualrate.system.workers import Mapper, in_turn

PROMPTS, CAPTIONS, EMPTY = "prompts", "captions", "empty.npy"
ENCODING = "encoding prompts"  # the message of progress
AT_A_TIME, HELD = 16, 16  # texts that are encoded together; so many times these are held


class EncodedPrompts:
    """Prompts of texts as one array that is only read: (N, 1, 1, D), indexed by numbers, encoded when asked for.

    A prompt is the same whichever are asked for with it: texts are encoded AT_A_TIME, in their order. The latest
    AT_A_TIME x HELD are held, in float32.
    """

    def __init__(self, texts: Sequence[str], encoder: TextFolder, device: torch.device | str) -> None:
        self._made_of, self.shape = (texts, encoder, device), (len(texts), 1, 1, encoder.size)
        self._held = lru_cache(maxsize=HELD)(self._encode)

    def __reduce__(self) -> tuple[type[EncodedPrompts], tuple[Any, ...]]:
        texts, encoder, device = self._made_of
        return EncodedPrompts, (texts, encoder, torch.device(device).type)  # each process has a GPU of its own

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: NDArray[np.int64]) -> Tensor:
        """Prompts by number, (B, 1, 1, D) float32 on the CPU. Raises what the encoder's `read` raises."""
        return torch.stack([self._held(i // AT_A_TIME)[i % AT_A_TIME] for i in index.tolist()])

    @property
    def sums(self) -> str:
        """The texts and the encoder, as JSON: prompts with the same are the same."""
        texts, encoder, _ = self._made_of
        return json.dumps([encoder.fingerprint, encoder.size, list(texts)])

    def _encode(self, number: int) -> Tensor:
        texts, encoder, device = self._made_of
        return encoder.read(device)(texts[number * AT_A_TIME : (number + 1) * AT_A_TIME]).float().cpu()


@dataclass(frozen=True, eq=False)
class Texts:
    """Captions by their places in a file, read when they are asked for."""

    file: Path
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        """A caption, or some of them by a slice. Raises Damaged for a file that is not what was written."""
        if isinstance(index, slice):
            return Texts(self.file, self.places[index])
        with self.file.open("rb") as opened:
            opened.seek(int(self.places[index]))
            line = opened.readline()
        try:
            return str(json.loads(line))
        except ValueError as error:
            raise Damaged(f"{self.file} is not what was written ({error}): encode the captions again") from error


class PromptSet(TrainingSet):
    """Prompts of one split, in the order of the latents beside them. encoder: its fingerprint; size: D"""

    labels = None
    class_names = ()

    def __init__(self, prompts: Packed, folder: Path) -> None:
        self.packed, self.folder, self.name = prompts, folder, prompts.part["name"]
        self.encoder: str = prompts.dataset["encoder"]

    @property
    def size(self) -> int:
        return self.packed.dataset["row"]["shape"][2]

    @property
    def shape(self) -> Shape:
        return 1, 1, self.size

    @property
    def fingerprint(self) -> str:
        content = [self.encoder, self.packed.dataset["empty"]]
        content += [shard["sha256"] for shard in self.packed.part["shards"]]
        return hashlib.sha256("".join(content).encode()).hexdigest()

    def __len__(self) -> int:
        return self.packed.part["images"]

    def rows(self, index: NDArray[np.int64], draws: Draws, augment: Augment, /) -> Tensor:
        """(B, 1, 1, D) float16."""
        return torch.from_numpy(self.packed.rows[index])

    @staticmethod
    def floats(rows: Tensor, draws: Draws) -> Tensor:
        return rows.float()

    @property
    def texts(self) -> Texts:
        """The captions."""
        return Texts(self.folder / CAPTIONS, cast("NDArray[np.int64]", self.packed.labels))

    def empty(self) -> Tensor:
        """(1, 1, 1, D): the prompt that stands for none. Raises Damaged where the file is not what was written."""
        content = read_bytes(self.folder / EMPTY)
        if hashlib.sha256(content).hexdigest() != self.packed.dataset["empty"]:
            raise Damaged(f"{self.folder / EMPTY} is not what was written: remove {self.folder}, then {packed.AGAIN}")
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))[None]


def verify_captions(folder: Path) -> None:
    """Compare the captions beside latents, and their empty prompt, with what was written. Raises Damaged for others."""
    splits = [read_prompts(folder, split) for split in SPLITS]
    splits[0].empty()
    file = folder / PROMPTS / CAPTIONS
    digest = hashlib.sha256(read_bytes(file))
    for prompts in splits:
        digest.update(np.asarray(prompts.packed.labels, np.int64).tobytes())
    if digest.hexdigest() != read_json(folder / PROMPTS / packed.PROMPTED)["captions"]:
        raise Damaged(f"{file} is not what was written: remove {folder / PROMPTS}, then {packed.AGAIN}")


def has_prompts(source: str | Path) -> bool:
    """Whether a data source is a folder of latents with prompts, finished or not."""
    return source != "" and (resolved(source) / PROMPTS / packed.PROMPTED).is_file()


def read_prompts(source: str | Path, split: Split) -> PromptSet:
    """Raises ValueError for latents without prompts, and as `read_latents`."""
    if not has_prompts(source):
        raise ValueError(
            f"{source} has no prompts, which a text-to-image model is trained on: dualrate data encode IMAGES LATENTS "
            "--prompts CAPTIONS PIPELINE"
        )
    folder = resolved(source) / PROMPTS
    rows = read_packed(folder, split)
    with blaming(folder / packed.DATASET):
        prompts = PromptSet(rows, folder)
        _ = prompts.size, prompts.fingerprint
        return prompts


def encode_prompts(
    captions: Captions,
    folder: Path,
    encoder: TextFolder,
    *,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    mapper: Mapper = in_turn,
    progress: DataProgress = silent,
) -> dict[str, Any]:
    """Prompts of both splits, beside the latents in `folder`; or what is left to do. Returns what dataset.json holds.

    device: of the encoder, in every process, as of `pick_device`
    Raises ValueError for a folder with prompts of other captions, or by another encoder, and for numbers that float16
    has not; OSError for what cannot be read or written.
    """
    place, device = folder / PROMPTS, pick_device(device)
    plan = {"format": packed.FORMAT, "source": captions.place, "on_bad": "fail", "shard_bytes": shard_bytes}
    plan |= {"encoder": encoder.fingerprint, "size": encoder.size, "captions": captions.content, "content": ""}
    with packed.begun(place, packed.PROMPTED, plan) as unfinished:
        if unfinished:
            captions.write(place / CAPTIONS)
            raws: dict[Split, tuple[str, Raw]] = {
                split: (
                    f"{folder.name}/{split}",
                    Raw(cast(Any, Texts(place / CAPTIONS, places)), len(places), places, ()),
                )
                for split, places in captions.places.items()
            }
            row = {"shape": [1, 1, encoder.size], "dtype": "float16", "each": 1}
            where = str(device) if mapper is in_turn else device.type  # each process has a GPU of its own
            job = partial(_encode_shard, place, encoder, where, batch_size)
            splits = packed.pack(
                place, raws, job, row, shard_bytes=shard_bytes, mapper=mapper, progress=progress, what=ENCODING
            )
            with whole(place / EMPTY) as aside, aside.open("wb") as file:
                np.save(file, encoder.empty(device)[0].float().cpu().numpy(), allow_pickle=False)
            empty = hashlib.sha256(read_bytes(place / EMPTY)).hexdigest()
            packed.finish_dataset(place, row, splits, encoder=encoder.fingerprint, empty=empty)
    return read_json(place / packed.DATASET)


def _encode_shard(folder: Path, encoder: TextFolder, device: str, batch_size: int, shard: packed.Shard) -> None:
    encode, texts = encoder.read(device), replace(shard, items=cast(Any, enumerate(cast(Any, shard.items))))
    packed.write_encoded(folder, texts, lambda part: packed.halves(encode(part).float(), "text encoder"), batch_size)
