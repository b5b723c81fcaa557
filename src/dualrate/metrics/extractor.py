"""The seam between images and distances: what turns images into the features that a Frechet distance is measured in."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class FeatureExtractor(Protocol):
    """A fixed network. Distances compare only within one `identity`."""

    @property
    def metric(self) -> str:
        """What a distance in these features is called: "FD-<name>", and "FID" for Inception's alone."""
        ...

    @property
    def identity(self) -> str:
        """ "<name>:<first 12 hex digits of the weights' sha256>", for fingerprints and reference files."""
        ...

    @property
    def dim(self) -> int:
        """D, features of an image."""
        ...

    @property
    def usual_count(self) -> int:
        """Images that scores are usually of; a score of fewer carries a note."""
        ...

    def features(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        """Features (N, D) float32 on the CPU of images (N, C, H, W) uint8; ValueError for images it does not take."""
        ...
