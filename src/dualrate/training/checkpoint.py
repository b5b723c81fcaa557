"""Checkpoints that are whole or absent: one immutable directory each, checked by hash before anything is used.

    checkpoints/step-00012000/   model.safetensors, ema-<phase>.safetensors: what sampling reads
                                 auxiliaries.safetensors, optim-<phase>.safetensors: to go on with the training
                                 state.json; MANIFEST.json: size and sha256 of every other file, written last

Writing: see `dualrate.system.folders`. A crash at any point leaves either the old set or the old set and the new one.

Reading takes the newest checkpoint that verifies. The process that trains renames one with wrong content to
`*.corrupt`. A file that cannot be read is an error. Every file is read once, so that the bytes that are used are those
that were checked. No file of a checkpoint can execute code: they are safetensors and JSON.

`Saver` writes while training goes on. Training stops only for a copy of the tensors, which a thread then writes:

    save:    wait for the last write -> copy tensors to CPU memory -> start the thread -> training goes on
    thread:  write, hash, sync, publish -> remove the oldest

During the write memory holds a second state. On a GPU the copy's pages are pinned, and torch keeps them for the next
one. A process that dies meanwhile leaves the earlier checkpoints, and an unfinished folder that the next start removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualrate.config.ranges import Precision
from dualrate.system import folders
from dualrate.system.files import ABSENT, naming, parse_json, shown, tensors_of, write_tensors
from dualrate.system.folders import Damaged, Manifest, check_format, new_folder

FORMAT = 1
MODEL, STATE = "model.safetensors", "state.json"
KINDS = {"iteration": int, "phases": dict, "config": dict, "surroundings": dict}  # of parts of a state
TRAINING = ("optim-", "auxiliaries.")  # how the names of files begin that sampling has no use for
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. tensors: file stem ("model", "ema-<phase>", ...) -> named tensors, on CPU."""

    path: Path
    tensors: dict[str, Tensors]
    state: Mapping[str, Any]

    def weights(self) -> Tensors:
        """State dict of the networks, with the averaged weights in place of the raw ones where there are any.

        Where several phases trained a parameter, the average is that of the phase that began last.
        """
        weights = dict(self.tensors["model"])
        for phase in self.state.get("phases", {}):
            weights |= self.tensors.get(f"ema-{phase}", {})
        return weights


@torch.no_grad()
def cpu_copies(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensors]:
    """Tensors by file and name, each copied to its own contiguous CPU memory; those on a GPU go together."""
    copies: dict[str, Tensors] = {}
    for stem, named in tensors.items():
        copies[stem] = {}
        for name, tensor in named.items():
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[stem][name] = copy.copy_(tensor, non_blocking=tensor.is_cuda)
    for device in {tensor.device for named in tensors.values() for tensor in named.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)  # else what has not arrived yet would be saved
    return copies


