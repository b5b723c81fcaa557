"""What images, or features of images, are of: kept beside them, so that nothing else is mixed in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields

from dualrate.config.serial import to_plain
from dualrate.metrics.fingerprint import BITS

NOISE = "Philox keyed by the seed"
PIXELS = "none, the images themselves"


@dataclass(frozen=True)
class Origin:
    """All that decides the features, or the pixels, of an id (an image's seed).

    weights, experiment: sha256 of the model's
    sampler, plan:       the update rule with its settings and guidance; times and heavy calls
    labels:              the rule that makes a class of an id, or "none"
    features:            the extractor's identity; PIXELS where the images themselves are kept
    precision:           of the model's matrix products, and whether it is compiled, which changes rounding
    seeds, bits:         the rules that make noise of an id, and 8-bit images of samples
    """

    weights: str
    experiment: str
    sampler: str
    plan: str
    labels: str
    features: str
    precision: str
    seeds: str = NOISE
    bits: str = BITS

    def json(self) -> str:
        return json.dumps(to_plain(self), indent=1) + "\n"

    @staticmethod
    def of_real(images: str, features: str) -> Origin:
        """Of real images, whose ids are their rows. images: says which"""
        return Origin(*5 * ("none",), features=features, precision="none", seeds=f"rows of {images}", bits="their own")

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits for the name of a place: another one for whatever gives other features."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:8]

    def differing(self, other: Origin) -> list[str]:
        """The names of the fields in which two origins differ."""
        return [field.name for field in fields(Origin) if getattr(self, field.name) != getattr(other, field.name)]
