"""The pieces of GPU work in the order of what they decide.

    python -m tools.gpu                              the table, the next piece, and the commands that run it
    python -m tools.gpu run NAME --out DIR           runs a piece; --data FILE for those of CIFAR-10
    python -m tools.gpu pack FOLDER FILE             packs the parquet files of CIFAR-10 into one of 17 MB

A piece is a file of this folder with a `PIECE`, and a line in PIECES. Findings are kept in out/gpu.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from dualrate.system.device import pick_device
from tools.gpu import conditions, natural_images, retrofit_dit, right_and_fast, unconditional
from tools.gpu.cifar10 import pack
from tools.gpu.piece import SECONDS, Job, Piece

PIECES = {
    module.PIECE.name: module.PIECE
    for module in (right_and_fast, conditions, natural_images, retrofit_dit, unconditional)
}
OUT, LOAD = Path("out/gpu"), Path("build/gpu")  # LOAD travels to the machine


def table(out: Path) -> str:
    """In Markdown: state, calls of ten minutes, and question of each piece."""
    lines = ["| piece | state | calls | answers |", "|---|---|---:|---|"]
    for piece in PIECES.values():
        lines.append(f"| `{piece.name}` | {piece.state(out)} | {piece.calls} | {piece.answers} |")
    return "\n".join(lines)


def following(out: Path) -> Piece | None:
    """The first piece that is not done and not closed."""
    return next((one for one in PIECES.values() if one.state(out) != "done" and not one.closed(out)), None)


def commands(piece: Piece, out: Path) -> str:
    """What to run here, what to carry, and what to run on the machine."""
    here = ["git sparse-checkout set --no-cone '/*' '!/weights/'  # which no piece reads; `disable` brings them back"]
    here += [f"rm -rf {LOAD / 'found'} && mkdir -p {LOAD / 'found'}"]
    if piece.data:
        here.append(f"python -m tools.gpu pack FOLDER {LOAD / 'cifar10.npz'}  # of train.parquet and test.parquet")
    if piece.wheels:
        kind = "--python-version 3.12 --only-binary=:all: --no-deps"
        here.append(f"python -m pip download {kind} -d {LOAD / 'wheels'} {' '.join(piece.wheels)}")
    if needed := piece.needed(out):
        here.append(f"cp {' '.join(map(str, needed))} {LOAD / 'found'}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    there = [f"cp {LOAD / 'found'}/* $OUT 2>/dev/null"]
    if piece.wheels:
        there.append(f"python3 -m pip install -q --no-index --no-deps --target {LOAD / 'site'} {LOAD / 'wheels'}/*.whl")
    options = f"--out $OUT --commit {commit}" + (f" --data {LOAD / 'cifar10.npz'}" if piece.data else "")
    there.append(f"PYTHONPATH=src:{LOAD / 'site'} python3 -u -m tools.gpu run {piece.name} {options}")
    return "\n".join(
        [
            "here:",
            *(f"    {line}" for line in here),
            f"on the machine, with {LOAD} carried and a limit of 600 seconds:",
            f"    {'; '.join(there)}",
            f"then copy what came back from $OUT to {out}",
        ]
    )


def show(out: Path) -> None:
    print(table(out))
    for piece in PIECES.values():
        if piece.state(out) != "done" and (why := piece.closed(out)):
            print(f"\n{piece.name}: {why}")
    piece = following(out)
    print(f"\nnext: {piece.name}\n{commands(piece, out)}" if piece else "\nnothing is left to run")


def run(piece: Piece, options: argparse.Namespace) -> bool:
    """One call of a piece. Returns whether the piece is done."""
    if why := piece.closed(options.out):
        raise ValueError(f"{piece.name} should not run: {why}")
    ends, device = time.time() + options.seconds, pick_device(options.device)
    work = options.work or Path("runs/gpu") / piece.name
    job = Job(piece.name, options.out, work, ends, device, options.data, options.smoke, options.commit)
    done = piece.run(job)
    job.write(done=done)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of findings")
    packing, running = verbs.add_parser("pack"), verbs.add_parser("run")
    packing.add_argument("folder", type=Path)
    packing.add_argument("file", type=Path)
    running.add_argument("name", choices=PIECES)
    running.add_argument("--out", type=Path, default=OUT, help="folder of findings")
    running.add_argument("--work", type=Path, help="folder of everything else; runs/gpu/NAME if not given")
    running.add_argument("--data", type=Path, help="what `pack` wrote")
    running.add_argument("--device", help="cuda or cpu; the best there is if not given")
    running.add_argument("--commit", default="", help="of the code, where git does not say it")
    running.add_argument("--seconds", type=float, default=SECONDS, help="after which no row begins")
    running.add_argument("--smoke", action="store_true", help="small networks on made-up images, for a test on a CPU")
    options = parser.parse_args()
    if options.verb == "pack":
        pack(options.folder, options.file)
    elif options.verb == "run":
        try:
            done = run(PIECES[options.name], options)
        except ValueError as error:
            sys.exit(f"{error}")
        print(f"{options.name}: {'done' if done else 'part; run it again'}")
    else:
        show(options.out)


if __name__ == "__main__":
    main()
