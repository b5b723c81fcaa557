"""Records: a file in a folder says what else is there, so that the same call goes on and nothing else is put beside.

sample.json, forecast.json     of samples, of forecasts: a subclass each
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from dualrate.config.serial import from_json, to_plain
from dualrate.drawing.drawer import Drawer, Guidance, plain_step
from dualrate.metrics.store import PIXELS, Origin
from dualrate.runs.train import LOGS
from dualrate.system.device import environment
from dualrate.system.files import read_bytes, write_whole, written_aside
from dualrate.system.folders import check_link, some_of
from dualrate.system.launch import Lost
from dualrate.system.progress import run_lock


@contextmanager
def naming_progress(of: object) -> Iterator[None]:
    """Says in an interruption, and in an error of a file, how far it came, as `of` is then printed."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {of}; the same command goes on") from None
    except Lost as error:
        raise Lost(f"{error}. {of}") from error
    except OSError as error:
        raise OSError(f"{error}. {of}; once that is mended, the same command goes on") from error


@dataclass(frozen=True, kw_only=True)
class SamplingRecord:
    """A file that says what was drawn into its folder: the same call goes on, and nothing else is put beside.

    file, content: its name; name of the folder's content, in an error
    whole:         files that are written whole, so that a process that was killed may have left a part of one; or, of
                   many such files, how their names end
    model, path, iteration: where the weights are from; their hash is in `origin`
    sampler, step, plan:    the update rule in words, with all its settings, and its times and heavy calls
    origin:                 all that decides what is drawn with a seed
    first_seed:             of what is drawn first; the next has the seed after it
    members:                samples of each seed
    calls:                  what drew it: commands, batch sizes, devices, versions; no two differ in dates alone
    """

    file: ClassVar[str]
    content: ClassVar[str]
    whole: ClassVar[tuple[str, ...]]
    model: str
    path: str
    iteration: int
    sampler: str
    step: dict
    plan: dict
    guidance: Guidance
    origin: Origin
    first_seed: int
    cost: dict
    members: int = 1
    calls: tuple[dict, ...] = ()

    def identity(self) -> dict[str, tuple[Any, Any]]:
        """Values that are equal in all of a folder, by name: the value, and how an error shows it."""
        values = {field.name: getattr(self.origin, field.name) for field in fields(Origin)}
        values |= {"first seed": self.first_seed, "members": self.members}
        weights = f"{self.model} at iteration {self.iteration}, {self.origin.weights[:12]}"
        words = {"weights": weights, "experiment": self.origin.experiment[:12], "sampler": self.sampler}
        return {name: (value, words.get(name, value)) for name, value in values.items()}

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The record in a directory; None for a directory that is new, or empty but for logs.

        Raises ValueError for a directory that holds anything else.
        """
        check_link(directory)
        if not directory.exists():
            return None
        if not directory.is_dir():
            raise ValueError(f"{directory} is a file; {cls.content} are kept in a directory: choose another --out")
        if (file := directory / cls.file).exists():
            try:
                return from_json(cls, read_bytes(file), str(file))
            except ValueError as error:
                raise ValueError(f"{error}; choose another --out") from error
        names = sorted(os.listdir(directory))
        if foreign := [name for name in names if not (name[0] == "." or name.endswith(LOGS) or cls._left(name))]:
            raise ValueError(f"{directory} holds {some_of(foreign)} but no {cls.file}: choose a new directory as --out")
        return None

    def joined(self, earlier: Self | None, directory: Path) -> Self:
        """Record with what an earlier one of the same content says besides.

        Raises ValueError that names what differs, if the earlier one is of something else.
        """
        here, differing = self.identity(), []
        for name, (value, words) in ({} if earlier is None else earlier.identity()).items():
            current, now = here[name]
            if value != current:
                differing.append(f"{name} ({value}; now {current})" if words == now else f"{name} ({words}; now {now})")
        if differing:
            raise ValueError(
                f"{directory} holds other {self.content}, they differ in {', '.join(differing)}: choose another --out"
            )
        if earlier is None:
            return self
        calls = [call | {"date": None} for call in earlier.calls]
        new = (call for call in self.calls if call | {"date": None} not in calls)
        return replace(self, calls=(*earlier.calls, *new))

    @contextmanager
    def filling(self, directory: Path) -> Iterator[Self]:
        """Record, joined with what is in the directory, which is locked and cleared of what a killed process left.

        Raises as `joined` before anything is written, and OSError where another process is filling it.
        """
        _ = self.joined(self.read(directory), directory)
        directory.mkdir(parents=True, exist_ok=True)
        with run_lock(directory, f"filled with {self.content}"):
            record = self.joined(self.read(directory), directory)  # another process may have come before the lock
            for name in filter(self._left, os.listdir(directory)):
                (directory / name).unlink()
            yield record

    def write(self, directory: Path) -> None:
        write_whole(directory / self.file, json.dumps(to_plain(self), indent=1) + "\n")

    @classmethod
    def _left(cls, name: str) -> bool:
        """Whether a process that was killed left this file."""
        target = written_aside(name) or ""
        endings = tuple(end for end in cls.whole if end.startswith("."))
        return target in cls.whole or (target.endswith(endings) and target[0] != ".")


def drawn_by(drawer: Drawer, command: str, labels: str | None = None) -> dict[str, Any]:
    """Fields of a record on a drawer and the call, whatever is drawn. labels: as of `Drawer.origin`"""
    model = drawer.model
    device = {"device": str(model.device), **environment(model.device)}
    return {
        "model": model.name,
        "path": str(model.path.resolve()) if model.path else "",
        "iteration": model.iteration,
        "sampler": drawer.sampler,
        "step": plain_step(drawer.step),
        "plan": json.loads(drawer.plan.to_json()),
        "guidance": drawer.guidance,
        "origin": drawer.origin(PIXELS, labels),
        "members": drawer.members,
        "calls": ({"command": command, "batch_size": drawer.batch_size, **device},),
    }


def as_before(drawer: Drawer, record: SamplingRecord | None) -> Drawer:
    """Drawer; one of precision "auto" with the precision of what the record says is there already, if anything is."""
    if drawer.precision != "auto" or record is None:
        return drawer
    return replace(drawer, precision="bfloat16" if record.origin.precision.startswith("bfloat16") else "float32")
