"""Students of few steps beside their teacher: FD-fashion-mnist against multiply-adds and seconds.

    make reproduce-train MODEL=student-full                     trains one, of those in NAMED below
    OMP_NUM_THREADS=1 .venv/bin/python studies/students.py      measures those in weights/ and runs/; may be resumed

Beside them the teacher with 4 and 8 steps of its best sampler, and the undistilled dual-rate model with 8 steps and 4
heavy calls of its best. Features are kept in runs/students; rows go to docs/results/students.json, from which
studies/results.py makes the table, and images of the same noise to docs/results/students.png.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import COUNT, RESULTS, RUNS, load
from released import WEIGHTS

from dualrate.compare.contender import Contender
from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.report.image_grid import save_grid
from dualrate.report.rows import Row
from dualrate.report.table import scored
from dualrate.sampling.grids import grid_times

OUT, FEATURES = RESULTS / "students.json", RUNS / "students"
HEAVY, DUAL = WEIGHTS / "fashion-mnist-heavy", WEIGHTS / "fashion-mnist-dual"
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


def directory(name: str) -> Path | None:
    """Of a student, if it is here."""
    found = [WEIGHTS / f"fashion-mnist-{name}", RUNS / name]
    return next((path for path in found if (path / "experiment.json").exists()), None)


def cells() -> Iterator[Contender]:
    schedule = load(HEAVY).process.schedule
    for steps in (4, 8):
        plan = StepPlan.spread(grid_times("log-snr" if steps > 4 else "t", schedule, steps))
        yield Contender(HEAVY, "teacher", "sde-dpm++2m", plan, 0.2)
    yield Contender(DUAL, "dual-rate, not distilled", "sde-dpm++2m", StepPlan.uniform(8, 4), 0.2)
    for name, called in NAMED.items():
        path = directory(name)
        if path is None:
            continue
        serves = load(path).serves
        for steps in (4, 8) if name == "student-plain-4" else (serves.default_steps,):
            yield Contender(path, called, "ancestral", serves.default_plan(steps))


def main() -> None:
    parser = common.command(__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="images of a score")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    common.on_one_thread()
    found = list(cells())
    bench, records, grids = common.bench_of(found, FEATURES), [], []
    for one in bench.measure(found, range(options.count), common.DAY, details=False):
        drawer = bench.drawer(one.contender)
        records.append({"weights": drawer.model.weights_hash, "row": to_plain(common.timed(one, bench))})
        grids.append(drawer.draw(range(common.SHOWN)).images)
    names = {record["row"]["network"] for record in records}
    kept = json.loads(options.out.read_text())["measured"] if options.out.exists() else []
    records += [record for record in kept if record["row"]["network"] not in names]  # of students that are not here
    save_grid(np.concatenate(grids), options.out.with_suffix(".png"), columns=common.SHOWN, scale=2)
    common.keep(options.out, measured=records)
    print(table(options.out))


def table(file: Path = OUT) -> str:
    """Markdown of what was measured."""
    if not file.exists():
        return common.NOT_MEASURED
    header = ("model", "sampler", "N", "heavy calls", "GMACs", "ms/image", "FD-fashion-mnist")
    return common.markdown(header, map(_line, json.loads(file.read_text())["measured"]), texts=2)


def _line(record: dict[str, Any]) -> list[str]:
    row = from_plain(Row, record["row"])
    numbers = [str(row.num_steps), str(row.num_heavy), f"{row.macs / 1e9:.3g}", f"{1000 * row.seconds_per_image:.3g}"]
    return [row.network, row.sampler, *numbers, scored(row)]


if __name__ == "__main__":
    main()
