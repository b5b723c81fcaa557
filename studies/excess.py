"""Does the excess of a light network tell where two rates pay? A test whose predictions stand before any pair trains.

    python -m studies.excess OUT singles    trains light and large of each setting; docs/results/excess.json
    python -m studies.excess OUT predict    adds predictions to it: commit the file
    python -m studies.excess OUT pairs      trains the pairs, and adds what came
    python -m studies.excess OUT page       the table of docs/results/where.md, of the file alone

OUT/fields.npz is of `python -m studies.contest OUT simulate`: the Kuramoto-Sivashinsky equation. A setting is what is
observed of the past and how far ahead the frames are. All else is equal: networks, 250 seconds of a core (see
studies/contest.py), batches of 16, a rate of 2e-3. The last setting is another system, from OUT/garments/fields.npz,
of `simulate OUT/garments --system moving-fashion-mnist`.

A prediction is of the compute of the cheapest single network by diffusion at the score of the pair in 4 steps, over the
pair's, one member each: below 1 where the excess at high noise is under 3%, above 2 where it is over 13%, and in the
order of these excesses. It is refuted if Kendall's tau of the order is 0 or less, or if a ratio is on the other side
with an interval that leaves 1 out. Never is the largest ratio; of two, the one with the higher lower end.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import dualrate as dr
from studies import forecasts
from studies.common import RESULTS, kept_in, markdown, on_one_thread, place, save
from studies.contest import Contest, Network, Setting
from studies.equal_score import Ratio, at_equal_score, resampled
from studies.systems import SYSTEMS, System, crps
from studies.where import HIGH, excess, losses

EQUATION = "kuramoto-sivashinsky"
FILE = RESULTS / "excess.json"
KNOBS = {  # points between observed ones, the noise on them, and steps of the data from frame to frame
    "every point, noise 0.02, lead 1": (1, 0.02, 1),
    "every second point, lead 4": (2, 0.1, 4),
    "every eighth point, lead 4": (8, 0.1, 4),
    "every fourth point, lead 12": (4, 0.1, 12),
}
GARMENTS = "moving garments"
SECONDS, SEEDS, COUNT, STEPS = 250, (0, 1), 512, 4  # COUNT: held-out windows of a loss
FEW, MANY = 0.03, 0.13  # excesses: below the first the ratio is to be below 1, above the second above 2
SINGLES: dict[str, Network] = {"light": "light", "large": "single"}
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Knob(Contest):
    """The contest at one setting. At those of the equation an update takes as long as in its contest."""

    @property
    def system(self) -> System:
        if self.name == GARMENTS:
            return SYSTEMS["moving-fashion-mnist"]
        every, noise, lead = KNOBS[self.name]
        system = SYSTEMS[EQUATION]
        return replace(system, windows=replace(system.windows, every=every, noise=noise, lead=lead))

    def speed(self, network: Network, method: str, batch: int) -> float:
        if self.name == GARMENTS:
            return super().speed(network, method, batch)
        which = {"kind": "speed", "network": network, "method": method, "batch": batch}
        rows = kept_in(RESULTS / f"contest-{EQUATION}.json.xz")
        return next(row["ms"] for row in rows if which.items() <= row.items())

    def trainings(self, network: Network) -> list[dr.Model]:
        """Trains and scores those that are missing."""
        for seed in SEEDS:
            self.train("final", network, "diffusion", Setting(), SECONDS, seed)
        rows = self.rows_with(network=network, steps=STEPS)
        return [dr.load(str(self.folder(row))) for row in rows]

    def ratio(self) -> Ratio:
        rows = self.rows_with(kind="final")
        scores = resampled(rows, forecasts.plan_of, crps)
        cost = {forecasts.plan_of(row): row["macs"]["1"] for row in rows}
        return at_equal_score(scores, cost, ("dual", "diffusion", STEPS), [key for key in scores if key[0] != "dual"])


def knobs(out: Path) -> list[Knob]:
    """The contests, each in a folder; those of the equation with a link to the same trajectories."""
    garments = [Knob(GARMENTS, folder)] if (folder := out / "garments").is_dir() else []
    contests = [Knob(name, out / str(number)) for number, name in enumerate(KNOBS)]
    for contest in contests:
        contest.out.mkdir(parents=True, exist_ok=True)
        link = contest.out / "fields.npz"
        if not link.exists():
            link.symlink_to((out / "fields.npz").resolve())
    return contests + garments


def prediction(high: float) -> str:
    """Which side of 1 the ratio is on, from the excess at high noise."""
    return "below 1" if high < FEW else "above 2" if high > MANY else "no side"


def high(setting: Mapping[str, Any]) -> float:
    """Excess at the noisiest third of levels."""
    return excess(setting["losses"], HIGH)


def rank(ratio: Sequence[float | None]) -> tuple[float, float]:
    """Return what orders ratios: the value, None being never, then the lower end."""
    value, low = (math.inf if end is None else end for end in ratio[:2])
    return value, low


def kendall(settings: Settings) -> float:
    """Compare the order of excesses with that of ratios: pairs of settings in one order less the others, a pair."""
    pairs = list(combinations(settings.values(), 2))
    signs = [np.sign(high(a) - high(b)) * compare(rank(a["ratio"]), rank(b["ratio"])) for a, b in pairs]
    return float(sum(signs)) / len(pairs)


def compare(a: tuple[float, float], b: tuple[float, float]) -> int:
    return (a > b) - (a < b)


def wrong(setting: Mapping[str, Any]) -> bool:
    """Whether a ratio is on the other side than predicted, beyond its interval."""
    _, low, end = (math.inf if value is None else value for value in setting["ratio"])
    return {"below 1": low > 1, "above 2": end < 1}.get(setting["prediction"], False)


def refuted(settings: Settings) -> bool:
    return kendall(settings) <= 0 or any(map(wrong, settings.values()))


def table(settings: Settings) -> str:
    header = "setting", "excess at high noise", "predicted", "ratio of multiply-adds, one sample"
    lines = [
        [name, f"{100 * high(values):+.1f}%", values["prediction"], words(values.get("ratio"))]
        for name, values in sorted(settings.items(), key=lambda item: high(item[1]))
    ]
    return markdown(header, lines, texts=3)


def words(ratio: Sequence[float | None] | None) -> str:
    if not ratio:
        return "not yet known"
    value, low, end = (math.inf if end is None else end for end in ratio)
    return str(Ratio(value, low, end))


def page() -> None:
    """Puts the table of the file on the page."""
    place("excess", table(json.loads(FILE.read_text())), RESULTS / "where.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("verb", choices=("singles", "predict", "pairs", "page"))
    options = parser.parse_args()
    on_one_thread()
    settings: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for contest in knobs(options.out) if options.verb in ("singles", "pairs") else ():
        values = settings.setdefault(contest.name, {})
        if options.verb == "singles":
            each = {
                name: [losses(model, COUNT) for model in contest.trainings(network)]
                for name, network in SINGLES.items()
            }
            values["losses"] = {name: np.mean(rows, 0).round(6).tolist() for name, rows in each.items()}
            values["by seed"] = [
                round(excess({name: rows[i] for name, rows in each.items()}, HIGH), 4) for i in range(len(SEEDS))
            ]
        else:
            contest.trainings("dual")
            values["ratio"] = [round(end, 4) if math.isfinite(end) else None for end in contest.ratio()[:3]]
        print(contest.name, values, flush=True)
    if options.verb == "predict":
        for values in settings.values():
            values.setdefault("prediction", prediction(high(values)))
    if options.verb != "page":
        save(FILE, json.dumps(settings, indent=1) + "\n")
    if options.verb != "singles":
        page()
    if all("ratio" in values for values in settings.values()):
        together = {name: settings[name] for name in KNOBS}  # predicted in one commit
        for some in (together, settings):
            print(f"{len(some)} settings: tau {kendall(some):.2f}, refuted: {refuted(some)}")


if __name__ == "__main__":
    main()
