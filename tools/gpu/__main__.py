"""The pieces of GPU work in the order of what they decide.

    python -m tools.gpu                              the table, the next piece, and the commands that run it
    python -m tools.gpu run NAME --out DIR           runs a piece; --data FILE for those of CIFAR-10
    python -m tools.gpu pack FOLDER FILE             packs the parquet files of CIFAR-10 into one of 17 MB
    python -m tools.gpu judges FOLDER FILE           trains and packs the networks that score images, 33 MB

A piece is a file of this folder with a `PIECE`, and a line in PIECES. Findings are kept in out/gpu.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers import LITE2
from dualrate.system.device import pick_device
from tools.gpu import conditions, judges, paper_curve, right_and_fast
from tools.gpu.cifar10 import pack
from tools.gpu.piece import CIFAR10, SECONDS, Job, Piece

PIECES = {module.PIECE.name: module.PIECE for module in (paper_curve, conditions, right_and_fast)}
OUT, LOAD = Path("out/gpu"), Path("build/gpu")  # LOAD travels to the machine
SOURCES = "/src/ /tools/ /benchmarks/ /tests/contracts/ '!/src/dualrate/metrics/nets/'"  # of what pieces import


def table(out: Path) -> str:
    """A table in Markdown: state, calls of ten minutes, and question of each piece."""
    lines = ["| piece | state | calls | answers |", "|---|---|---:|---|"]
    for piece in PIECES.values():
        lines.append(f"| `{piece.name}` | {piece.state(out)} | {piece.calls} | {piece.answers} |")
    return "\n".join(lines)


def following(out: Path) -> Piece | None:
    """The first piece that is not done."""
    return next((piece for piece in PIECES.values() if piece.state(out) != "done"), None)


def commands(piece: Piece, out: Path) -> str:
    """Commands to run here, files to carry, and commands to run on the machine."""
    making = {
        CIFAR10: f"python -m tools.gpu pack FOLDER {LOAD / CIFAR10}  # of train.parquet and test.parquet",
        judges.FILE: f"python -m tools.gpu judges FOLDER {LOAD / judges.FILE}  # needs {LITE2}",
    }
    needed, loads, came = piece.needed(out), piece.loads(out), LOAD / "found"
    here = [f"git sparse-checkout set --no-cone {SOURCES}", f"rm -rf {came} && mkdir -p {came}"]
    here += [making[name] for name in loads]
    here += [f"cp -r {' '.join(map(str, needed))} {came}"] if needed else []
    remote = [f"cp -r {came}/* $OUT 2>/dev/null"]
    carried = [*(LOAD / name for name in loads), came]
    if piece.package:
        here.append(f"python -m pip install --no-deps --target {LOAD / 'site'} {piece.package}")
        carried.append(LOAD / "site")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    options = f"--out $OUT --commit {commit}" + (f" --data {LOAD / CIFAR10}" if loads else "")
    remote.append(f"PYTHONPATH=src:{LOAD / 'site'} python3 -u -m tools.gpu run {piece.name} {options}")
    return "\n".join(
        [
            "here (`git sparse-checkout disable` brings the other files back):",
            *(f"    {line}" for line in here),
            f"on the machine, with a limit of 600 seconds and {' '.join(map(str, carried))} carried:",
            f"    {'; '.join(remote)}",
            f"then copy what came back from $OUT to {out}, folders in place of those of the same name",
        ]
    )


def show(out: Path) -> None:
    piece = following(out)
    print(table(out))
    print(f"\nnext: {piece.name}\n{commands(piece, out)}" if piece else "\nnothing is left to run")


def run(piece: Piece, options: argparse.Namespace) -> bool:
    """One call of a piece. Returns whether the piece is done."""
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
    packing, judging, running = (verbs.add_parser(verb) for verb in ("pack", "judges", "run"))
    for verb in (packing, judging):
        verb.add_argument("folder", type=Path)
        verb.add_argument("file", type=Path)
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
    elif options.verb == "judges":
        judges.prepare(str(options.folder), options.file)
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
