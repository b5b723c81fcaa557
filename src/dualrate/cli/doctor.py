"""`dualrate doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from dualrate.cli.recipe import AsJson, Device
from dualrate.system.device import pick_device


@dataclass(frozen=True)
class Doctor:
    """Check installation, device, disk, processes, and a run or a data set; say what to do. Exit code 1: a problem."""

    target: Annotated[
        Positional[str | None], arg(metavar="[RUN|DATA]", help="A run, released weights, or images as --data.source.")
    ] = None
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.cli.console import print_findings
        from dualrate.doctor.examine import checks, examine
        from dualrate.doctor.finding import Finding, problem

        unusable: list[Finding] = []
        try:
            device = pick_device(self.device)
        except ValueError as error:
            if self.device is not None:
                raise
            unusable, device = [problem(str(error), "see what nvidia-smi says of it")], torch.device("cpu")
        print_findings(self.json, chain(unusable, examine(checks(self.target, device))))
