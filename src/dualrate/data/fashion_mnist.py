"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747): 60,000 + 10,000 grey images of 28 x 28, ten classes.

Looked for in the cache, then in Debian's package `dataset-fashion-mnist` if it is installed; else the package is
fetched without root and unpacked into the cache, else the files come from the authors' repository. Sizes and sha256
are those of the uncompressed content: Debian compresses the same content anew, so the .gz files differ.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np

from dualrate.data.source import DataProgress, Item, Raw, Source, Split
from dualrate.system.files import naming

NAME = "fashion-mnist"
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CONTENT = {  # file -> bytes and sha256, uncompressed
    "train-images-idx3-ubyte.gz": (47040016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte.gz": (60008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte.gz": (7840016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte.gz": (10008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
MIRROR = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_TIMEOUT = 300  # seconds, for each command and each connection


def fashion_mnist_source(split: Split, cache: Path, progress: DataProgress) -> Source:
    """Fashion-MNIST's split; the four files are fetched into `cache` if they are nowhere on this machine.

    Raises OSError that lists what was tried and how to help by hand.
    """
    folder = _located(cache, progress)
    prefix = {"train": "train", "test": "t10k"}[split]
    files = (folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz")

    def read() -> Raw:
        images, labels = (parse_idx(verified(file)) for file in files)
        items: list[Item] = [(f"{NAME}[{i}]", image[None]) for i, image in enumerate(images)]
        return Raw(items, len(images), labels.astype(np.int64), CLASS_NAMES)

    return Source(f"{NAME}/{split}", files, read)


def parse_idx(data: bytes) -> np.ndarray:
    """The array in the bytes of an IDX file of unsigned bytes: 0, 0, 8, rank, big-endian int32 shape, then content."""
    start = 4 + 4 * data[3]
    return np.frombuffer(data[start:], np.uint8).reshape(np.frombuffer(data[4:start], ">i4"))


def verified(file: Path) -> bytes:
    """The uncompressed content of one of the four files; ValueError unless size and sha256 are those of `CONTENT`.

    Raises OSError for a file that cannot be opened or read.
    """
    size, expected = CONTENT[file.name]
    try:
        with naming(file), gzip.open(file) as stream:
            data = stream.read(size + 1)  # no more, whatever the file holds
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a readable .gz file ({error}); delete it and run again") from error
    if (digest := hashlib.sha256(data).hexdigest()) != expected:
        raise ValueError(
            f"{file} does not hold Fashion-MNIST: sha256 {digest}, expected {expected}; delete it and run again"
        )
    return data


def _located(cache: Path, progress: DataProgress) -> Path:
    for folder in (cache, INSTALLED):
        if all((folder / name).is_file() for name in CONTENT):
            return folder
    tried: list[str] = []
    cache.mkdir(parents=True, exist_ok=True)
    for route, fetch in (("apt-get download", _from_debian), ("HTTPS", _from_mirror)):
        progress(0, len(CONTENT), f"fetching Fashion-MNIST (30 MB) by {route}")
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as aside:
            try:
                fetch(Path(aside))
                for name in CONTENT:
                    verified(Path(aside, name))
            except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
                tried.append(f"{route}: {error}")
                continue
            for name in CONTENT:
                os.replace(Path(aside, name), cache / name)
        progress(len(CONTENT), len(CONTENT), f"fetched Fashion-MNIST by {route}")
        return cache
    raise OSError(
        "Fashion-MNIST could not be fetched. Tried\n  " + "\n  ".join(tried) + f"\n  To help by hand, put the files "
        f"{', '.join(CONTENT)} into {cache} (from {MIRROR}), or as root: apt-get install {PACKAGE}"
    )


def _from_debian(folder: Path) -> None:
    """Download and unpack the package, with package lists of our own: a fresh container has none."""
    (folder / "lists" / "partial").mkdir(parents=True)
    apt = ["apt-get", "-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/lists"]
    _run([*apt, "update"], folder)
    _run([*apt, "download", PACKAGE], folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg-deb", "-x", package.name, "unpacked"], folder)
    for name in CONTENT:
        os.replace(folder / "unpacked" / INSTALLED.relative_to("/") / name, folder / name)


def _from_mirror(folder: Path) -> None:
    for name in CONTENT:
        with urllib.request.urlopen(MIRROR + name, timeout=_TIMEOUT) as response, open(folder / name, "wb") as file:
            shutil.copyfileobj(response, file)


def _run(command: list[str], folder: Path) -> None:
    """Run a command in a folder; OSError with the last line it wrote if it fails or does not exist."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise OSError(f"{command[0]} ended with {done.returncode}: {lines[-1]}")
