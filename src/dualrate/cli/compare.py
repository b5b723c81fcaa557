"""`dualrate compare`: quality against compute of any models, samplers and plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualrate.cli.console import command_line, reporter, working
from dualrate.cli.recipe import Compile, Device, Graphs, Nproc, Prompt, SharedWork, Workers
from dualrate.config.ranges import GuidanceWeight, Images, Members, Minutes, Precision, Ranged
from dualrate.system.device import pick_device

REQUEST = "[NAME=]RUN[+DENOISER][:PLAN][@SAMPLER[:GAMMA]]"


@dataclass(frozen=True)
class Compare(Ranged, SharedWork):
    """Compare models, samplers and plans: quality against FLOPs and time, on one page. Continues if run again.

    Forecasts of fields are compared by the fair CRPS of one window from 50 held-out starts.
    """

    requests: Annotated[Positional[tuple[str, ...]], arg(metavar=REQUEST)]
    """RUN alone: its usual plans. RUN:32/8: 32 steps, 8 heavy calls, as `dualrate sample RUN --steps 32 --heavy 8`
    draws. RUN:plan.json; RUN:32@ddim; RUN:32/8@sde-dpm++2m:0.2; RUN+taylor:32/16; RUN+LIGHT:32/20, where another run's
    network makes the first 12 of 32 steps."""
    minutes: Minutes = 60
    """Minutes of measuring. Run the same command again to do the rest."""
    out: Path = Path("report.html")
    """The page. Beside it are a .json file and the state that the same command needs to continue."""
    screen: Images | None = None
    """Images per plan in the first round, which compares the usual plans. Default: 1000, or --count if that is less."""
    count: Images | None = None
    """Images per plan, for the best plans (Pareto front). Default: 5000; for forecasts 50 starts."""
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
    nproc: Nproc = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None

    def run(self) -> None:
        from dualrate.comparison.compare import compare

        device, progress = pick_device(self.device), reporter()
        options = {name: value for name, value in vars(self).items() if name not in ("compile", "device", "nproc")}
        options |= working(device, progress, compiled=self.compile, graphs=self.graphs)
        print(compare(**options, device=device, progress=progress, command=command_line()))
        print(f"\n{self.out}")
