"""A piece of GPU work: a question, and a function that answers it within one call of ten minutes.

What a piece finds is a table of rows in OUT/NAME.json, which is written after every row. So a call that is cut off
loses one row, and the same call goes on with the next. A row that fails says so, and the others follow.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dualrate.system.device import environment
from dualrate.system.files import write_whole

SECONDS = 510.0  # of a call of ten minutes, after which no row begins
FAILED = "failed"
Row = Mapping[str, Any]


@dataclass
class Job:
    """One call of a piece.

    name:   of its file in `out`
    out:    folder of what pieces found; its files come back from the machine
    work:   folder for everything else, which is lost with the machine
    ends:   time at which the call should be over, in seconds since the epoch
    data:   what `tools.gpu pack` wrote, or None; what else travels lies beside it
    smoke:  small networks on made-up images, for a test on a CPU
    commit: of the code, where the machine has no git
    """

    name: str
    out: Path
    work: Path
    ends: float
    device: torch.device = torch.device("cpu")
    data: Path | None = None
    smoke: bool = False
    commit: str = ""
    rows: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        record = read(self.out, self.name)
        if record and record["smoke"] != self.smoke:
            raise ValueError(f"{self.out} holds {self.name} with smoke {record['smoke']}: give another --out")
        self.rows = {name: row for name, row in record.get("rows", {}).items() if FAILED not in row}

    def named(self, name: str) -> Job:
        """The same call with a file of its own for a part of the work, such as another process."""
        return replace(self, name=f"{self.name}-{name}")

    @property
    def left(self) -> float:
        """Seconds until the call should be over."""
        return self.ends - time.time()

    def beside(self, name: str) -> Path:
        """A file that travels beside the data, which need not be there."""
        return (self.work / "data" if self.data is None else self.data).with_name(name)

    def row(self, name: str, make: Callable[[], Row]) -> None:
        """Make a row and write the file, unless the row is there or no time is left. A failure becomes the row."""
        if name in self.rows or self.left <= 0:
            return
        start = time.perf_counter()
        try:
            row = dict(make())
        except Exception as error:  # one failure shall not hide what the other rows find
            traceback.print_exc()
            row = {FAILED: f"{type(error).__name__}: {error}"[:500]}
        self.put(name, row | {"took": round(time.perf_counter() - start, 2)})

    def has(self, name: str) -> bool:
        """Whether the row is there and did not fail."""
        return FAILED not in self.rows.get(name, {FAILED: ""})

    def put(self, name: str, row: Row) -> None:
        """Write a row, also over one of before."""
        print(f"{self.name} {name} {json.dumps(row)}"[:200], flush=True)
        self.rows[name] = row
        self.write(done=False)

    def write(self, *, done: bool) -> None:
        where = environment(self.device) | ({"commit": self.commit} if self.commit else {})
        record = {"done": done, "smoke": self.smoke, "environment": where, "rows": self.rows}
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / f"{self.name}.json", json.dumps(record, indent=1) + "\n")


CIFAR10 = "cifar10.npz"


@dataclass(frozen=True)
class Piece:
    """A piece, as the runner sees it.

    answers: its question
    run:     does what fits into a call; returns whether the piece is done
    calls:   of ten minutes, that it takes
    loads:   of the folder of findings: files that its next call reads and that are made here, such as CIFAR-10
    reads:   of the same folder: patterns of the files in it that its next call reads
    package: of Python alone, that it needs and the machine lacks
    """

    name: str
    answers: str
    run: Callable[[Job], bool]
    calls: int
    loads: Callable[[Path], Sequence[str]] = lambda out: ()
    reads: Callable[[Path], Sequence[str]] = lambda out: ()
    package: str = ""

    def state(self, out: Path) -> str:
        """done, part or never."""
        record = read(out, self.name)
        return ("done" if record["done"] else "part") if record else "never"

    def needed(self, out: Path) -> list[Path]:
        """The files that its next call reads, its own rows among them."""
        patterns = (f"{self.name}.json", *self.reads(out))
        return sorted({path for pattern in patterns for path in out.glob(pattern)})


def read(out: Path, name: str) -> dict[str, Any]:
    """The record of a piece so far; empty if it never ran."""
    file = out / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}
