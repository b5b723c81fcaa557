"""CIFAR-10 in pieces of at most ten minutes of one modern GPU each: `make reproduce-cifar10 DATA=... PIECE=...`.

    heavy light dual dual-kept    train a model, full-size ones for nine minutes a call; the same call goes on
    report                        compare them: runs/cifar10-full-report.html and docs/results.md

`dual` and `dual-kept` start from `heavy` and `light`, so these come first. dual-kept: the context is never dropped in
training. DATA is your own copy of CIFAR-10: a folder of images, or of parquet files as the Hub has them. SIZE=reduced
takes networks for one CPU core, an hour and a half for all of them. Training is one `dualrate` command, printed before
it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from train import ROOT, become

from dualrate.training.checkpoint import STATE, saved_paths

MODELS = ("heavy", "light", "dual", "dual-kept")
CALL = 540  # seconds of training a call, of full size


def command(piece: str, size: str, data: str) -> list[str]:
    """The `dualrate` arguments that train a model."""
    runs = {name: f"runs/cifar10-{size}-{name}" for name in MODELS}
    recipe = f"cifar10-{'' if size == 'full' else 'reduced-'}{piece.removesuffix('-kept')}"
    arguments = ["train", recipe, "--data.source", data, "--out", runs[piece]]
    if piece.startswith("dual"):
        arguments += ["--method.encoder-from", runs["heavy"], "--method.light-from", runs["light"]]
        arguments += ["--fit.iterations", "1000"] if size == "reduced" else []
    if size == "full":  # the trainer's limit is on the sum over calls
        arguments += ["--fit.max-seconds", f"{CALL + trained(ROOT / runs[piece]):g}"]
    return arguments + (["--method.times.dropout", "0"] if piece == "dual-kept" else [])


def trained(run: Path) -> float:
    """Seconds of training behind the newest checkpoint of a run; 0 where there is none."""
    saved = saved_paths(run / "checkpoints")
    return json.loads((saved[-1] / STATE).read_text())["seconds"] if saved else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("piece", choices=(*MODELS, "report"))
    parser.add_argument("--data", default="", help="your copy of CIFAR-10, for training")
    parser.add_argument("--size", choices=("full", "reduced"), default="full")
    options = parser.parse_args()
    if options.piece == "report":
        os.execv(sys.executable, [sys.executable, str(ROOT / "studies" / "report.py"), f"cifar10-{options.size}"])
    if not options.data:
        parser.error("say where your copy of CIFAR-10 is: --data PATH, or make ... DATA=PATH")
    become(command(options.piece, options.size, str(Path(options.data).resolve())))


if __name__ == "__main__":
    main()
