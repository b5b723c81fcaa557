"""`dualrate demo`: dual-rate diffusion at work in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualrate.cli.console import reporter
from dualrate.config.ranges import Images, Minutes, Ranged


@dataclass(frozen=True)
class Demo(Ranged):
    """Dual-rate diffusion at work: train a small model for two minutes, then measure the released ones in four."""

    out: Path = Path("demo")
    """Directory for the page, and the small model's run."""
    weights: Path = Path("weights")
    """Directory of the released weights; those that are missing are left out."""
    minutes: Minutes = 2
    """Of training."""
    measuring: Minutes = 4
    """Minutes at most; a slow or busy machine then has fewer plans, of fewer images. Run again, it goes on."""
    count: Images = 1000
    """Images per plan."""

    def run(self) -> None:
        from dualrate.demo.demo import demo

        progress = reporter()
        page = demo(
            self.out,
            self.weights,
            minutes=self.minutes,
            measuring=self.measuring,
            count=self.count,
            progress=progress,
        )
        print(page)
