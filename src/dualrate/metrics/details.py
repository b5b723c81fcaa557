"""What a Frechet distance does not tell: a distance that is unbiased at any count, and fidelity apart from variety."""

from __future__ import annotations

from dataclasses import dataclass

from dualrate.metrics.kernel import KernelDistance
from dualrate.metrics.precision_recall import PrecisionRecall


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

    def text(self) -> str:
        """For people, in two lines."""
        kernel, shares = self.kernel, self.precision_recall
        return (
            f"{self.kernel_metric}: {kernel.value:.3g} +- {kernel.standard_error:.2g} (standard error), lower is "
            f"better; {kernel.subsets} subsets of {kernel.size}\n"
            f"precision {shares.precision:.3f}, recall {shares.recall:.3f}: higher is better; k = {shares.k}, against "
            f"{self.reference_count} reference images"
        )
