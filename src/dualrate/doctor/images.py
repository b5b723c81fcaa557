"""A data set: whether its images can be read, how many there are of which class, and which are rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np

from dualrate.data import fashion_mnist
from dualrate.data.cache import Options, cache_dir, image_of
from dualrate.data.images import find_source
from dualrate.data.latents import is_encoded, read_latents
from dualrate.data.source import Raw, Split
from dualrate.data.text import PYTHON_DOCS, is_text, read_text
from dualrate.data.untrusted import one_line
from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.machine.folders import some_of

MOST = 5000  # images of a split that are decoded
KINDS = "a folder of images, tar archives, Parquet files, or a .npz file"
AS_STORED = Options(None, None, "fail")


def check_images(source: str) -> Iterator[Finding]:
    """source: as --data.source. Decodes up to MOST images of each split, spread evenly; writes nothing."""
    if source == fashion_mnist.NAME and fashion_mnist.found_at(cache_dir() / source) is None:
        yield warning(f"{source} is not on this machine", "nothing, if it has a network: 30 MB are fetched at need")
        return
    if is_text(source):
        yield from check_text(source)
        return
    if is_encoded(source):
        yield from _check_latents(source)
        return
    for split in ("train", "test"):
        try:
            found = find_source(source, split, cache_dir(), lambda done, total, message: None)
            raw = found.read()
            yield from _split(found.name, raw, split)
            for note in filter(None, (found.note, raw.note)) if split == "train" else ():
                yield warning(f"{source}: {note}", "nothing, if that is meant; docs/own-images.md says what is read")
        except (ValueError, OSError) as error:
            yield problem(f"{source}: {error}", f"give {KINDS}, as docs/own-images.md says")
            return


def _check_latents(source: str) -> Iterator[Finding]:
    try:
        found = [read_latents(source, split) for split in ("train", "test")]
    except (ValueError, OSError) as error:
        yield problem(f"{source}: {error}", "encode the images again (dualrate data encode)")
        return
    yield from (ok(f"latents: {one.name}") for one in found)


def check_text(source: str) -> Iterator[Finding]:
    """Whether it can be read, and of how many characters it is."""
    try:
        train, test = (read_text(source, split, 1) for split in ("train", "test"))
    except (ValueError, OSError) as error:
        yield problem(f"{source}: {error}", f"give a text, FILE.txt or {PYTHON_DOCS}, as docs/tokens.md says")
        return
    yield ok(f"{train.name}: a text of {len(train) + len(test):,} characters, {len(train.alphabet)} different ones")


def _split(name: str, raw: Raw, split: Split) -> Iterator[Finding]:
    yield ok(f"{name}: {raw.count} images, {len(raw.class_names) or 'no'} class(es)")
    if raw.labels is not None and split == "train":  # of a small test split any class may be missing
        yield from _classes(name, raw.labels, raw.class_names)
    every = max(1, -(-raw.count // MOST))
    shapes, bad = _decoded(raw, every)
    tried = shapes.total() + len(bad)
    if not shapes:
        yield problem(f"{name}: none of {tried} images can be decoded: {some_of(bad)}", "look at these files")
        return
    if bad:
        yield problem(
            f"{name}: {len(bad)} of {tried} files are rejected: {some_of(bad)}", "mend them, or pass --data.on-bad skip"
        )
    sizes = some_of([f"{count} of {'x'.join(map(str, shape))}" for shape, count in shapes.most_common()])
    if len(shapes) > 1:
        yield warning(f"{name}: images differ in shape: {sizes}", "pass --data.size, and --data.channels 1 or 3")
    else:
        yield ok(f"{name}: decoded{f' one in {every}' if every > 1 else ''}: {sizes}")


def _classes(name: str, labels: np.ndarray, names: tuple[str, ...]) -> Iterator[Finding]:
    counts = np.bincount(labels, minlength=len(names))
    without = [names[i] for i in np.flatnonzero(counts == 0)]
    if without:
        yield warning(
            f"{name}: no image of {len(without)} class(es): {some_of(without)}", "add some; of them nothing is learnt"
        )
    yield ok(f"{name}: {counts.min()} to {counts.max()} images a class")


def _decoded(raw: Raw, every: int) -> tuple[Counter[tuple[int, ...]], list[str]]:
    """How many images have which shape, and what is wrong with the others."""
    shapes: Counter[tuple[int, ...]] = Counter()
    bad = []
    for name, item in islice(raw.items, 0, None, every):
        try:
            shapes[image_of(name, item, AS_STORED).shape] += 1
        except (ValueError, OSError) as error:
            bad.append(one_line(error))
    return shapes, bad
