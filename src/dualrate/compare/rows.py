"""Rows that were measured, each kept with its replicates in a file of some 20 KB: neither images nor features again.

    DIRECTORY/KEY-FIRST-LAST-DIGEST.json      of the images of these seeds

The digest is of all that decides a row: its images by every judge, what these are compared with, their cost. So files
of several machines may be put into one directory; rows of the same seeds are paired, wherever they were drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.config.serial import from_json, to_plain
from dualrate.drawing.drawer import Drawer
from dualrate.metrics.evaluate import RESAMPLING_SEED, Evaluator
from dualrate.report.rows import Row
from dualrate.system.files import read_bytes, write_whole

SCORING = 1  # raised where a score, its interval or its replicates are made otherwise


@dataclass(frozen=True)
class KeptRow:
    """replicates: of the score by each judge, in the order of `row.scores`; ran_on: hardware, versions, commit, date"""

    row: Row
    replicates: tuple[tuple[float, ...], ...]
    ran_on: str

    @property
    def by_metric(self) -> dict[str, NDArray[np.float64]]:
        return {metric: np.array(own) for metric, own in zip(self.row.scores, self.replicates, strict=True)}


def row_name(key: str, drawer: Drawer, judges: Sequence[Evaluator[Any]], seeds: range) -> str:
    """Of its file; another for whatever gives another row. key: of the contender."""
    says: list[object] = [SCORING, RESAMPLING_SEED, drawer.expected_cost.macs]
    for judge in judges:
        real = (judge.reference, judge.held_out)
        says += [drawer.origin(judge.net.identity).json(), *(images.fingerprint if images else "" for images in real)]
    digest = hashlib.sha256(json.dumps(says).encode()).hexdigest()[:8]
    return f"{key}-{seeds.start}-{seeds.stop - 1}-{digest}.json"


def keep_row(file: Path, row: Row, replicates: Mapping[str, NDArray[np.float64]], ran_on: str) -> None:
    """replicates: by the metrics of all the row's judges. Raises OSError where it cannot be written."""
    by_judge = tuple(tuple(replicates[metric].tolist()) for metric in row.scores)
    write_whole(file, json.dumps(to_plain(KeptRow(row, by_judge, ran_on))) + "\n")


def read_row(file: Path) -> KeptRow:
    """Raises ValueError for what is no such file, OSError for one that cannot be read."""
    try:
        kept: KeptRow = from_json(KeptRow, read_bytes(file), str(file))
        if len(kept.replicates) != len(kept.row.scores):
            raise ValueError(f"{file} has replicates of {len(kept.replicates)} of {len(kept.row.scores)} judges")
    except ValueError as error:
        raise ValueError(f"{error}; delete it, and the row is measured again") from error
    return kept
