"""Scores of M samples a condition against what was there (proper scores: least, on average, for the true conditional).

With samples X_1 .. X_M of one condition and the truth y, all unbiased in M, so that few members and many are compared:

    fair CRPS      mean_i |X_i - y| - sum_{i<j} |X_i - X_j| / (M (M - 1))                  of a pixel; mean over pixels
    energy score   mean_i ||X_i - y|| - sum_{i<j} ||X_i - X_j|| / (M (M - 1))              of an image; / sqrt(pixels)
    spread / skill sqrt((M + 1) / M) sqrt(mean var(X)) / sqrt(mean (mean(X) - y)^2)         1 for a calibrated ensemble
    rank           how many members lie below y: uniform on 0 .. M for a calibrated ensemble

Sources: Ferro 2014 (fair scores); Gneiting and Raftery 2007 (energy score); Fortin et al. 2014 (spread and skill).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """(N,): members (N, M, ...); truth (N, ...). Of a single member it is the mean absolute error."""
    return ((members - truth[:, None]).abs().mean(1) - pairs_apart(in_order(members))).flatten(1).mean(1)


def pairs_apart(ordered: Tensor) -> Tensor:
    """sum_{i<j} |X_i - X_j| / (M (M - 1)), (...), of members (..., M) in order; 0 of a single one."""
    count = ordered.shape[-1]
    weight = 2 * torch.arange(1, count + 1, device=ordered.device, dtype=ordered.dtype) - count - 1
    # the sum over pairs; a matrix product would be in bfloat16 under autocast
    return (ordered * weight).sum(-1) / (count * max(1, count - 1))


def in_order(members: Tensor) -> Tensor:
    """(N, ..., M): members (N, M, ...) in rising order. Without gradient numpy takes a tenth of torch's time."""
    if members.requires_grad or members.device.type != "cpu" or members.dtype.itemsize < 4:
        return members.sort(1).values.movedim(1, -1)
    return torch.from_numpy(np.sort(np.ascontiguousarray(members.movedim(1, -1).numpy())))


def energy_score(members: Tensor, truth: Tensor) -> Tensor:
    """(N,), divided by the square root of the numbers of an image: members (N, M, ...), M >= 2; truth (N, ...)."""
    count, flat = members.shape[1], members.flatten(2)
    error = (flat - truth.flatten(1)[:, None]).norm(dim=2).mean(1)
    apart = sum((flat[:, i, None] - flat[:, i + 1 :]).norm(dim=2).sum(1) for i in range(count - 1))
    return (error - apart / (count * (count - 1))) / math.sqrt(flat.shape[2])


def members_squared_error(members: Tensor, truth: Tensor) -> Tensor:
    """(N,): members (N, M, ...), truth (N, ...)."""
    return (members - truth[:, None]).square().flatten(1).mean(1)


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """(N,) in dB, of images in [0, 1]: (N, ...) both."""
    return -10 * (images - truth).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def rank(members: Tensor, truth: Tensor, chance: Tensor) -> Tensor:
    """(N, ...) int64: how many members lie below each number of the truth.

    chance: (N, ...) uniform in [0, 1), orders those that are equal
    """
    equal = (members == truth[:, None]).sum(1)
    return (members < truth[:, None]).sum(1) + (chance * (equal + 1)).long()


def ranks(members: Tensor, truth: Tensor, generator: torch.Generator, where: Tensor | None = None) -> Tensor:
    """(M + 1,) int64: of how many numbers so many members lie below the truth; equal ones are ordered by chance.

    where: bool, broadcast to the truth: the numbers that count. None: all
    """
    ranked = rank(members, truth, torch.rand(truth.shape, generator=generator))
    ranked = ranked.flatten() if where is None else ranked[where.expand_as(ranked)]
    return torch.bincount(ranked, minlength=members.shape[1] + 1)


@dataclass(frozen=True)
class EnsembleScores:
    """Means over conditions, with their standard errors in `errors`, in the order of the four; NaN of one condition.

    crps, energy: in units of the range of a pixel, 1; psnr_mean: of the members' mean, psnr: of the members, in dB.
                  Over all pixels, those that the condition shows too
    spread_skill: 1 for a calibrated ensemble
    ranks:        (M + 1,) shares, of the pixels that the condition does not show
    """

    members: int
    conditions: int
    crps: float
    energy: float
    psnr_mean: float
    psnr: float
    errors: tuple[float, ...]
    spread_skill: float
    ranks: tuple[float, ...]

    @staticmethod
    def of(batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor | None]]) -> EnsembleScores:
        """Scores of batches: members (b, M, C, H, W), truth (b, C, H, W), hidden pixels (b, 1, H, W), or None for all.

        Raises ValueError for fewer than 2 members.
        """
        rows: list[list[Tensor]] = []
        counts, generator = torch.zeros(()), torch.Generator().manual_seed(0)
        for drawn, truth, unknown in batches:
            x, y = (torch.from_numpy(part).double() / 255 for part in (drawn, truth))
            if (members := x.shape[1]) < 2:
                raise ValueError(f"scores of an ensemble need 2 members a condition or more, got {members}")
            mean, variance = x.mean(1), x.var(1).flatten(1).mean(1)
            error = (mean - y).square().flatten(1).mean(1)
            single = psnr(x.flatten(0, 1), y.repeat_interleave(members, 0)).unflatten(0, (-1, members)).mean(1)
            rows.append([fair_crps(x, y), energy_score(x, y), psnr(mean, y), single, variance, error])
            counts = counts + ranks(x, y, generator, unknown)
        *scores, variance, error = (torch.cat(part) for part in zip(*rows, strict=True))
        members = len(counts) - 1
        ratio = (members + 1) / members * float(variance.mean() / error.mean().clamp(min=1e-20))
        return EnsembleScores(
            members,
            len(error),
            *(float(score.mean()) for score in scores),
            errors=tuple(
                float(score.std() / math.sqrt(len(score))) if len(score) > 1 else math.nan for score in scores
            ),
            spread_skill=math.sqrt(ratio),
            ranks=tuple((counts / counts.sum()).tolist()),
        )

    def __str__(self) -> str:
        """The scores for people, line by line."""
        crps, energy, of_mean, single = (
            f"standard error {error:.3g}".replace("nan", "unknown") for error in self.errors
        )
        edges = (self.ranks[0] + self.ranks[-1]) * (self.members + 1) / 2
        return (
            f"fair CRPS {self.crps:.4f} ({crps}), energy score {self.energy:.4f} ({energy}): {self.members} members of "
            f"each of {self.conditions:,} conditions, pixels from 0 to 1\n"
            f"PSNR of the members' mean {self.psnr_mean:.2f} dB ({of_mean}), "
            f"of a member {self.psnr:.2f} dB ({single})\n"
            f"spread over skill {self.spread_skill:.2f} (1: calibrated; below: too sure); the outermost ranks hold "
            f"{edges:.2f} times their share"
        )
