"""What tells how good the texts of a model are: the bound in bits a character, their entropy, and what a language
model that was trained on the same text says of them.

A language model alone deceives: it finds a text that repeats itself likely, so bits a character may lie below those of
held-out pieces. The entropy shows that, and so does the gradient moment, which is least where both laws are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.machine.progress import ImageProgress
from dualrate.machine.workers import Mapper, in_turn
from dualrate.measuring.drawer import Drawer
from dualrate.measuring.likelihood import Estimate, Likelihood, bits_per_token
from dualrate.measuring.samples import drawn_batch
from dualrate.measuring.subset import spread
from dualrate.metrics.evaluate import Evaluator, Score
from dualrate.metrics.gradient_moment import GradientMoment, block_gradients, gradient_moment, number_of_blocks
from dualrate.metrics.language_model import LanguageModel


@dataclass(frozen=True)
class OfPieces:
    """Of pieces of text, in bits a character, means over pieces.

    entropy: of the characters within a piece: low where it repeats itself
    bits:    -log2 p of a piece under the language model
    """

    entropy: Estimate
    bits: Estimate


@dataclass(frozen=True)
class TextScore:
    """Of a model of texts.

    bound:           on -log2 p of held-out pieces, in bits a character, under the plan that draws
    drawn, held_out: what was drawn, and as many held-out pieces
    gradient_moment: of what was drawn, from held-out pieces
    floor:           the same of pieces of the training split, which the model is to draw
    language_model:  which it is: the name of its text and the beginning of its weights' sha256
    distance:        the Frechet distance in its features; None of too few pieces
    """

    bound: Likelihood
    drawn: OfPieces
    held_out: OfPieces
    gradient_moment: GradientMoment
    floor: GradientMoment
    language_model: str
    distance: Score | None


def score_texts(
    drawer: Drawer,
    seeds: Sequence[int],
    judge: Evaluator[LanguageModel],
    *,
    progress: ImageProgress | None = None,
    mapper: Mapper = in_turn,
) -> TextScore:
    """Of as many pieces drawn, and held out, as there are seeds; of held-out ones all, where there are fewer.

    Raises ValueError for fewer than three, what `bits_per_token` and reading the text raise.
    """
    net, data = judge.net, drawer.model.experiment.data
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
    return TextScore(
        bound,
        _of(drawn, net),
        _of(held_out, net),
        gradient_moment(gradients[0], gradients[1]),
        gradient_moment(gradients[2], gradients[1]),
        net.identity,
        _distance(drawn, seeds, judge),
    )


def _distance(drawn: NDArray[np.uint8], seeds: Sequence[int], judge: Evaluator[LanguageModel]) -> Score | None:
    if len(drawn) < 2 * judge.net.dim:
        return None
    features = judge.net.features(drawn)
    return judge.score_features(features, seeds=f"{seeds[0]}-{seeds[-1]}", labels="none")


def _drawn(drawer: Drawer, seeds: Sequence[int], show: ImageProgress, mapper: Mapper) -> NDArray[np.uint8]:
    """(N, 1, 1, L), in the order of the seeds."""
    size = drawer.batch_size
    batches = [tuple(seeds[first : first + size]) for first in range(0, len(seeds), size)]
    found: dict[tuple[int, ...], NDArray[np.uint8]] = {}
    for batch, (images, _) in mapper(partial(drawn_batch, drawer.settled), batches):
        found[batch] = images
        show(sum(map(len, found)), len(seeds))
    return np.concatenate([found[batch] for batch in batches])


def _of(pieces: NDArray[np.uint8], net: LanguageModel) -> OfPieces:
    return OfPieces(entropy(pieces), Estimate.of(net.bits(pieces).double()))


def entropy(pieces: NDArray[np.uint8]) -> Estimate:
    """-sum p log2 p of the shares p of characters in a piece. pieces: (N, 1, 1, L), N >= 2."""
    found = []
    for piece in pieces:
        share = np.unique(piece, return_counts=True)[1] / piece.size
        found.append(-(share * np.log2(share)).sum())
    return Estimate.of(torch.tensor(found, dtype=torch.float64))
