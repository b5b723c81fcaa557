"""`dualrate export`: a run's averaged weights for release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualrate.cli.console import reporter


@dataclass(frozen=True)
class Export:
    """Write a run's averaged weights for release: bfloat16 safetensors, its experiment and a model card."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run."""
    out: Path
    """Directory for the weights."""

    def run(self) -> None:
        from dualrate.runs.release import export
        from dualrate.runs.store import COVARIANCE

        progress, tables = reporter(), [place for place in (self.run_dir, self.out) if (place / COVARIANCE).exists()]
        export(self.run_dir, self.out, progress.note)
        print(self.out)
        if tables:
            progress.note(
                f"{tables[0] / COVARIANCE} was of other weights: measure that of these by dualrate calibrate {self.out}"
            )
