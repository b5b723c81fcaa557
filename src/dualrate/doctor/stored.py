"""A run or released weights: every checkpoint verified, what would be loaded, and whether the data is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dualrate.data import fashion_mnist
from dualrate.data.cache import cache_dir
from dualrate.data.images import find_source
from dualrate.data.latents import is_encoded, read_latents
from dualrate.data.text import is_text, read_text
from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.machine.files import holders
from dualrate.machine.folders import Damaged
from dualrate.runs.store import EXPERIMENT, WEIGHTS, load, read_experiment
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
