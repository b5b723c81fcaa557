"""Texts: a file in UTF-8, or the language reference that comes with Python; pieces of it as an `ImageSet`.

A piece is an image of one row, whose values are places in the text's alphabet: its characters in order of their code.
The last tenth of the text is the test split, in pieces one after the other; training takes a piece from anywhere before
it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dualrate.codecs.token_codec import MOST
from dualrate.data import source as files
from dualrate.data.images import ImageSet
from dualrate.data.source import Split, resolved

PYTHON_DOCS, ENDING = "python-docs", ".txt"
PIECE = 64  # characters, where nothing else is said
LEAST = 30  # pieces of a text, so that a tenth of it is three


def is_text(source: str | Path) -> bool:
    """Whether a source is a text, by its name alone."""
    return source == PYTHON_DOCS or Path(source).suffix == ENDING


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
        name, text = path.name, files.read_text(path)
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