def save(
    directory: Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `directory/step-<iteration>` and return it; on failure (OSError) nothing is left behind.

    tensors: on the CPU, no two in the same memory
    """
    target = path_of(directory, iteration)
    with new_folder(target) as folder:
        for stem, named in tensors.items():
            write_tensors(folder / f"{stem}.safetensors", {name: tensor.contiguous() for name, tensor in named.items()})
            folders.fault_point(f"wrote {stem}")
        with naming(folder / STATE):
            (folder / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=1))
        folders.fault_point("before manifest")
        Manifest.write(folder, [file.name for file in folder.iterdir()])
    return target


def load(path: Path, *, training: bool = True) -> Checkpoint:
    """Read a checkpoint directory, every byte checked against its manifest.

    training: whether to read what only training needs (optimisers' states, auxiliaries), more than half of the bytes
    Raises Damaged for wrong content, or ValueError for an intact one of another format; any other OSError if the system
    does not give the content, right or wrong.
    """
    manifest = Manifest.read(path, (MODEL, STATE))
    if manifest is None:
        raise Damaged(f"{path}: it has no manifest")
    wanted = [name for name in manifest.entries if name != STATE and (training or not name.startswith(TRAINING))]
    tensors: dict[str, Tensors] = {}
    try:
        state = parse_json(manifest.content(STATE), STATE)
        for name in wanted:
            tensors[Path(name).stem] = tensors_of(manifest.content(name))
    except ValueError as error:
        raise Damaged(f"{path}: a file matches its manifest but cannot be read ({error})") from error
    check_format(path / STATE, state.get("format") if isinstance(state, dict) else None, FORMAT)
    for name, kind in KINDS.items():
        if type(state.get(name, kind())) is not kind:
            raise Damaged(f"{path / STATE}: {name} is {shown(state[name], 60)}, expected {kind.__name__}")
    return Checkpoint(path, tensors, state)


def path_of(directory: Path, iteration: int) -> Path:
    """The folder of an iteration's checkpoint, which may not be there yet."""
    return directory / f"step-{iteration:08d}"


def saved_paths(directory: Path) -> list[Path]:
    """The checkpoint directories, oldest first."""
    checkpoints = [entry for entry in _entries(directory) if re.fullmatch(r"step-[0-9]{8,}", entry.name)]
    return sorted(checkpoints, key=lambda path: int(path.name.removeprefix("step-")))


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise


def precision(directory: Path) -> Precision:
    """The precision that a run trains in, which each of its checkpoints says; "auto" where no intact one does."""
    for path in reversed(saved_paths(directory)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if manifest := Manifest.read(path, (MODEL, STATE)):
                return parse_json(manifest.content(STATE), STATE)["precision"]
    return "auto"


def latest(
    directory: Path, on_bad: Callable[[Path, Damaged], None] = lambda path, error: None, *, training: bool = False
) -> Checkpoint | None:
    """The newest intact checkpoint; None if there is none. Touches nothing, and so serves every reader of a run.

    on_bad:   called with every damaged one that is newer
    training: as of `load`
    Raises OSError if there are checkpoints but none is intact, or one cannot be read.
    """
    causes = []
    for path in reversed(saved_paths(directory)):
        try:
            return load(path, training=training)
        except Damaged as error:
            if not os.path.lexists(path):  # removed meanwhile by the process that trains: there are newer ones
                return latest(directory, on_bad, training=training)
            on_bad(path, error)
            causes.append(f" ({error})")
    if any(re.match(r"step-[0-9]{8,}", entry.name) for entry in _entries(directory)):
        cause = "".join(causes[:1])
        raise OSError(f"{directory} holds checkpoints but none is intact; restore one, or remove them{cause}")
    return None


def recover(directory: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint, for the process that owns the run: unfinished ones go, bad ones are set aside.

    Raises OSError if there are checkpoints but none is intact: a run never starts over by itself. One whose content
    the system does not give is not set aside for that: its OSError is raised.
    """
    for leftover in directory.glob(".tmp-*"):
        shutil.rmtree(leftover)

    def quarantine(bad: Path, error: Damaged) -> None:
        names = (bad.with_name(f"{bad.name}{mark}.corrupt") for mark in ("", *(f".{n}" for n in range(2, 10_000))))
        aside = next(name for name in names if not name.exists())
        bad.rename(aside)
        note(f"corrupt checkpoint set aside as {aside.name}: {error}")

    return latest(directory, quarantine, training=True)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in saved_paths(directory)[:-keep]:
        doomed = path.with_name(f".tmp-old-{path.name}")
        path.rename(doomed)  # out of sight first: a half-removed checkpoint must not look like a corrupt one
        folders.fault_point("in prune")
        shutil.rmtree(doomed)


class Saver:
    """Writes the checkpoints of a run, one at a time and in their order.

    A `with` block waits for the last one at its end, also when an error ends it; not when a second Ctrl-C does.
    keep:     how many are kept
    saved_at: iteration of the newest one; -1 for none
    """

    def __init__(self, directory: Path, keep: int, note: Callable[[str], None], saved_at: int = -1) -> None:
        self.directory, self.keep, self.note, self.saved_at = directory, keep, note, saved_at
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._noted = False

    def save(
        self, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, last: bool
    ) -> None:
        """Begin to save a checkpoint. If that fails training goes on, with one notice; the last one may not fail.

        last: whether to wait until it is written, and raise its OSError
        """
        self.finish()
        folders.fault_point("before copy")
        copies = cpu_copies(tensors)
        record = json.loads(json.dumps(dict(state)))  # the run goes on to change it
        # a daemon thread: a second Ctrl-C ends the process without waiting for it
        self._thread = threading.Thread(
            target=self._write, args=(iteration, copies, record), name="saving", daemon=True
        )
        self._thread.start()
        if last:
            self.finish(iteration)

    def look(self) -> None:
        """Do as `finish` does, if the checkpoint that was being written has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self, needed: int = -1) -> None:
        """Wait for the checkpoint that is being written. Its OSError is noted; raised if `needed` was not saved."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, OSError) or self.saved_at < needed:
            raise error
        if not self._noted:
            self.note(f"could not save a checkpoint, training goes on: {error}")
        self._noted = True

    def _write(self, iteration: int, tensors: dict[str, Tensors], state: dict[str, Any]) -> None:
        try:
            save(self.directory, iteration, tensors, state)
            self.saved_at = iteration
            prune(self.directory, self.keep)
        except Exception as error:  # for the thread that trains
            self._error = error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.finish()
