"""Students of few steps beside their teacher: FD-fashion-mnist against multiply-adds and seconds.

    make reproduce-train MODEL=student-full                     trains one, of those in NAMED below
    OMP_NUM_THREADS=1 .venv/bin/python scripts/students.py      measures those in weights/ and runs/; may be resumed

Beside them the teacher with 4 and 8 steps of its best sampler, and the undistilled dual-rate model with 8 steps and 4
heavy calls of its best. Features are kept in runs/students; rows go to docs/results/students.json, from which
scripts/results.py makes the table, and images of the same noise to docs/results/students.png.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, ROOT, save

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.compare.contenders import Contender
from dualrate.compare.speed import saturating_batch, speed
from dualrate.compare.work import Bench
from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.machine.environment import environment
from dualrate.machine.malloc import keep_freed_memory
from dualrate.measuring.evaluator import evaluator
from dualrate.measuring.measure import draw
from dualrate.report.grid import save_grid
from dualrate.report.rows import Row
from dualrate.report.table import interval, significant
from dualrate.sampling.grids import grid_times

OUT, FEATURES = RESULTS / "students.json", ROOT / "runs" / "students"
HEAVY, DUAL = ROOT / "weights" / "fashion-mnist-heavy", ROOT / "weights" / "fashion-mnist-dual"
NAMED = {
    "student-plain-4": "plain student of 4 steps",
    "student-plain-8": "plain student of 8 steps",
    "student-teacher-4-4": "student, algorithm B, a heavy call a step, from the teacher",
    "student-full-4-4": "student, algorithm B, a heavy call a step",
    "student-segment": "dual-rate student, algorithm A",
    "student-segment-seed1": "dual-rate student, algorithm A, seed 1",
    "student-full": "dual-rate student, algorithm B",
    "student-full-seed1": "dual-rate student, algorithm B, seed 1",
}
COUNT = 5000
SHOWN = 20


def directory(name: str) -> Path | None:
    """Of a student, if it is here."""
    found = [ROOT / "weights" / f"fashion-mnist-{name}", ROOT / "runs" / name]
    return next((path for path in found if (path / "experiment.json").exists()), None)


def cells() -> Iterator[Contender]:
    schedule = dr.load(HEAVY).process.schedule
    for steps in (4, 8):
        plan = StepPlan.spread(grid_times("log-snr" if steps > 4 else "t", schedule, steps))
        yield Contender(HEAVY, "teacher", "sde-dpm++2m", plan, 0.2)
    yield Contender(DUAL, "dual-rate, not distilled", "sde-dpm++2m", StepPlan.uniform(8, 4), 0.2)
    for name, called in NAMED.items():
        path = directory(name)
        if path is None:
            continue
        serves = dr.load(path).serves
        for steps in (4, 8) if name == "student-plain-4" else (serves.default_steps,):
            yield Contender(path, called, "ancestral", serves.default_plan(steps))


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    progress, device, found = reporter(), torch.device("cpu"), list(cells())
    models = {path: dr.load(path) for path in {cell.run for cell in found}}
    judge = evaluator(models[HEAVY].experiment.data, features=None, progress=progress)
    bench = Bench(models, judge, FEATURES, device, progress)
    bench.estimate(found)
    records, grids = [], []
    for one in bench.measure(found, range(COUNT), 24 * 3600.0, details=False):
        model, cost = bench.model(one.contender), bench.costs[one.contender.key]
        timed = speed(one.contender, model, saturating_batch(model, cost, device=device), cost, device=device)
        row = replace(one.row, seconds_per_image=timed.batched, batch_size=timed.batch)
        records.append({"weights": model.weights_hash, "row": to_plain(row)})
        step, plan = one.contender.step(model), one.contender.plan
        grids.append(draw(model, step, plan, range(SHOWN), device=device, cost=cost).images)
    save_grid(np.concatenate(grids), OUT.with_suffix(".png"), columns=SHOWN, scale=2)
    save(OUT, json.dumps({"environment": environment(), "measured": records}) + "\n")
    print(table())


def table(file: Path = OUT) -> str:
    """Markdown of what was measured."""
    if not file.exists():
        return "Not measured yet.\n"
    lines = [
        "| model | sampler | N | heavy calls | GMACs | ms/image | FD-fashion-mnist |",
        f"|---|---|{'---:|' * 5}",
        *map(_line, json.loads(file.read_text())["measured"]),
    ]
    return "\n".join(lines) + "\n"


def _line(record: dict[str, Any]) -> str:
    row = from_plain(Row, record["row"])
    numbers = f"{row.num_steps} | {row.num_heavy} | {row.macs / 1e9:.3g} | {1000 * row.seconds_per_image:.3g}"
    return f"| {row.network} | {row.sampler} | {numbers} | {significant(row.score.value)} {interval(row)} |"


if __name__ == "__main__":
    main()
