"""Texts: a file in UTF-8, or the language reference that comes with Python; pieces of it as an `ImageSet`.

A piece is an image of one row, whose values are places in the text's alphabet: its characters in order of their code.
The last tenth of the text is the test split, in pieces one after the other; training takes a piece from anywhere before
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dualrate.data import source as files
from dualrate.data.images import ImageSet
from dualrate.data.source import Split, resolved
from dualrate.report.image_grid import Ending, Pictures
from dualrate.system.files import write_whole
from dualrate.texts.codec import BETWEEN, MOST, texts

PYTHON_DOCS, ENDING = "python-docs", ".txt"
PIECE = 64  # characters, where nothing else is said
LEAST = 30  # pieces of a text, so that a tenth of it is three


@dataclass(frozen=True)
class TextFiles(Pictures):
    """Files of texts of an alphabet, in UTF-8, nothing after the last character. shape: (1, 1, characters)"""

    alphabet: str
    ending: ClassVar[Ending] = ".txt"
    shown: ClassVar[int | None] = None

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return next(iter(texts(self.alphabet, sample[None]))).encode()

    def is_whole(self, file: Path) -> bool:
        text = file.read_bytes().decode(errors="replace")
        return len(text) == self.shape[2] and set(text) <= set(self.alphabet)

    def read(self, file: Path) -> NDArray[np.uint8]:
        if not self.is_whole(file):
            raise OSError(f"{file} is not {self.shape[2]} characters of the model's: delete it, and it is drawn again")
        places = [self.alphabet.index(character) for character in file.read_bytes().decode()]
        return np.array(places, np.uint8)[None, None]

    def show(self, samples: NDArray[np.uint8], directory: Path, columns: int | None) -> None:
        write_whole(directory / "samples.txt", BETWEEN.join(texts(self.alphabet, samples)) + "\n")

    def texts(self, files: Iterable[Path]) -> list[str]:
        return [file.read_bytes().decode() for file in files]


def is_text(source: str | Path) -> bool:
    """Whether a source is a text, by its name alone."""
    return source == PYTHON_DOCS or Path(source).suffix.lower() == ENDING


def read_text(source: str | Path, split: Split, length: int = PIECE) -> ImageSet:
    """Pieces of `length` characters: images (N, 1, 1, length) uint8, without labels.

    Raises ValueError for a text that is too short, is not in UTF-8 or has more than 255 different characters,
    FileNotFoundError where there is none, OSError for one that cannot be read.
    """
    if source == PYTHON_DOCS:
        try:
            from pydoc_data.topics import topics  # of this very version of Python; not in every installation
        except ImportError as error:
            raise FileNotFoundError(
                f"this Python comes without its language reference ({error}): name a text, --data.source FILE{ENDING}"
            ) from error
        name, text = PYTHON_DOCS, "\n".join(topics[name] for name in sorted(topics))
    else:
        path = resolved(source)
        if not path.exists():
            raise FileNotFoundError(f"there is no text {path}: name a {ENDING} file, or {PYTHON_DOCS}")
        name, text = path.name, files.read_utf8(path)
    if len(text) < LEAST * length:
        raise ValueError(
            f"{name} has {len(text)} characters; pieces of {length} want {LEAST * length} or more: name a longer text, "
            "or make pieces shorter (--data.size)"
        )
    codes, places = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    if not 2 <= len(codes) <= MOST:
        raise ValueError(f"{name} has {len(codes)} different characters, expected 2 to {MOST}: name another text")
    edge = len(text) - len(text) // 10
    part = places.astype(np.uint8)
    windows = sliding_window_view(part[:edge] if split == "train" else part[edge:], length)
    pieces = windows if split == "train" else windows[::length]
    alphabet = "".join(map(chr, codes))
    hashed = hashlib.sha256(f"{split} {length} {alphabet} {text}".encode()).hexdigest()
    return ImageSet(pieces[:, None, None], None, (), name, hashed, alphabet)
