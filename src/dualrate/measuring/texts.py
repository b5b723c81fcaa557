"""Texts of a model: drawn, and what tells how good they are: the bound in bits a character, and their entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.codecs.characters import BETWEEN, texts
from dualrate.machine.files import write_whole
from dualrate.machine.progress import ImageProgress
from dualrate.measuring.drawer import Drawer, Samples
from dualrate.measuring.likelihood import Estimate, Likelihood, bits_per_token

FILE = "samples.txt"


@dataclass(frozen=True)
class TextScore:
    """Of a model of texts, in bits a character.

    bound:    on -log2 p of held-out pieces, under the plan that draws
    entropy:  of the characters of a piece that was drawn, a mean over pieces: low where it repeats itself
    held_out: the same of held-out pieces
    """

    bound: Likelihood
    entropy: Estimate
    held_out: Estimate


def write_texts(
    drawer: Drawer, seeds: Sequence[int], out: Path, progress: ImageProgress | None = None
) -> tuple[list[str], Samples]:
    """Draws the pieces of these seeds and writes them to OUT/samples.txt, in turn.

    Raises ValueError where such a file is there, OSError where it cannot be written.
    """
    file = out / FILE
    if file.exists():
        raise ValueError(f"{file} is there: choose another --out, or delete it")
    drawn = drawer.draw(seeds, progress)
    pieces = list(texts(drawer.model.experiment.codec.alphabet, drawn.images))
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, BETWEEN.join(pieces) + "\n")
    return pieces, drawn


def score_texts(drawer: Drawer, seeds: Sequence[int], *, progress: ImageProgress | None = None) -> TextScore:
    """Of as many pieces drawn, and held out, as there are seeds; of held-out ones all, where there are fewer.

    Raises ValueError for fewer than two seeds, what `bits_per_token` and reading the text raise.
    """
    if len(seeds) < 2:
        raise ValueError(f"an interval needs at least 2 pieces of text, got {len(seeds)}: ask for more")
    test = drawer.model.experiment.data.images("test")
    count = min(len(seeds), len(test))
    bound = bits_per_token(drawer, test, count=count, seed=seeds[0], progress=progress)
    chosen = np.linspace(0, len(test) - 1, count).astype(np.int64)
    return TextScore(bound, entropy(drawer.draw(seeds, progress).images), entropy(np.asarray(test.images[chosen])))


def entropy(pieces: NDArray[np.uint8]) -> Estimate:
    """-sum p log2 p of the shares p of characters in a piece. pieces: (N, 1, 1, L), N >= 2."""
    found = []
    for piece in pieces:
        share = np.unique(piece, return_counts=True)[1] / piece.size
        found.append(-(share * np.log2(share)).sum())
    return Estimate.of(torch.tensor(found, dtype=torch.float64))
