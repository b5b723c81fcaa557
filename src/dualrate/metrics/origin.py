"""Where images and scores come from: what decides an image, and what must be equal for scores to compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dualrate.config.serial import to_plain

BITS = "uint8 round(127.5x+127.5)"


@dataclass(frozen=True)
class Fingerprint:
    """The conditions a score was taken under.

    features:        the extractor's identity, "<name>:<first 12 hex digits of its weights' sha256>"
    reference:       "<data set and split, or file>:<first 12 hex digits of the images' or the file's sha256>"
    reference_count: how many of them; None for statistics from a file, which do not say
    count:           images scored
    seeds:           their seeds, e.g. "0-4999"
    labels:          the rule of their labels, e.g. "i mod classes", or "none"
    bits:            how they were quantised
    """

    features: str
    reference: str
    reference_count: int | None
    count: int
    seeds: str
    labels: str
    bits: str = BITS

    def json(self) -> str:
        """All fields as one line of JSON."""
        return json.dumps(asdict(self))

    def short(self) -> str:
        """The first 12 hex digits of the sha256 of `json()`."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:12]


def require_same(fingerprints: Sequence[Fingerprint]) -> None:
    """ValueError naming the differing fields, unless all fingerprints are equal."""
    if differing := _differences(fingerprints):
        raise ValueError(f"these scores cannot be compared, they differ in {differing}: score them alike")


def _differences(records: Sequence[Any]) -> str:
    """The fields in which dataclasses of one kind differ, with their values; empty if they are equal."""
    found = {
        one.name: list(dict.fromkeys(str(getattr(record, one.name)) for record in records))
        for one in fields(records[0] if records else Origin)
    }
    return ", ".join(f"{name} ({' / '.join(values)})" for name, values in found.items() if len(values) > 1)


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

    def differences(self, other: Origin) -> str:
        """The fields in which two origins differ, with both values; empty if they are equal."""
        return _differences((self, other))
