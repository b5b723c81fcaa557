"""Checkpoints that are whole or absent: one immutable directory each, checked by hash before anything is used.

    checkpoints/step-00012000/   model.safetensors, ema-<phase>.safetensors: what sampling reads
                                 auxiliaries.safetensors, optim-<phase>.safetensors: for going on with the training
                                 state.json; MANIFEST.json: size and sha256 of every other file, written last

Writing: into `.tmp-*`, every file and the directory synced, renamed, the parent synced. A crash at any point leaves
either the old set or the old set and the new one. Reading: the newest that verifies; a bad one is renamed to
`*.corrupt`. No file of a checkpoint can execute code: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

MANIFEST = "MANIFEST.json"
FORMAT = 1
TRAINING = ("optim-", "auxiliaries.")  # how the names of files begin that sampling has no use for
Tensors = dict[str, Tensor]


class CorruptCheckpoint(OSError):
    """A checkpoint whose files are not what its manifest says."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. tensors: file stem ("model", "ema-<phase>", ...) -> named tensors, on CPU."""

    path: Path
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]

    def weights(self, *, average: bool = True) -> Tensors:
        """State dict of the networks, with the averaged weights in place of the raw ones where there are any.

        Where several phases trained a parameter, the average is that of the phase that began last.
        """
        weights = dict(self.tensors["model"])
        for phase in self.state.get("phases", {}) if average else ():
            weights |= self.tensors.get(f"ema-{phase}", {})
        return weights


def _reached(point: str) -> None:
    """Where the fault tests stop the process; does nothing."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_files(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    for stem, named in tensors.items():
        # own contiguous memory each: safetensors refuses tensors that share storage (tied weights)
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named.items()}
        try:
            safetensors.torch.save_file(copies, folder / f"{stem}.safetensors")
        except SafetensorError as error:
            raise OSError(f"could not write {folder / stem}.safetensors: {error}") from error
        _reached(f"wrote {stem}")
    (folder / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1))
    files = sorted(folder.iterdir())
    for file in files:
        _sync(file)
    _reached("before manifest")
    manifest = {"files": {file.name: _digest(file) for file in files}}
    (folder / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))
    _sync(folder / MANIFEST)
    _sync(folder)


def save(
    directory: Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `directory/step-<iteration>` and return it; on failure (OSError) nothing is left behind."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{iteration:08d}"
    temporary = directory / f".tmp-{target.name}-{os.getpid()}"
    temporary.mkdir()
    try:
        _write_files(temporary, tensors, state)
        _reached("before rename")
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(directory)
    _reached("after rename")
    return target


def _manifest(path: Path) -> dict[str, tuple[int, str]]:
    """File name -> size and sha256."""
    try:
        listed = json.loads((path / MANIFEST).read_text())["files"]
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path / MANIFEST}: no readable manifest ({error})") from error
    for name in ("model.safetensors", "state.json"):
        if name not in entries:
            raise CorruptCheckpoint(f"{path / MANIFEST}: does not list {name}")
    if odd := [name for name in entries if Path(name).name != name]:
        raise CorruptCheckpoint(f"{path / MANIFEST}: {odd} are not plain file names")
    return entries


def load(path: Path, *, training: bool = True) -> Checkpoint:
    """Read a checkpoint directory, every byte checked against its manifest.

    training: whether to read what only training needs (optimisers' states, auxiliaries), more than half of the bytes
    Raises CorruptCheckpoint, or ValueError for an intact one of another format.
    """
    contents: dict[str, bytes] = {}
    for name, (size, sha256) in _manifest(path).items():
        if name.startswith(TRAINING) and not training:
            continue
        try:
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            raise CorruptCheckpoint(f"{path / name}: {error.strerror}") from error
        if len(contents[name]) != size or hashlib.sha256(contents[name]).hexdigest() != sha256:
            raise CorruptCheckpoint(f"{path / name}: its content is not what the manifest says")
    try:
        state = json.loads(contents.pop("state.json"))
        tensors = {Path(name).stem: safetensors.torch.load(data) for name, data in contents.items()}
    except (ValueError, SafetensorError) as error:
        raise CorruptCheckpoint(f"{path}: a file matches its manifest but cannot be read ({error})") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, expected {FORMAT}: use the version that wrote it")
    return Checkpoint(path, tensors, state)


def steps(directory: Path) -> list[Path]:
    """The checkpoint directories, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(entry for entry in directory.iterdir() if re.fullmatch(r"step-\d{8,}", entry.name))


def latest(directory: Path) -> Checkpoint | None:
    """For readers of a run: the newest intact checkpoint but for what only training needs; None if there is none.

    Touches nothing. Raises OSError if there are checkpoints but none is intact.
    """
    return _newest(directory, lambda bad, error: None, training=False)


def recover(directory: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """For the process that owns the run: the newest intact checkpoint; unfinished ones go, bad ones are set aside.

    Raises OSError if there are checkpoints but none is intact: a run never starts over by itself.
    """
    for leftover in directory.glob(".tmp-*"):
        shutil.rmtree(leftover)

    def quarantine(bad: Path, error: CorruptCheckpoint) -> None:
        aside = bad.with_name(f"{bad.name}.corrupt")
        count = 1
        while aside.exists():
            count += 1
            aside = bad.with_name(f"{bad.name}.{count}.corrupt")
        bad.rename(aside)
        note(f"corrupt checkpoint set aside as {aside.name}: {error}")

    return _newest(directory, quarantine, training=True)


def _newest(directory: Path, on_bad: Callable[[Path, CorruptCheckpoint], None], *, training: bool) -> Checkpoint | None:
    for path in reversed(steps(directory)):
        try:
            return load(path, training=training)
        except CorruptCheckpoint as error:
            on_bad(path, error)
    if directory.is_dir() and any(re.match(r"step-\d{8,}", entry.name) for entry in directory.iterdir()):
        raise OSError(f"{directory} holds checkpoints but none is intact; restore one, or remove them to start over")
    return None


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in steps(directory)[:-keep]:
        doomed = path.with_name(f".tmp-old-{path.name}")
        path.rename(doomed)  # out of sight first: a half-removed checkpoint must not look like a corrupt one
        _reached("in prune")
        shutil.rmtree(doomed)
