"""`dualrate cost`: what a call and an image of a run cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from dualrate.cli.console import loaded, print_report
from dualrate.cli.recipe import AsJson, Compile, Device, Graphs, RunDir
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import BatchSize, Ranged


@dataclass(frozen=True)
class Cost(Ranged):
    """Parameters, MACs and FLOPs of a heavy call, a light call and an image of a run, with measured latency."""

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    batch_size: BatchSize = 1
    """Rows per call when latency is measured."""
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.drawing.measure import cost_report

        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        found = cost_report(self.sampling.drawer(model, progress.note, batch_size=self.batch_size))
        if not self.json and not found["macs_heavy_call"]:  # one kind of call: no lines of zeros, and none said twice
            found = {k: v for k, v in found.items() if not ("_heavy_call" in k or "_alone" in k)}
        print_report(self.json, found)
