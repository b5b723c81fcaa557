"""`dualrate serve`: a page to play with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dualrate.config.ranges import Range, Ranged
from dualrate.options.console import Machine
from dualrate.options.parsing import Device, RunDir

Port = Annotated[int, Range(0, 65_535)]


@dataclass(frozen=True)
class Serve(Ranged):
    """Serve a page to play with steps, heavy calls, sampler and seeds.

    The page shows the images next to those of the same model with a heavy call at every step.
    """

    run_dir: RunDir
    beside: Annotated[Path | None, arg(metavar="RUN")] = None
    """Run to compare with: its images of the same seeds are shown beside. Default: the same run with a heavy call at
    every step."""
    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can open the page; 0.0.0.0 opens it to the network."""
    port: Port = 8000
    """Port to listen on; 0 for any that is free."""
    max_seconds: Annotated[float, Range(0, 1_000_000, above=True)] = 300
    """Seconds that a request may be drawn, after which it is refused with status 504."""
    device: Device = None

    def run(self) -> None:
        from dualrate.serving.offer import Limits, Offer

        machine = Machine(device=self.device)
        model, progress = machine.loaded(self.run_dir)
        baseline = None if self.beside is None else machine.loaded(self.beside)[0]
        offer = Offer(model, baseline, Limits(seconds=self.max_seconds))
        try:
            from dualrate.serving.app import serve
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] not in ("starlette", "uvicorn"):
                raise
            raise ValueError(f"the page needs {error.name}: pip install 'dualrate[serve]'") from error
        serve(offer, self.host, self.port, progress.note)
