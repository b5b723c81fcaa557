"""Sums over an ensemble at a lead time, of which scores are made; in the data's units, in float64.

    points      of each point, over members: what scores are weighted means of
    members     of each member, over points, with weights: anomalies squared, times the truth's, and changes squared
    spectra     power by wavenumber

Whatever weighs points, all is computed once. Members are put in order at each point, so that M of them take M log M.
Few points of all members, then few members, are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.forecasts.spectra import Spectrum, power_spectrum
from dualrate.metrics.ensembles import in_order, pairs_apart

AT_A_TIME = 2**21  # numbers in float64 at a time
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Products:
    """Weighted means over points (n, m, V, C) of fields a and the truth's b: a b, a a, and b b (n, 1, V, C)."""

    ab: Tensor
    aa: Tensor
    bb: Tensor

    def correlation(self, channels: list[int], variance: Tensor, view: int) -> Tensor:
        """The cosine (n,) of each a and b, over channels by their variances, in the mean over m; 0 of what is none."""
        ab, aa, bb = ((part[:, :, view, channels] / variance).sum(-1) for part in (self.ab, self.aa, self.bb))
        return (ab / (aa * bb).sqrt()).nan_to_num(nan=0, posinf=0, neginf=0).mean(1)


@dataclass(frozen=True, eq=False)
class Sums:
    """The numbers of an ensemble of n starts with M members, by V weightings of points.

    points:  (n, C, H, W): crps, square of the mean's error, variance (by 1 / M); rank; (n, C, H, W, K) brier
    mean, members: of the members' mean, and of each
    change, change_truth: weighted means of squares, (n, M, V, C) and (n, 1, V, C); NaN: not known from when
    power, power_truth:   (n, C, K)
    """

    points: dict[str, Tensor]
    mean: Products
    members: Products
    change: Tensor
    change_truth: Tensor
    power: Tensor
    power_truth: Tensor

    @staticmethod
    def of(
        now: Pair,
        before: Pair | None,
        weights: Tensor,
        about: Tensor | None,
        thresholds: Tensor,
        chance: Tensor,
        spectrum: Spectrum = power_spectrum,
    ) -> Sums:
        """Sum over members x (n, M, C, H, W) and the truth y (n, C, H, W).

        before: those a lead earlier; weights: (V, C, H, W); about: anomalies are about it, or about a field's own mean
        thresholds: (K, C, H, W), of brier; chance: (n, C, H, W) in [0, 1), orders members equal to the truth
        """
        x, y = now[0], now[1].cpu().double()
        earlier, last = before or (torch.full_like(y, torch.nan)[:, None], torch.tensor(torch.nan))
        points = _points(x, y, thresholds.double().movedim(0, -1), chance)
        center = (y.mean((-2, -1), keepdim=True) if about is None else about.double().expand(y.shape))[:, None]
        by = weights.flatten(-2) / weights[0, 0].numel()
        b = y[:, None] - center
        of_truth = b.flatten(-2)[:, 0, None] * by  # (n, V, C, P)

        def weighted(fields: Tensor) -> Tensor:
            return torch.einsum("nmcp,vcp->nmvc", fields.flatten(-2), by)

        def products(a: Tensor) -> Pair:
            ab, aa = torch.einsum("nmcp,nvcp->nmvc", a.flatten(-2), of_truth), weighted(a.square())
            if about is None:
                mean = weighted(a)
                ab, aa = ab - mean * weighted(b), aa - mean.square()
            return ab, aa

        bb = products(b)[1]
        power, parts = torch.zeros(()), []
        for part in slices(x.shape[1], x[:, :1].numel()):
            members = x[:, part].cpu().double()
            power = power + spectrum(members).sum(1) / x.shape[1]
            change = weighted((members - (earlier if earlier.shape[1] == 1 else earlier[:, part]).cpu()).square())
            parts.append((*products(members - center), change))
        ab, aa, changes = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        of_mean = Products(*products(points.pop("mean")[:, None] - center), bb)
        of_last = weighted((y - last.cpu()).square()[:, None])
        return Sums(points, of_mean, Products(ab, aa, bb), changes, of_last, power, spectrum(y))


def _points(x: Tensor, y: Tensor, thresholds: Tensor, chance: Tensor) -> dict[str, Tensor]:
    """The points of `Sums`, and the mean of the members. thresholds: (C, H, W, K)"""
    count, parts = x.shape[1], []
    for rows in slices(y.shape[-2], x[..., :1, :].numel()):
        ordered = in_order(x[..., rows, :].cpu()).double().contiguous()
        truth, mean = y[..., rows, :, None].contiguous(), ordered.mean(-1, keepdim=True)
        limits = thresholds[:, rows].expand(len(y), *[-1] * 4).contiguous()
        below, upto = (torch.searchsorted(ordered, truth, right=right) for right in (False, True))
        share = 1 - torch.searchsorted(ordered, limits, right=True).double() / count
        fair = share * (1 - share) / max(1, count - 1)
        parts.append(
            {
                "mean": mean[..., 0],
                "crps": (ordered - truth).abs_().mean(-1) - pairs_apart(ordered),
                "square": (mean - truth).square()[..., 0],
                "variance": (ordered - mean).square_().mean(-1),
                "rank": (below + (chance[..., rows, :, None] * (upto - below + 1)).long())[..., 0],
                "brier": (share - (truth > limits).double()).square() - fair,
            }
        )
    return {name: torch.cat([part[name] for part in parts], 2) for name in parts[0]}


def slices(count: int, size: int) -> Iterator[slice]:
    """Slices of a dimension that hold `AT_A_TIME` numbers at most, or one of its `size` numbers."""
    each = max(1, AT_A_TIME // max(1, size))
    return (slice(first, min(first + each, count)) for first in range(0, count, each))
