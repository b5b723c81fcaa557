"""`dualrate cost`: what a call and an image cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from dualrate.cli.console import loaded, print_report
from dualrate.cli.options import AsJson, Device, RunDir
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import BatchSize, Ranged


@dataclass(frozen=True)
class Cost(Ranged):
    """Parameters, MACs and FLOPs of a heavy call, a light call and an image, with measured latency."""

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    batch_size: BatchSize = 1
    """Rows per call when latency is measured."""
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.measuring.measure import cost_report

        model, _ = loaded(self.run_dir, self.device)
        print_report(self.json, cost_report(self.sampling.drawer(model, batch_size=self.batch_size)))
