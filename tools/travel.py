"""What a piece of GPU work leaves, as a few files of at most 16 MiB, and back: so it can go to another machine and on.

state      a training run whose newest checkpoint is cut down to what going on needs: weights and averages in
           bfloat16, 4 bytes a parameter where a checkpoint has 16. The optimiser's moments stay behind: they are
           means over ten and a hundred iterations, and a piece makes thousands
weights    a finished run, as `dualrate export` releases it: averages in bfloat16, 2 bytes a parameter
folder     any other folder, as it is
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Way = Callable[[Path, Path], None]
PART = 15 * 2**20  # bytes of a file
KEPT = ("experiment.json", "history.jsonl", "metrics.jsonl", "scores.jsonl")  # of a run, beside its checkpoint


def state(run: Path, target: Path) -> None:
    """Copy a run so that it can go on, into a new directory. Raises ValueError if it has no checkpoint."""
    import torch

    from dualrate.training import checkpoint

    paths = checkpoint.saved_paths(run / "checkpoints")
    if not paths:
        raise ValueError(f"{run} has no checkpoint yet, so nothing of it can travel: run the piece for longer")
    saved = checkpoint.load(paths[-1])
    rounded = {
        stem: {name: tensor.to(torch.bfloat16) for name, tensor in named.items() if not stem.startswith("optim-")}
        for stem, named in saved.tensors.items()
    }
    record = {name: value for name, value in saved.state.items() if name != "format"}
    target.mkdir(parents=True)
    checkpoint.save(target / "checkpoints", int(record["iteration"]), rounded, record)
    for name in KEPT:
        if (run / name).exists():
            shutil.copy(run / name, target / name)


def weights(run: Path, target: Path) -> None:
    """Release a run's averaged weights into a new directory."""
    from dualrate.runs.release import export

    export(run, target)


def folder(source: Path, target: Path) -> None:
    """Copy a folder as it is, into a new directory."""
    shutil.copytree(source, target)


WAYS: Mapping[str, Way] = {"state": state, "weights": weights, "folder": folder}


def pack(source: Path, way: str, out: Path, name: str) -> dict[str, str]:
    """Write `source`, in one of WAYS, to files `out/name.DIGEST.00`, ...01, ...; returns the sha256 of each.

    The digest is that of all of it, so nothing that was left before is written over.
    """
    from dualrate.system.files import write_whole

    with tempfile.TemporaryDirectory(dir=out) as room:
        WAYS[way](source, Path(room) / "made")
        content = _archive(Path(room) / "made")
    stem = f"{name}.{hashlib.sha256(content).hexdigest()[:8]}"
    parts = {f"{stem}.{start // PART:02}": content[start : start + PART] for start in range(0, len(content), PART)}
    for part, piece in parts.items():
        write_whole(out / part, piece)
    return {part: hashlib.sha256(piece).hexdigest() for part, piece in parts.items()}


def unpack(parts: Mapping[str, str], kept: Path, target: Path) -> None:
    """Put together what `pack` wrote to the folder `kept`, as the new directory `target`.

    Raises ValueError for a part that is missing or another than was written.
    """
    content = b""
    for part, expected in parts.items():
        piece = (kept / part).read_bytes() if (kept / part).is_file() else b""
        if hashlib.sha256(piece).hexdigest() != expected:
            raise ValueError(f"{kept / part} is missing or damaged: bring it again, or run its piece again")
        content += piece
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(aside)  # leads out of `aside` by no name: zipfile drops drives, roots and ".."
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.rename(target)


def _archive(source: Path) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(source))
    return made.getvalue()
