"""Captions of shapes beside a square, their pictures, and a rule that reads pictures again (studies/captions.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.uint8]  # (28, 28, 3)

# Captions and their pictures

SIDE, CELL, SIZE = 28, 7, 5  # of a picture, of a cell that a shape is in, of a shape, in pixels
BACKGROUND = (246, 243, 236)
GREY, MIDDLE = (96, 98, 104), slice(9, 19)  # the square, and where it is
COLOURS = {"red": (222, 66, 60), "green": (52, 152, 92), "blue": (58, 104, 208), "yellow": (240, 186, 40)}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("a", "two", "three")
PLACES = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}  # axis and side
ASPECTS = ("count", "colour", "place", "shape")


class Caption(NamedTuple):
    many: int
    colour: str
    shape: str
    place: str

    def __str__(self) -> str:
        shapes = f"{self.shape}{'s' * (self.many > 1)}"
        return f"{COUNTS[self.many - 1]} {self.colour} {shapes} {self.place} a square"


@cache
def captions() -> tuple[list[Caption], list[Caption]]:
    """All there are, in an order by chance: those of training, and the fifth whose words it never has together."""
    all_ = [Caption(*of) for of in product((1, 2, 3), COLOURS, SHAPES, PLACES)]
    order = np.random.default_rng(0).permutation(len(all_))
    cut = len(all_) // 5
    return [all_[i] for i in order[cut:]], [all_[i] for i in order[:cut]]


@cache
def covered(shape: str) -> NDArray[np.float64]:
    """(5, 5) in [0, 1]: of each pixel the share that the shape covers."""
    fine = 16
    y, x = np.mgrid[: SIZE * fine, : SIZE * fine] / (SIZE * fine / 2) - 1 + 1 / (SIZE * fine)  # in (-1, 1)
    inside = {"circle": x**2 + y**2 < 1, "square": np.ones_like(x) > 0, "triangle": 2 * np.abs(x) < y + 1}[shape]
    return inside.reshape(SIZE, fine, SIZE, fine).mean((1, 3))


def drawn(caption: Caption, rng: np.random.Generator) -> Pixels:
    """A picture of it: the square in the middle, the shapes in cells of the outer line of four on their side."""
    picture = np.empty((SIDE, SIDE, 3))
    picture[:] = BACKGROUND
    picture[MIDDLE, MIDDLE] = GREY
    axis, side = PLACES[caption.place]
    alpha = covered(caption.shape)[..., None]
    for along in rng.permutation(SIDE // CELL)[: caption.many]:
        cell = np.array((0 if side < 0 else SIDE // CELL - 1, along))
        corner = CELL * (cell if axis == 0 else cell[::-1]) + rng.integers(0, CELL - SIZE, 2)  # a pixel apart at least
        part = picture[tuple(slice(start, start + SIZE) for start in corner)]
        part += alpha * (np.array(COLOURS[caption.colour]) - part)
    return picture.round().astype(np.uint8)


# The reader of pictures

LEAST = 6  # pixels of a shape; what is smaller is a speck, and no shape


class Seen(NamedTuple):
    """A shape in a picture; centre: (y, x) in pixels."""

    colour: str
    shape: str
    centre: tuple[float, float]


def read(picture: Pixels) -> list[Seen]:
    """The shapes but the grey: connected pixels that are nearer to a colour than to the background.

    A pixel is of the colour whose direction from the background it has; a mixture of both keeps that. The shape is the
    one with the nearest share of its box, of what its pixels are covered.
    """
    away = picture.astype(float) - BACKGROUND
    inks = np.array([*COLOURS.values(), GREY], float) - BACKGROUND
    sizes = np.linalg.norm(inks, axis=1)
    along = away @ (inks / sizes[:, None]).T
    nearest, cover = along.argmax(-1), (along / sizes).clip(0, 1)
    shapes = []
    for number, colour in enumerate(COLOURS):
        labels, _ = ndimage.label((nearest == number) & (cover[..., number] > 0.5))  # pyright: ignore[reportGeneralTypeIssues]
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            inside = labels[box] == label
            if inside.sum() < LEAST:
                continue
            filled = inside.mean()
            shape = min(SHAPES, key=lambda name: abs(filled - _filled(name)))
            y, x = np.nonzero(labels == label)
            shapes.append(Seen(colour, shape, (float(y.mean()), float(x.mean()))))
    return shapes


@cache
def _filled(shape: str) -> float:
    """The share of its box that a whole shape fills, of pixels that are covered by more than half."""
    inside = covered(shape) > 0.5
    (box,) = ndimage.find_objects(inside.astype(int))
    return inside[box].mean()


def judged(caption: Caption, seen: Sequence[Seen]) -> dict[str, bool]:
    """Whether the picture has what the caption says.

    colour: there are shapes of its colour, and of no other
    count:  of its colour there are as many as it says
    place:  each of its colour is beyond the middle, on the side that it says
    shape:  there are some of its colour, and all are its shapes
    """
    axis, side = PLACES[caption.place]
    matches = [item for item in seen if item.colour == caption.colour]
    edge = MIDDLE.start if side < 0 else MIDDLE.stop - 1
    return {
        "count": len(matches) == caption.many,
        "colour": bool(matches) and len(seen) == len(matches),
        "place": bool(matches) and all(side * (item.centre[axis] - edge) > 0 for item in matches),
        "shape": bool(matches) and all(item.shape == caption.shape for item in matches),
    }
