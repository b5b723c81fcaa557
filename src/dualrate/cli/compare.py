"""`dualrate compare`: quality against compute of any models, samplers and plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dualrate.comparison.yardstick import Terms
from dualrate.config.ranges import Ranged
from dualrate.options.console import Machine, command_line, reporter
from dualrate.options.parsing import Nproc, Prompt, SharedWork
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
    out: Path = Path("report.html")
    """The page. Beside it are a .json file and the state that the same command needs to continue."""
    terms: Annotated[Terms, arg(name="")] = Terms()
    prompt: Prompt = None
    nproc: Nproc = 1
    machine: Annotated[Machine, arg(name="")] = Machine()

    def run(self) -> None:
        from dualrate.comparison.compare import compare

        device, progress = pick_device(self.machine.device), reporter()
        options: dict[str, Any] = vars(self.terms) | self.machine.calls(device, progress)
        how: dict[str, Any] = {"prompt": self.prompt, "device": device, "progress": progress}
        print(compare(self.requests, self.out, **options, **how, command=command_line()))
        print(f"\n{self.out}")
