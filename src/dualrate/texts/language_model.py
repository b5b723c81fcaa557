"""How good texts are: a small language model of characters, and the gradient moment of two sets of texts under it.

The language model is autoregressive, trained on a text in minutes on a CPU, and kept:

    p(x) = prod_i p(x_i | x_1 .. x_(i-1)),   i = 1 .. L, of a piece that may begin anywhere in the text

It gives the exact likelihood of a piece (bits a character), the gradient of it, and features in which texts have a
distance. It is recurrent (GRU, Cho et al. 2014), and computes on the CPU in float32.

The gradient moment measures how far a language model would be pulled from one set of texts to another:

    GM = |E_gen grad NLL - E_data grad NLL|^2

with the gradient in all parameters theta of a fixed language model, and NLL = -log p_theta of a piece in nats a
character (D-MMD, arXiv 2603.20155, where the model is GPT-2). A model that was trained on data to its end has no
gradient there, so GM is that of what was generated. It is 0 where both laws are the same, and also where they differ
only in what the model does not see: so it means nothing where the language model is the generator itself.

The square of a measured mean is too large by its noise. An inner product of two means that share no piece is not. Here
either side is in K blocks, and the value is the mean over all ways to split them in halves, which is

    sum_(j != k) <d_j, d_k> / (K (K - 1)),   d_k: mean gradient of block k of what was generated - of the data

so it takes K backward passes. It may be negative. Its unit depends on the parameters of the language model, so values
compare for one such model alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualrate.config.ranges import Channels, Classes, Iterations, Range, Ranged, Seed
from dualrate.data.images import ImageSet
from dualrate.data.loader import Batches
from dualrate.metrics.trained_network import (
    NetworkCard,
    Pixels,
    TrainedNetwork,
    fit_module,
    weight_bytes,
)
from dualrate.system.progress import Reporter

BLOCKS = 20  # where there are pieces enough: K of them have K / (K - 1) times the least variance where laws are one
FEWEST = 3  # blocks, that a value may be made without one of them


@dataclass(frozen=True)
class GradientMoment:
    """A gradient moment, with its standard error.

    value: lower is better, possibly below 0, in nats^2 a character^2 per squared parameter; blocks: of either side
    """

    value: float
    error: float
    blocks: int

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


def gradient_moment(generated: Tensor, data: Tensor) -> GradientMoment:
    """The gradient moment of mean gradients (K, P) of K blocks a side (`block_gradients`); unbiased, in float64.

    The standard error is the jackknife's over blocks: right where the laws differ, and too large by a factor of the
    root of 2 where they are one, since GM then is without a part that is linear in the blocks. Neighbours in a text
    are alike, so a block of its pieces should be pieces that follow one another. Not covered: another language model.
    Raises ValueError for two shapes, fewer than 3 blocks, and gradients that are not finite.
    """
    if generated.shape != data.shape or generated.ndim != 2 or len(generated) < FEWEST:
        raise ValueError(f"got gradients {tuple(generated.shape)}, {tuple(data.shape)}; expected (K, P), K >= {FEWEST}")
    if not (generated.isfinite().all() and data.isfinite().all()):
        raise ValueError("some gradients of the language model are not finite: train it again")
    difference, count = generated.double() - data.double(), len(generated)
    products = difference @ difference.T
    with_others = products.sum(1) - products.diagonal()  # (K,): of a block with all others
    total = with_others.sum()
    value = total / (count * (count - 1))
    without = (total - 2 * with_others) / ((count - 1) * (count - 2))
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return GradientMoment(value.item(), error.item(), count)


def block_gradients(
    module: nn.Module, pieces: Tensor, blocks: int, report: Callable[[int, int], None] = lambda done, of: None
) -> Tensor:
    """(K, P): d/dtheta of the mean NLL, nats a character, of each of K blocks of pieces that follow one another.

    module: (B, L) int64 -> logits (B, L, V) of each character given those before; its P parameters in their order
    pieces: (N, L) int64; the blocks' sizes differ by one piece at most
    report: called with the number of pieces that are done, and of all
    Raises ValueError for fewer pieces than blocks.
    """
    if len(pieces) < blocks:
        raise ValueError(f"got {len(pieces)} pieces of text for {blocks} blocks: draw more")
    parameters = {name: weight.detach().requires_grad_() for name, weight in module.named_parameters()}
    gradients, done = [], 0
    for block in pieces.tensor_split(blocks):
        logits = torch.func.functional_call(module, parameters, (block,))
        gradient = torch.autograd.grad(nll(logits, block).mean(), [*parameters.values()])
        gradients.append(torch.cat([part.flatten() for part in gradient]))
        report(done := done + len(block), len(pieces))
    return torch.stack(gradients)


def nll(logits: Tensor, pieces: Tensor) -> Tensor:
    """(B,): -log p of pieces (B, L) under logits (B, L, V), in nats a character."""
    return F.cross_entropy(logits.transpose(1, 2), pieces, reduction="none").mean(1)


def number_of_blocks(count: int) -> int:
    """The number of blocks, where the smaller side has `count` pieces. Raises ValueError where these are too few."""
    if count < FEWEST:
        raise ValueError(f"a gradient moment needs at least {FEWEST} pieces of text of either side, got {count}")
    return min(BLOCKS, count)


NAME = "language-model"
EMBEDDING, HIDDEN = 64, 256
BATCH_SIZE, ITERATIONS = 32, 500  # about two minutes of a core, at 64 characters a piece
PASSES = 20  # over a short text, at most: then there are fewer iterations
RATE, CLIP = 0.01, 1.0  # the highest learning rate; the largest norm of a gradient


@dataclass(frozen=True)
class Recurrent(Ranged):
    """A recurrent network. symbols: characters of the alphabet; embedding, hidden: channels."""

    symbols: Classes
    embedding: Channels
    hidden: Channels

    def build(self) -> CharacterModel:
        """The network, with weights from the global random state."""
        return CharacterModel(self)


class CharacterModel(nn.Module):
    """forward: pieces (B, L) int64 -> logits (B, L, V) of each character, given those before it."""

    def __init__(self, config: Recurrent) -> None:
        super().__init__()
        self.begin = config.symbols  # stands before the first character
        self.embed = nn.Embedding(config.symbols + 1, config.embedding)
        self.recur = nn.GRU(config.embedding, config.hidden, batch_first=True)
        self.head = nn.Linear(config.hidden, config.symbols)

    def hidden(self, before: Tensor) -> Tensor:
        """Hidden states (B, L, D) after each of these characters (B, L)."""
        return self.recur(self.embed(before))[0]

    def forward(self, pieces: Tensor) -> Tensor:
        return self.head(self.hidden(F.pad(pieces[:, :-1], (1, 0), value=self.begin)))


@dataclass(frozen=True)
class LanguageCard(NetworkCard):
    """Origin and architecture of a language model; stored as JSON beside its weights.

    data:     sha256 of the training split: text, alphabet and length of pieces
    length:   L, characters of a piece
    bits:     a character, of the held-out pieces
    seed, iterations: of the training
    """

    architecture: Recurrent
    data: str
    length: Channels
    bits: Annotated[float, Range(0, 1000)]
    seed: Seed
    iterations: Iterations


@dataclass(frozen=True)
class LanguageModel(TrainedNetwork):
    """A trained model of the characters of one text, and its card; a `FeatureExtractor` of pieces of it."""

    card: LanguageCard
    module: CharacterModel
    file, card_type = NAME, LanguageCard

    @property
    def dim(self) -> int:
        return self.card.architecture.hidden

    def places(self, images: Pixels) -> Tensor:
        """Places (N, L) int64 in the alphabet of pieces (N, 1, 1, L) uint8.

        Raises ValueError for others, and for characters that the model does not have.
        """
        way_out = "give pieces of the text that it was trained on"
        self.check(images, (1, 1, self.card.length), way_out)
        places = torch.tensor(np.asarray(images)).flatten(1).long()
        symbols = self.card.architecture.symbols
        if (most := int(places.max())) >= symbols:
            raise ValueError(f"got the character number {most}; {self.card.name!r} has {symbols} of them: {way_out}")
        return places

    @torch.no_grad()
    def bits(self, images: Pixels, batch_size: int = 500) -> Tensor:
        """-log2 p a character of pieces (N, 1, 1, L) uint8: (N,) float32. Raises as `places`."""
        parts = [nll(self.module(part), part) for part in self.places(images).split(batch_size)]
        return torch.cat(parts) / math.log(2)

    @torch.no_grad()
    def features(self, images: Pixels, batch_size: int = 500) -> Tensor:
        """Hidden states (N, D) float32 of pieces (N, 1, 1, L) uint8: the mean over the characters of a piece."""
        return torch.cat([self.module.hidden(part).mean(1) for part in self.places(images).split(batch_size)])


def train_language_model(
    train: ImageSet, test: ImageSet, *, seed: int = 0, progress: Reporter | None = None
) -> LanguageModel:
    """Train on pieces of a text from anywhere in its training split, in float32: AdamW, one cycle.

    train, test: pieces (N, 1, 1, L) of one alphabet
    The seed determines the weights bit for bit on one kind of machine at one number of threads. Raises ValueError for
    pictures.
    """
    if not train.alphabet:
        raise ValueError(f"{train.name} has pictures, and a language model is of texts: name a text")
    length = train.shape[2]
    batches = Batches(train, min(BATCH_SIZE, len(train)), seed)
    iterations = min(ITERATIONS, max(1, PASSES * len(train) // (batches.batch_size * length)))
    architecture = Recurrent(len(train.alphabet), EMBEDDING, HIDDEN)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = architecture.build()

    def loss_of(iteration: int) -> Tensor:
        pieces = batches.bytes(iteration).x.flatten(1).long()
        return nll(module(pieces), pieces).mean()

    fit_module(module, loss_of, iterations, batches.batch_size, rate=RATE, clip=CLIP, progress=progress)
    identity, name = hashlib.sha256(weight_bytes(module)).hexdigest(), Path(train.name).stem
    card = LanguageCard(name, identity, architecture, train.fingerprint, length, 0.0, seed, iterations)
    model = LanguageModel(card, module)
    return replace(model, card=replace(card, bits=model.bits(test.images).mean().item()))
