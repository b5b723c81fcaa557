"""A run or released weights: every checkpoint verified, what would be loaded, and whether the data is there.

A data set: whether its images can be read, how many there are of which class, and which are rejected.

Is a codec what networks can be trained on: latents of unit size, images that come back, pixels in their range.

size       root of the mean square of normalised latents, drawn as in training, over all channels: about 1, since
           the noise schedule reckons with it. A scaling factor that is missing, doubled or inverted shows here
channels   each one's mean and standard deviation; many good codecs are uneven, so this is a warning
PSNR       of decode(encode(image)) against the image, in dB of 8-bit pixels
drift      of encode(decode(z)) from z, over the size of z
range      of decoded pixels, nominally [-1, 1]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualrate.codecs.codec import Codec, decoded, with_noise
from dualrate.data import fashion_mnist
from dualrate.data.cache import Options, cache_dir, image_of
from dualrate.data.images import ImageSet, find_source, to_float, to_uint8
from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.data.source import Raw, Split, one_line
from dualrate.data.text_pieces import PYTHON_DOCS, is_text, read_text
from dualrate.diffusion.random import Draws
from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.runs.store import EXPERIMENT, WEIGHTS, load, read_experiment
from dualrate.system.files import holders
from dualrate.system.folders import Damaged, some_of
from dualrate.training import checkpoint

CHECKPOINTS = "checkpoints"


def is_stored(path: Path) -> bool:
    """Whether this is meant to be a run, or released weights, rather than images."""
    return any((path / name).exists() for name in (EXPERIMENT, WEIGHTS, CHECKPOINTS)) or bool(holders(path, EXPERIMENT))


def check_stored(path: Path) -> Iterator[Finding]:
    """What a directory of a run, of runs in stages or of released weights holds. Reads every byte, changes nothing."""
    if not (path / EXPERIMENT).exists() and (within := holders(path, EXPERIMENT)):
        for run in within:
            yield from check_stored(run)
        return
    try:
        experiment = read_experiment(path)
    except (ValueError, OSError) as error:
        yield problem(f"{path}: its experiment cannot be read ({error})", "restore it from a copy")
        return
    yield ok(f"{path}: {experiment.name}, images of {'x'.join(map(str, experiment.shape))}")
    yield from _checkpoints(path / CHECKPOINTS)
    yield from _loaded(path)
    yield from check_source(experiment.data.source)


def _checkpoints(folder: Path) -> Iterator[Finding]:
    """Each of them, the newest first, also what only a resumed training reads."""
    for path in reversed(checkpoint.saved_paths(folder)):
        try:
            checkpoint.load(path)
        except Damaged as error:
            if not path.is_dir():  # a training that goes on has removed it meanwhile
                continue
            yield warning(
                f"{path.name} is damaged: {error}",
                "an intact one is used in its place, and training on sets this one aside; see to the disk",
            )
        except (ValueError, OSError) as error:
            yield problem(f"{path.name} cannot be read: {error}", "see to the disk and to permissions")
        else:
            yield ok(f"{path.name}: every file is what its manifest says")
    for path in sorted(folder.glob("*.corrupt")):
        yield warning(f"{path.name} was found damaged earlier and set aside", "remove it when nobody wants it any more")


def _loaded(path: Path) -> Iterator[Finding]:
    """What `load` would do, by doing it."""
    notes: list[str] = []
    try:
        model = load(path, note=notes.append)
    except (ValueError, OSError) as error:
        yield problem(f"{path} cannot be loaded: {error}", "restore its files, or train again in a new directory")
        return
    if (path / WEIGHTS).exists():  # what is wrong with a run's checkpoints is told above
        told = [note.removeprefix("warning: ") for note in notes if note.startswith("warning: ")]
        yield from (warning(note, "dualrate export RUN --out WEIGHTS") for note in told)
    yield ok(f"load reads iteration {model.iteration}, {sum(model.parameters.values()):,} parameters")
    try:
        fingerprint = model.codec.fingerprint
    except (ValueError, OSError) as error:
        yield problem(f"its codec cannot be read: {error}", "put it back: no image can be drawn without it")
    else:
        if fingerprint:
            yield ok(f"its codec is here: sha256 {fingerprint[:12]}")


def _latents(source: str) -> Iterator[Finding]:
    try:
        found = read_latents(source, "train")
    except (ValueError, OSError) as error:
        yield warning(f"its latents cannot be used ({error})", "sampling needs none; to train on, encode them again")
    else:
        yield ok(f"its latents are here: {found.name}")


def check_source(source: str) -> Iterator[Finding]:
    """Whether the images of a run can be found, without fetching or decoding any."""
    if source == fashion_mnist.NAME and fashion_mnist.found_at(cache_dir() / source) is None:
        yield warning(f"{source} is not on this machine", "nothing, if it has a network: 30 MB are fetched at need")
        return
    if is_encoded(source):
        yield from _latents(source)
        return
    try:
        of_text, silent = is_text(source), lambda done, total, message: None
        found = read_text(source, "train", 1) if of_text else find_source(source, "train", cache_dir(), silent)
    except (ValueError, OSError) as error:
        yield warning(
            f"its images are not here ({error})",
            "sampling needs none; to train on, start from the folder of the first start, or pass --data.source",
        )
    else:
        yield ok(f"its images are here: {found.name}")


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


LOW, HIGH = 0.8, 1.25  # of the size of latents
CENTRE = 0.25  # of a channel's mean, either way
POOR = 20.0  # dB
FAR = 0.25  # of drift
OUTSIDE = 0.01  # share of decoded values outside [-1.1, 1.1]
COUNT, AT_A_TIME = 256, 16
RULE = "compare its config (scaling_factor, shift_factor, latents_mean, latents_std) with that of whoever made it"


def check_codec(codec: Codec, images: ImageSet, count: int = COUNT) -> Iterator[Finding]:
    """What `count` images, evenly spread over a set, say of a codec. Raises as `Codec.latent_shape`."""
    shape, count = codec.latent_shape(images.shape), min(count, len(images))
    rows = torch.linspace(0, len(images) - 1, count).long()
    sides = f"{_sides(images.shape)} -> {_sides(shape)}"
    yield ok(f"{count} images of {images.name}, {sides}; codec {codec.fingerprint[:12]} (sha256)")
    x, latents, back, again = (torch.cat(parts) for parts in zip(*_trips(codec, images, rows), strict=True))
    if not (latents.isfinite().all() and back.isfinite().all()):
        yield problem("its latents or images are not finite", "use float32 weights, and look at its config")
        return
    yield from _size(latents)
    yield from _channels(latents)
    yield from _quality(x, back)
    drift = float((again - latents).square().mean().sqrt() / latents.square().mean().sqrt())
    said = f"drift of encode(decode(z)): {drift:.3f} of z"
    yield ok(said) if drift <= FAR else warning(said, "encoder and decoder may not belong together, or normalise apart")


def _trips(codec: Codec, images: ImageSet, rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Images, latents drawn as in training, images of these, and the mean latents of those."""
    for part in rows.split(AT_A_TIME):
        x = to_float(images.images[part.numpy()]).to(codec.device)
        draws, moments = Draws(0, part.to(codec.device)), codec.encode(x)
        latents = moments.sample(draws.normal("latent", *moments.mean.shape[1:]))
        back = decoded(codec, with_noise(codec, latents, draws), draws)
        yield x.cpu(), latents.cpu(), back.cpu(), codec.encode(back.clamp(-1, 1)).mean.cpu()


