"""The folder that `prepare`, or `encode`, writes: whether it may, whether there is room, what a killed process left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dualrate.data.shards import PLAN, is_prepared
from dualrate.machine.files import naming, read_json, written_aside
from dualrate.machine.folders import MANIFEST
from dualrate.machine.workers import Mapper


class Counted(Protocol):
    """The work of one shard, of so many images."""

    @property
    def count(self) -> int: ...


Work = TypeVar("Work", bound=Counted)


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError, before hours of work, where the disk cannot hold so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} is to hold {_size(needed)} more, and {_size(free)} are free there: make room for "
            f"{_size(needed - free)}, or ask for a smaller --size; the same command goes on"
        )


def _size(count: int) -> str:
    """Of so many bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} byte{'s' * (count != 1)}"


def begun_strictly(folder: Path) -> bool:
    """Whether a preparation was begun there that ends at bad images: one that leaves them out has the same shards."""
    before = read_json(folder / PLAN) if is_prepared(folder) else None
    return isinstance(before, dict) and before.get("on_bad") == "fail"


def check_folder(
    folder: Path, plan: dict[str, Any], *, file: str = PLAN, done: str = "prepared", free: Container[str] = ("source",)
) -> None:
    """Raises ValueError unless the folder is empty, new, or of the same plan.

    file: that holds the plan, whose "content" is the source's; done: what became of it; free: parts that may differ
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a new folder for the {done} images")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file).is_file():
        if there := sorted(
            file.name for file in folder.iterdir() if file.name != ".lock" and not written_aside(file.name)
        ):
            raise ValueError(f"{folder} is not empty ({there[0]}, ...): give a new folder for the {done} images")
        return
    before = read_json(folder / file)
    if not isinstance(before, dict):
        raise ValueError(f"{folder / file} is no JSON object: remove the folder and begin anew")
    names = [name for name in plan if name not in free and name != "content" and before.get(name) != plan[name]]
    if names:
        differ = "; ".join(f"{name} {before.get(name)}, now {plan[name]}" for name in names)
        raise ValueError(f"{folder} was {done} with {differ}: ask for the same, or give another folder")
    if before.get("content") != plan["content"]:
        raise ValueError(
            f"{folder} was {done} from other files ({before.get('source')}): their names, sizes or times of change "
            f"are not those of {plan['source']} now; give another folder"
        )


def remove_leftovers(folder: Path) -> None:
    """What a killed process left half written, and the manifest of what is to be mended."""
    for file in folder.iterdir():
        if written_aside(file.name) or file.name == MANIFEST:
            with naming(file):
                file.unlink()


def record_file(file: str) -> str:
    """Of a shard's record, which is written after the shard."""
    return Path(file).with_suffix(".json").name


def is_done(folder: Path, file: str, row: int) -> bool:
    """Whether a shard is there with its record, which says how many rows it has; row: bytes of one."""
    shard, record = folder / file, folder / record_file(file)
    if not (shard.is_file() and record.is_file()):
        return False
    try:
        return shard.stat().st_size == read_json(record)["images"] * row
    except (ValueError, KeyError, TypeError):  # no record: the shard is made again
        return False


def make_blocks(
    job: Callable[[Work], object],
    missing: Sequence[Work],
    total: int,
    mapper: Mapper,
    progress: Callable[[int, int], None],
    place: str,
) -> None:
    """Do the job for every block; of `total` images the others are done. progress: (images done, total).

    Raises KeyboardInterrupt, which says how many images are in their place.
    """
    done = total - sum(block.count for block in missing)
    progress(done, total)
    try:
        for block, _ in mapper(job, missing):
            done += block.count
            progress(done, total)
    except KeyboardInterrupt:
        said = f"interrupted: {done:,} of {total:,} images are {place}; the same command goes on"
        raise KeyboardInterrupt(said) from None
