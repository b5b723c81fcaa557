"""The place of a data source, and who reads it."""

from __future__ import annotations

from pathlib import Path

from dualrate.data import cache as packed
from dualrate.data import fashion_mnist
from dualrate.data.cache import ENCODED, PREPARED, cache_dir
from dualrate.data.folders import folder_source
from dualrate.data.source import SPLITS, DataProgress, Source, Split, npz_source, resolved, silent, tables_in
from dualrate.data.tars import tar_files, tar_source
from dualrate.system.files import check_regular


def column_of(source: str | Path) -> tuple[str | Path, str]:
    """A source and the column of its images: of "photos.parquet#sharp" they are "photos.parquet" and "sharp".

    A place that exists has no column, whatever its name is.
    """
    place, _, column = str(source).rpartition("#")
    return (place, column) if place and column and not resolved(source).exists() else (source, "")


def existing(source: str | Path) -> Path:
    """The place that a source names. Raises FileNotFoundError where nothing is, and what `resolved` raises."""
    path = resolved(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no data at {path}; expected {fashion_mnist.NAME!r}, a folder of images, a .tar, .parquet or .npz file"
        )
    return path


def find_source(
    source: str | Path, split: Split, cache: Path, progress: DataProgress, label: str | None = None
) -> Source:
    """One split of a data source, as in `load_images`, with nothing read yet that is not needed to find it.

    Raises what `load_images` raises, and ValueError for a `label` of a source that has neither columns nor arrays.
    """
    place, column = column_of(source)
    path = None if place == fashion_mnist.NAME else existing(place)
    folders = (path, path / "data") if path and path.is_dir() else ()
    if path and (any(map(tables_in, folders)) if folders else path.suffix.lower() == ".parquet"):
        try:
            from dualrate.data.parquet import parquet_source
        except ModuleNotFoundError as error:
            raise ValueError(f"pyarrow reads the Parquet files of {path}: pip install 'dualrate[parquet]'") from error
        return parquet_source(path, split, label, column)
    if column:
        raise ValueError(f"#{column} names a column of Parquet files, and there are none in {place}: drop it")
    if label is not None and (path is None or path.suffix.lower() != ".npz"):
        raise ValueError(
            f"--data.label {label} names a column of Parquet files or an array of .npz, and there are none in "
            f"{source}: drop it; its labels are its folders, or stand beside its images (docs/own-images.md)"
        )
    if path is None:
        return fashion_mnist.fashion_mnist_source(split, cache / fashion_mnist.NAME, progress)
    if folders:
        if (path / PREPARED).is_file():
            return packed.packed_source(path, split)
        if (path / ENCODED).is_file():
            raise ValueError(f"{path} holds latents: name the images that they were made from")
        tars = tar_files(path)
        return tar_source(tars, path, split, progress) if tars else folder_source(path, split)
    check_regular(path)
    if path.suffix.lower() == ".npz":
        return npz_source(path, split, label)
    if path.suffix.lower() == ".tar":
        return tar_source([path], path, split, progress)
    raise ValueError(
        f"{path} is a file; expected .tar (not compressed), .parquet, .npz, or a folder; fields over time are for "
        "`dualrate train forecast`, clips for `dualrate train clips`"
    )


def named_splits(
    source: str | Path, what: str, label: str | None = None, progress: DataProgress = silent
) -> dict[Split, Source]:
    """Both splits of a source whose images have names. what: is found by these. Raises as `find_source`, and ValueError
    for a prepared source."""
    if prepared_folder(source):
        raise ValueError(f"{source} was prepared, which keeps no names to find {what} by: name its images themselves")
    return {split: find_source(source, split, cache_dir(), progress, label) for split in SPLITS}


def prepared_folder(source: str | Path) -> Path | None:
    """The folder that a source is, if `prepare` wrote it, finished or not. Raises ValueError for no path."""
    path = None if source == fashion_mnist.NAME else resolved(source)
    return path if path and (path / PREPARED).is_file() else None


def check_outside(folder: Path, source: str | Path) -> None:
    """Raises ValueError for a folder to write in a folder of images, of which it would become a class."""
    place = None if source in ("", fashion_mnist.NAME) else resolved(column_of(source)[0])
    if place is None or not place.is_dir() or any((place / name).is_file() for name in (PREPARED, ENCODED)):
        return
    if folder.resolve().is_relative_to(place):
        raise ValueError(f"{folder} is in {source}, whose images are read: give a folder elsewhere")
