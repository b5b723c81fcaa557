"""Trains one of the models of docs/results/settled.md: `make reproduce-train MODEL=<name>`; the same command resumes.

Every run is one `dualrate train` command, printed before it starts; it writes runs/<name>.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from studies.common import ROOT

ALIKE = ("heavy", "medium-45", "medium-25", "light", "light-10", "dual-45", "dual-25")  # in equal time
RUNS = {f"settle-{name}": f"fashion-mnist-{name}" for name in ALIKE}
RUNS |= {f"{name}-seed{seed}": f"{RUNS[name]} --fit.seed {seed}" for name in tuple(RUNS) for seed in (1, 2)}


def command(name: str) -> list[str]:
    """The `dualrate` arguments that train a run."""
    return ["train", *shlex.split(RUNS[name]), "--out", f"runs/{name}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=RUNS)
    arguments = command(parser.parse_args().name)
    print("dualrate", shlex.join(arguments), flush=True)
    os.chdir(ROOT)
    program = Path(sys.executable).with_name("dualrate")
    os.execv(program, [str(program), *arguments])


if __name__ == "__main__":
    main()
