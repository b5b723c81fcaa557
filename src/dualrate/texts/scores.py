"""Texts of a model: the bound in bits a character, their entropy, and a language model that was trained on the text.

The language model's bits alone mislead: it finds a text that repeats itself likely, so they may lie below those of
held-out pieces. The entropy shows that, and so does the gradient moment, which is least where both laws are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.drawing.drawer import Drawer, spread
from dualrate.drawing.evaluators import splits_of
from dualrate.drawing.likelihood import Estimate, Likelihood, bits_per_token
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.quality import QualityScore
from dualrate.system.progress import ImageProgress, Reporter
from dualrate.system.workers import Mapper, in_turn
from dualrate.texts import language_model as language_models
from dualrate.texts.language_model import (
    GradientMoment,
    LanguageModel,
    block_gradients,
    gradient_moment,
    number_of_blocks,
    train_language_model,
)
from dualrate.texts.pieces import PIECE


@dataclass(frozen=True)
class OfPieces:
    """Scores of pieces of text, in bits a character, means over pieces.

    entropy: of the characters within a piece: low where it repeats itself
    bits:    -log2 p of a piece under the language model
    """

    entropy: Estimate
    bits: Estimate


@dataclass(frozen=True)
class TextScore:
    """Score of a text model.

    bound:           on -log2 p of held-out pieces, in bits a character, under the plan that draws
    drawn, held_out: what was drawn, and as many held-out pieces
    gradient_moment: of what was drawn, from held-out pieces
    floor:           the same of pieces of the training split, which the model is to draw
    language_model:  the name of its text and the beginning of its weights' sha256
    distance:        the Frechet distance in its features; None of too few pieces
    """

    bound: Likelihood
    drawn: OfPieces
    held_out: OfPieces
    gradient_moment: GradientMoment
    floor: GradientMoment
    language_model: str
    distance: QualityScore | None

    def rows(self) -> dict[str, str]:
        """For people."""
        rows = {
            "bound": f"{self.bound.total} of {len(self.bound.images)} held-out pieces",
            "language model": f"{self.drawn.bits} of samples, {self.held_out.bits} of held-out pieces",
            "entropy": f"{self.drawn.entropy} of samples, {self.held_out.entropy} of held-out pieces",
            "gradient moment": f"{self.gradient_moment} of samples, {self.floor} of training pieces",
        }
        if (far := self.distance) is not None:
            rows[far.metric] = f"{far.value:.4g} [{far.low:.4g}, {far.high:.4g}], floor {far.floor:.4g}; {far.note}"
        return rows


def score_texts(
    drawer: Drawer,
    seeds: Sequence[int],
    evaluator: Evaluator[LanguageModel],
    *,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> TextScore:
    """Score as many pieces, drawn and held out, as there are seeds; of held-out ones all, where there are fewer.

    Raises ValueError for fewer than three, what `bits_per_token` and reading the text raise.
    """
    net, data = evaluator.net, drawer.model.experiment.data
    test, train = data.images("test"), data.images("train")
    count = min(len(seeds), len(test))
    blocks, total = number_of_blocks(count), 2 * count + 3 * len(seeds)  # bound, drawing, three sets of gradients

    def after(before: int) -> ImageProgress:
        return lambda done, of: progress(before + done, total) if progress else None

    bound = bits_per_token(drawer, test, count=count, seed=seeds[0], progress=after(0))
    drawn, done = _drawn(drawer, seeds, after(count), mapper), count + len(seeds)
    held_out, gradients = test.images[spread(count, len(test))], []
    for side in (drawn, held_out, train.images[spread(len(seeds), len(train))]):
        gradients.append(block_gradients(net.module, net.places(side), blocks, after(done)))
        done += len(side)
    distance = None
    if len(drawn) >= 2 * net.dim:
        distance = evaluator.score_features(net.features(drawn), seeds=f"{seeds[0]}-{seeds[-1]}", labels="none")
    samples, real = (OfPieces(entropy(pieces), Estimate.of(net.bits(pieces).double())) for pieces in (drawn, held_out))
    moment, floor = (gradient_moment(gradients[i], gradients[1]) for i in (0, 2))
    return TextScore(bound, samples, real, moment, floor, language_model=net.identity, distance=distance)


def _drawn(drawer: Drawer, seeds: Sequence[int], show: ImageProgress, mapper: Mapper) -> NDArray[np.uint8]:
    """(N, 1, 1, L), in the order of the seeds."""
    size, pieces = drawer.batch_size, []
    batches = [seeds[first : first + size] for first in range(0, len(seeds), size)]
    for _, samples in mapper(drawer.resolved.draw, batches):
        pieces.append(samples.images)
        show(sum(map(len, pieces)), len(seeds))
    return np.concatenate(pieces)


def entropy(pieces: NDArray[np.uint8]) -> Estimate:
    """-sum p log2 p of the shares p of characters in a piece. pieces: (N, 1, 1, L), N >= 2."""
    shares = [np.unique(piece, return_counts=True)[1] / piece.size for piece in pieces]
    entropies = [-(share * np.log2(share)).sum() for share in shares]
    return Estimate.of(torch.tensor(entropies, dtype=torch.float64))


def text_evaluator(data: DataConfig, progress: Reporter) -> Evaluator[LanguageModel]:
    """A language model of a text. Its reference is the training split in pieces one after the other, of which training
    takes any others too.

    The language model is in the user's cache, trained there on first use (about two minutes on a core of a CPU).
    """
    (train, test), length = splits_of(data, progress), data.size or PIECE
    place = cache_dir() / "language-models" / train.fingerprint[:16]
    if not (place / f"{language_models.NAME}.json").exists():
        progress.note(f"training a language model on {train.name}, once; it is kept in {place}")
        train_language_model(train, test, progress=progress).save(place)
        progress.close()
    hashed = hashlib.sha256(f"{train.fingerprint} every {length}".encode()).hexdigest()
    pieces = replace(train, images=train.images[::length], hashed=hashed)
    return Evaluator(LanguageModel.load(place), pieces, test)
