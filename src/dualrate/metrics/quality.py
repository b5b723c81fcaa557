"""Quality scores: a value with its interval and all that is needed to read it, and further measures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualrate.metrics.distances import KernelDistance, PrecisionRecall
from dualrate.metrics.store import Fingerprint

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Details:
    """Further measures of generated images, beside their score.

    kernel_metric:    what the kernel distance is called in these features, "KID" or "KD-<name>"
    kernel:           against the whole reference, by random subsets
    precision_recall: against `reference_count` real images
    reference_count:  as many as were generated, or all there are
    """

    kernel_metric: str
    kernel: KernelDistance
    precision_recall: PrecisionRecall
    reference_count: int

    def __str__(self) -> str:
        """The score for people, in two lines."""
        kernel, shares = self.kernel, self.precision_recall
        return (
            f"{self.kernel_metric}: {kernel.value:.3g} +- {kernel.standard_error:.2g} (standard error), lower is "
            f"better; {kernel.subsets} subsets of {kernel.size}\n"
            f"precision {shares.precision:.3f}, recall {shares.recall:.3f}: higher is better; k = {shares.k}, against "
            f"{self.reference_count} reference images"
        )


@dataclass(frozen=True)
class QualityScore:
    """A quality score and all that is needed to read it.

    metric:      "FD-<feature net>"; "FID" in Inception features only
    value:       lower is better, unless `better` says otherwise
    low, high:   bootstrap interval of the expected value at this count (see `distances.interval_of`)
    level:       its level
    floor:       the value of `floor_count` held-out real images; NaN without any
    fingerprint: what must be equal in scores that are compared
    note:        what to keep in mind, empty if nothing; that the interval is of fixed shares of the classes, if it is
    details:     further measures, if they were asked for
    better:      which values are
    accuracy:    of the classifier whose features these are (`features.Card`); None of another network, or if unknown
    """

    metric: str
    value: float
    low: float
    high: float
    level: float
    floor: float
    floor_count: int
    fingerprint: Fingerprint
    note: str = ""
    details: Details | None = None
    better: Better = "lower"
    accuracy: float | None = None

    def __str__(self) -> str:
        """The score for people, its details below."""
        line = (
            f"{self.metric} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}] of {self.fingerprint.count:,} images, "
            f"floor {self.floor:.4g}; {self.note}"
        )
        return line if self.details is None else f"{line}\n{self.details}"
