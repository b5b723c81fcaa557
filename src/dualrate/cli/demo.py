"""`dualrate demo`: dual-rate diffusion at work in minutes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dualrate.cli.console import command_line, reporter
from dualrate.config.ranges import Images, Minutes, Ranged

PLANS = (  # each network's main plan first, which are measured before all others: dual-rate, single ones of its cost
    ("dual-rate", "fashion-mnist-dual-45", "16/4"),
    ("small", "fashion-mnist-medium-25", "16"),
    ("medium", "fashion-mnist-medium-45", "9"),
    ("dual-rate", "fashion-mnist-dual-45", "8/2"),
    ("small", "fashion-mnist-medium-25", "8"),
    ("dual-rate", "fashion-mnist-dual-45", "32/8"),
    ("heavy", "fashion-mnist-heavy-annealed", "8"),
    ("light", "fashion-mnist-light", "11"),
)
TRAINED_HERE = "32/8"  # plan of the small model
MEASURING = 4  # minutes at most: a slow or busy machine measures fewer plans, and the same command continues


@dataclass(frozen=True)
class Demo(Ranged):
    """Dual-rate diffusion at work: train a small model for two minutes, then measure it and the released ones."""

    out: Path = Path("demo")
    """Directory for the page, report.html, and the small model's run. The same command continues there."""
    weights: Path = Path("weights")
    """Directory of the released weights; those that are missing are left out."""
    minutes: Minutes = 2
    """Minutes of training."""
    count: Images = 1000
    """Images per plan."""

    def run(self) -> None:
        from dualrate.comparison.compare import compare
        from dualrate.comparison.results import headline
        from dualrate.drawing.evaluators import messages
        from dualrate.recipes import fashion_mnist
        from dualrate.runs.store import EXPERIMENT
        from dualrate.runs.train import train

        progress, run, page = reporter(), self.out / "run", self.out / "report.html"
        progress.note(f"training a small dual-rate model for {self.minutes:g} minutes in {run}")
        with closing(progress):
            trained = train(
                fashion_mnist.small(60 * self.minutes), run, progress=progress, decoding=messages(progress.note)
            )
        if trained.stopped == "signal":
            raise KeyboardInterrupt(f"training interrupted and saved in {run}; the same command continues it")
        present = {name for _, name, _ in PLANS if (self.weights / name / EXPERIMENT).is_file()}
        if missing := sorted({name for _, name, _ in PLANS} - present):
            progress.note(f"weights not found, so not measured: {', '.join(missing)}")
        requests = [f"{name}={self.weights / model}:{plan}" for name, model, plan in PLANS if model in present]
        requests.append(f"trained here={run}:{TRAINED_HERE}")
        comparison = compare(
            requests, page, minutes=MEASURING, screen=self.count, count=self.count, progress=progress,
            command=command_line(),
        )  # fmt: skip
        print(headline(comparison), page, sep="\n\n")
