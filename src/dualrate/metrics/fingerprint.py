"""What must be equal for two scores to be comparable, kept beside every score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

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
    differing = []
    for field in fields(Fingerprint):
        values = list(dict.fromkeys(str(getattr(fingerprint, field.name)) for fingerprint in fingerprints))
        if len(values) > 1:
            differing.append(f"{field.name} ({' / '.join(values)})")
    if differing:
        raise ValueError(f"these scores cannot be compared, they differ in {', '.join(differing)}: score them alike")
