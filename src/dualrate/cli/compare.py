"""`dualrate compare`: quality against compute of any models, samplers and plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dualrate.cli.console import command_line, reporter, working
from dualrate.cli.recipe import Compile, Device, Graphs, Prompt, Workers
from dualrate.config.ranges import GuidanceWeight, Images, Members, Minutes, Precision, Ranged
from dualrate.system.device import pick_device

REQUEST = "[NAME=]RUN[+DENOISER][:PLAN][@SAMPLER[:GAMMA]]"


@dataclass(frozen=True)
class Compare(Ranged):
    """Compare models, samplers and plans: quality against FLOPs and time, on one page. Continues if run again.

    Forecasts of fields are compared by the fair CRPS of one window from 50 held-out starts. A second run measures them
    anew.
    """

    requests: Annotated[Positional[tuple[str, ...]], arg(metavar=REQUEST)]
    """RUN alone: its usual plans. RUN:32/8: 32 steps, 8 heavy calls, as `dualrate sample RUN --steps 32 --heavy 8`
    draws. RUN:plan.json; RUN:32@ddim; RUN:32/8@sde-dpm++2m:0.2; RUN+taylor:32/16; RUN+LIGHT:32/20, where another run's
    network makes the first 12 of 32 steps."""
    minutes: Minutes = 60
    """Minutes of measuring. Run the same command again to do the rest."""
    out: Path = Path("report.html")
    """The page. Beside it are a .json file and the state that the same command needs to continue."""
    screen: Images = 1000
    """Images per plan in the first round, which compares the usual plans."""
    count: Images = 5000
    """Images per plan, for the best plans (Pareto front)."""
    features: str | None = None
    """Metrics, separated by commas: names of shipped feature networks, inception, dinov2, efficientnet, or directories.
    The first one screens and orders. Default: the data set's own."""
    baselines: bool = False
    """Also evaluate training-free baselines of the most expensive single network: caches (DeepCache, FORA, TaylorSeer,
    ToCa, DuCa), and each lighter network of this command for its first steps (RUN+LIGHT)."""
    prompt: Prompt = None
    guidance: GuidanceWeight = 1.0
    """Classifier-free guidance weight of all models that can be guided; students have their own."""
    members: Members = 1
    """Samples of each condition. They share a heavy call, and are scored together."""
    equal_classes: bool = False
    """Draw every class equally often, not by its share in the training images."""
    mixed: bool = False
    """Allow runs trained on other data than the first. All are then scored against the first run's images."""
    precision: Precision = "auto"
    """Precision of the networks; auto: bfloat16 where it pays. Compare rows only at one precision."""
    workers: Workers = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None

    def run(self) -> None:
        from dualrate.compare.comparison import Effort, compare
        from dualrate.compare.results import front_table, headline, ties_note
        from dualrate.forecasts.comparison import are_forecasts, compare_forecasts
        from dualrate.report.table import as_text

        if not self.requests:
            raise ValueError("nothing to compare: name runs, e.g. dualrate compare weights/fashion-mnist-*")
        device, progress = pick_device(self.device), reporter()
        how: dict[str, Any] = {**working(device, progress, compiled=self.compile, graphs=self.graphs)}
        how |= {"members": self.members, "precision": self.precision, "device": device, "progress": progress}
        how |= {"command": command_line()}
        if are_forecasts(self.requests):
            options = ("features", "baselines", "equal_classes", "mixed", "prompt")
            if refused := [f"--{name.replace('_', '-')}" for name in options if getattr(self, name)]:
                raise ValueError(f"forecasts of fields have other scores: drop {', '.join(refused)}")
            lines, unfinished = compare_forecasts(self.requests, self.out, minutes=self.minutes, **how)
            print(as_text(lines), "\n", *unfinished)
            print(self.out)
            return
        findings = compare(
            self.requests,
            self.out,
            Effort(self.minutes, self.screen, self.count),
            features=self.features,
            mixed=self.mixed,
            baselines=self.baselines,
            prompt=self.prompt,
            guidance=self.guidance,
            equal_classes=self.equal_classes,
            workers=self.workers,
            **how,
        )
        if findings.finished:
            print(as_text(front_table(findings.finished)), "\n")
            for sentence in filter(None, (headline(findings), ties_note(findings.ties))):
                print(f"{sentence}\n")
        for sentence in findings.unfinished:
            print(f"{sentence} The same command continues.")
        print(self.out)
