"""`dualrate doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from dualrate.cli.options import AsJson, Device
from dualrate.machine.device import pick_device


@dataclass(frozen=True)
class Doctor:
    """Check installation, device, disk, processes, and a run or a data set; say what to do. Exit code 1: a problem."""

    target: Annotated[
        Positional[str | None], arg(metavar="[RUN|DATA]", help="A run, released weights, or images as --data.source.")
    ] = None
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.doctor.examine import checks, examine

        findings = []
        for finding in examine(checks(self.target, pick_device(self.device))):
            findings.append(finding)
            if not self.json:
                remedy = f" -> {finding.remedy}" if finding.remedy else ""
                print(f"{finding.level:7}  {finding.what}{remedy}", flush=True)
        problems = sum(finding.level == "problem" for finding in findings)
        if self.json:
            print(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}))
        if problems:
            raise SystemExit(1)
