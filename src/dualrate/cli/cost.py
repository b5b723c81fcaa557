"""`dualrate cost`: what a call and an image cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualrate.cli.console import print_report, reporter
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import BatchSize, Ranged
from dualrate.machine.device import pick_device


@dataclass(frozen=True)
class Cost(Ranged):
    """Parameters, MACs and FLOPs of a heavy call, a light call and an image, with measured latency."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run, or of released weights."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    batch_size: BatchSize = 1
    """Rows per call when latency is measured."""
    device: str | None = None
    """cpu, cuda, ...; cuda if there is one."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> None:
        from dualrate.measuring.measure import cost_report
        from dualrate.runs.store import load

        device, progress = pick_device(self.device), reporter()
        model = load(self.run_dir, device=device, note=progress.note)
        print_report(self.json, cost_report(self.sampling.drawer(model, batch_size=self.batch_size)))
