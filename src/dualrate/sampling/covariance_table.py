"""A table of what a model does not know of an image, in frequency bands, and the steps that are made with it.

    variance[t, tau, band] = mean of |U (x - x_hat)|^2 over images and the frequencies of a band

with U the transform of `sampling/bands.py`: what `TabulatedCovariance` takes. Beside it the same by the derivative,

    ratio[t, tau, band] = mean of (sigma_t^2 / alpha_t) r (U J U^T r) / variance

which is 1 for an exact denoiser. A network's derivative at a context that it over-trusts is too small, at one that it
ignores too large; `ProbedCovariance` uses the derivative where the ratio lies in TRUSTED.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.sampling.adjusted_ddim import AdjustedDDIM, TabulatedVariance
from dualrate.sampling.bands import Bands
from dualrate.sampling.covariance import Kernel, ProbedCovariance, TabulatedCovariance

TRUSTED = (0.7, 1.4)  # ratios at which a derivative is believed
SHOWN = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)  # ages that are shown


@dataclass(frozen=True, eq=False)
class CovarianceTable:
    """The table of a model.

    log_snr:  (M,) of the times, increasing
    variance: (M, M + 1, K): [i, j] at time i with the context of time j <= i; [i, i] at a heavy call; [i, -1] without a
              context. Entries for j > i are not used
    ratio:    of the same shape
    below, above: shares of single images' estimates, where the ratio is trusted, that ProbedCovariance would clamp at 0
              and at the data's variance
    """

    bands: Bands
    log_snr: Tensor
    variance: Tensor
    ratio: Tensor
    below: float
    above: float

    @staticmethod
    def of_white_noise(bands: Bands) -> CovarianceTable:
        """The exact one of data that are white noise of variance 1: sigma_t^2, whatever the context."""
        log_snr = torch.arange(-12, 13, dtype=torch.float64)
        variance = torch.sigmoid(-log_snr).float()[:, None, None].expand(-1, len(log_snr) + 1, bands.count)
        return CovarianceTable(bands, log_snr, variance, torch.ones_like(variance), 0.0, 0.0)

    def tabulated(self, process: GaussianProcess, plan: StepPlan, kernel: Kernel = "markov") -> TabulatedCovariance:
        """The step for a plan."""
        t = torch.tensor(plan.t[:-1], dtype=torch.float64)
        return TabulatedCovariance(process, self.bands, t, self._along(self.variance, process, plan), kernel)

    def probed(self, process: GaussianProcess, plan: StepPlan, kernel: Kernel = "markov") -> ProbedCovariance:
        """The step for a plan, which trusts derivatives where the ratio lets it."""
        ratio = self._along(self.ratio.clamp_min(1e-6), process, plan)
        trusted = (ratio >= TRUSTED[0]) & (ratio <= TRUSTED[1])
        return ProbedCovariance(self.tabulated(process, plan, kernel), trusted, self.data)

    def adjusted(self, process: GaussianProcess) -> AdjustedDDIM:
        """DDIM with the variance of a heavy call, over all bands; also at steps without one."""
        size = len(self.log_snr)
        sizes = torch.bincount(self.bands.index.flatten()).double()
        errors = self.variance[torch.arange(size), torch.arange(size)].double() @ sizes / sizes.sum()
        low, high = process.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        levels = [min(low, float(self.log_snr[0]) - 1), *self.log_snr.tolist(), max(high, float(self.log_snr[-1]) + 1)]
        return AdjustedDDIM(process, TabulatedVariance(tuple(levels), (errors[0].item(), *errors.tolist(), 0.0)))

    @property
    def data(self) -> Tensor:
        """(K,) variance of the data in each band: what a heavy call does not know of an image in pure noise."""
        return self.variance[0, 0]

    def _along(self, values: Tensor, process: GaussianProcess, plan: StepPlan) -> Tensor:
        """(N, K) values of the plan's steps: their logarithms linear between the table's (t, tau)."""
        logarithms, log_snr = values.log(), process.schedule.log_snr(torch.tensor(plan.t[:-1], dtype=torch.float64))
        at = log_snr.tolist()
        held = [None if step is None else at[step] for step in plan.held]
        return torch.stack([self._at(logarithms, *one).exp() for one in zip(at, held, strict=True)])

    def _at(self, values: Tensor, log_snr: float, held: float | None) -> Tensor:
        """(K,) of one (t, tau). held: log-SNR of the context; None: no context."""
        first, every = float(self.log_snr[0]), float(self.log_snr[1] - self.log_snr[0])
        place = min(max((log_snr - first) / every, 0.0), len(self.log_snr) - 1.0)
        at = int(min(place, len(self.log_snr) - 2))

        def row(i: int) -> Tensor:
            if held is None:
                return values[i, -1]
            age = min((log_snr - held) / every, float(i))
            younger = int(age)
            older = min(younger + 1, i)
            return values[i, i - younger].lerp(values[i, i - older], age - younger)

        return row(at).lerp(row(at + 1), place - at)

    def trust(self) -> list[tuple[str, float, float]]:
        """By age of the context, in log-SNR: the median ratio, and the share of trusted bands and times.

        One line for a model whose context has no age.
        """
        every, size = float(self.log_snr[1] - self.log_snr[0]), len(self.log_snr)
        ages = {f"{age * every:g}": [self.ratio[i, i - age] for i in range(age, size)] for age in SHOWN if age < size}
        ages["none"] = [self.ratio[i, -1] for i in range(size)]
        if all(torch.equal(self.ratio[i, 0], self.ratio[i, -1]) for i in range(size)):
            ages = {"any": ages["none"]}
        low, high = TRUSTED
        return [
            (age, median(ratios.flatten().tolist()), ((ratios >= low) & (ratios <= high)).float().mean().item())
            for age, found in ages.items()
            for ratios in (torch.stack(found),)
        ]