def _size(latents: Tensor) -> Iterator[Finding]:
    size = float(latents.square().mean().sqrt())
    said = f"size of latents (root of the mean square): {size:.3f}, expected {LOW} to {HIGH}"
    yield ok(said) if LOW <= size <= HIGH else problem(said, f"x = (z - mean) / std with a wrong std or mean: {RULE}")


def _channels(latents: Tensor) -> Iterator[Finding]:
    std, mean = torch.std_mean(latents, (0, 2, 3))
    said = f"channels: means {float(mean.min()):.3f} to {float(mean.max()):.3f}, "
    said += f"standard deviations {float(std.min()):.3f} to {float(std.max()):.3f}"
    out = ((std < LOW) | (std > HIGH) | (mean.abs() > CENTRE)).nonzero().flatten().tolist()
    if not out:
        yield ok(said)
        return
    listed = ", ".join(map(str, out[:8])) + (", ..." if len(out) > 8 else "")
    yield warning(
        f"{said}; outside {LOW} to {HIGH}, or {CENTRE} around 0: {len(out)} of {len(std)} channels ({listed})",
        "a codec may be uneven; latents_mean and latents_std of its channels would even it out",
    )


def _quality(x: Tensor, back: Tensor) -> Iterator[Finding]:
    error = (to_uint8(x).float() - to_uint8(back).float()).square().mean()
    psnr = 10 * math.log10(255**2 / max(float(error), 1e-9))
    said = f"round trip: PSNR {psnr:.2f} dB"
    yield ok(said) if psnr >= POOR else warning(said, f"images lose much on their way: {RULE}")
    outside = float((back.abs() > 1.1).float().mean())
    said = f"decoded pixels: {float(back.min()):.3f} to {float(back.max()):.3f}, {outside:.2%} beyond 1.1 either way"
    yield ok(said) if outside <= OUTSIDE else warning(said, "they are clamped to [-1, 1], where images are expected")


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
