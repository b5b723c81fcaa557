"""Where runs, decoded images and temporary files go: room, and whether what is written there is whole or absent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.machine.files import write_whole
from dualrate.machine.folders import new_folder
from dualrate.machine.guards import run_lock

GIB = 2**30
LEAST, LITTLE = GIB // 4, 5 * GIB  # a checkpoint of a small model; a few of a large one
SHARED, SHARED_LEAST = Path("/dev/shm"), GIB // 4


def check_disk(places: Sequence[tuple[str, Path]]) -> Iterator[Finding]:
    """places: what for, and the folder, which need not exist: then it is the nearest that does. Leaves no trace."""
    for purpose, wanted in places:
        folder = next(path for path in (wanted, *wanted.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(folder).free
        about = f"{purpose}: {folder}, {free / GIB:.1f} GiB free"
        elsewhere = "choose another place (--out, DUALRATE_CACHE, TMPDIR)"
        if free < LEAST:
            yield problem(f"{about}, too little for a checkpoint", f"make room, or {elsewhere}")
        elif failed := _refuses(folder):
            yield problem(f"{about}: {failed}", elsewhere)
        elif free < LITTLE:
            yield warning(f"{about}, little", f"make room, or {elsewhere}; --fit.keep says how many checkpoints stay")
        else:
            yield ok(f"{about}; writing, syncing, renaming and locking work")


def _refuses(folder: Path) -> str | None:
    """What a training does to its folder and this one does not take; None if it takes all."""
    content = b"whole"
    try:
        with tempfile.TemporaryDirectory(prefix=".dualrate-doctor-", dir=folder) as name:
            place = Path(name)
            write_whole(place / "file", content)
            with new_folder(place / "checkpoint") as aside:
                (aside / "file").write_bytes(content)
            with run_lock(place) as held:
                read = [(place / file).read_bytes() for file in ("file", "checkpoint/file")]
    except OSError as error:
        return f"it cannot be written to as checkpoints are ({error})"
    if read != [content, content]:
        return "what was written there is not what is read"
    return None if held else "it has no locks, which keep two processes from training one run: see to it yourself, or"


def check_shared_memory() -> Iterator[Finding]:
    """What processes on GPUs of one machine exchange through memory, where there is such a place."""
    if not SHARED.is_dir():
        return
    total = shutil.disk_usage(SHARED).total
    about = f"{SHARED} has {total / GIB:.2f} GiB"
    if total < SHARED_LEAST:
        yield warning(f"{about}: little for several GPUs (NCCL)", "docker run --shm-size=8g, or --ipc=host")
    else:
        yield ok(about)
