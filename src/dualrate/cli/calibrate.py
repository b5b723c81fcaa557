"""`dualrate calibrate`: what a model does not know, by frequency band, measured once for covariance-aware samplers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from dualrate.cli.console import loaded
from dualrate.cli.recipe import AsJson, Device, RunDir, Workers
from dualrate.config.ranges import Range, Ranged, Rings


@dataclass(frozen=True)
class Calibrate(Ranged):
    """Measure a run's covariance table (for --sampler covariance-table and -jvp), and how far derivatives agree."""

    run_dir: RunDir
    images: Annotated[int, Range(2, 10_000_000)] = 128
    """Training images."""
    rings: Rings = 12
    """Bands of a channel, from the mean to the finest detail."""
    workers: Workers = 1
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.drawing.calibration import calibrate
        from dualrate.runs.store import COVARIANCE
        from dualrate.sampling.covariance import TRUSTED
        from dualrate.system.workers import mapper

        model, progress = loaded(self.run_dir, self.device)
        with mapper(self.workers, model.device, progress.note) as over:
            table = calibrate(model, images=self.images, rings=self.rings, progress=progress, mapper=over)
        trust = table.trust()
        if self.json:
            rows = [{"age": age, "ratio": ratio, "trusted": trusted} for age, ratio, trusted in trust]
            print(json.dumps({"ages": rows, "below": table.below, "above": table.above}))
            return
        print(
            "Covariance by the derivative over that of the table, by age of the context in log-SNR (0: a heavy call);"
        )
        print(f"bands and times whose ratio lies outside [{TRUSTED[0]}, {TRUSTED[1]}] use the table.\n")
        print(f"{'age':>5}  {'median ratio':>12}  {'trusted':>7}")
        for age, ratio, trusted in trust:
            print(f"{age:>5}  {ratio:12.2f}  {trusted:7.0%}")
        print(f"\nOf single estimates there {table.below:.1%} lie below 0 and {table.above:.1%} above the data's own")
        print(f"variance: these are clamped, as they are in sampling. The table is in {self.run_dir / COVARIANCE}.")
