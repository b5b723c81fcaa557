"""The contest of forecasts: every network at its own best batch and rate, for equal time.

    python -m studies.contest OUT simulate      trajectories, OUT/fields.npz or .nc
    python -m studies.contest OUT speeds        milliseconds of an update, of every network and batch
    python -m studies.contest OUT search        batch, then rate, then neighbours: 100 seconds each, or --seconds
    python -m studies.contest OUT averages      shorter half-lives of averaged weights, at the best batch and rate
    python -m studies.contest OUT train --seconds 400 --seeds 0 1 2
    python -m studies.contest OUT rescore       scores of trainings that lack one
    python -m studies.contest OUT multilevel    the single networks together, by ML-EM
    python -m studies.contest OUT times         milliseconds of all plans
    python -m studies.contest OUT memory        memory of members of one start, beside the milliseconds
    python -m studies.contest OUT show          what is known so far

A verb that is stopped goes on where it was, but for times and memory, which begin anew. Speeds, search, averages and
train can be limited to some networks (--only dual:crps single:diffusion), the first two to some batches (--batches 16 8
32). Rows are kept in docs/results/contest-SYSTEM.json.xz, which serves where OUT has none.

Time is that of a quiet core of the machine that made `speeds`: the least milliseconds of an update in several rounds,
so that others on the machine take none of it. So many seconds are so many updates, and a training is exact to the bit.
The search scores starts between those that are scored in the end.

`frozen` is a pair whose encoder is the trained large network, and stays as it is. `levels-2` is a pair by diffusion in
two noise levels of each window. `broad` is a single network of half the multiply-adds of the large one. Rows whose kind
begins with `narrow` are of pairs on the sphere up to 84f473c3, whose light network had too few channels for a patch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

import dualrate as dr
from benchmarks.workloads import in_cpu_seconds, whole
from dualrate.cli.distill import Student
from dualrate.data.condition_rows import HeldOut
from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.recipe import Forecasting
from dualrate.methods.crps import OneCallConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes.auto import distilled
from dualrate.report.figures import pareto_front
from dualrate.sampling.trajectory import sample_batches
from dualrate.system.device import peak_memory
from dualrate.system.progress import Silent
from studies.common import RESULTS, Row, add_rows, keep, kept, markdown, on_one_thread, rows_of, write_rows
from studies.multilevel import Multilevel
from studies.systems import SYSTEMS, System, area_of, by_lead, by_start, scored, starts_of

BATCHES, RATES, HALFLIFE = (16, 8, 32, 64), (2e-3, 1e-3, 4e-3), 10_000
SECONDS, SEARCHED, STARTS = 400, 100.0, 128  # of a training; of one of the search, and its starts
BY_STEPS = "diffusion", "frozen", "levels-2", "levels-8"
STEPS = dict.fromkeys(BY_STEPS, (1, 2, 3, 4, 6, 8, 12, 16))  # scored in the end; of other methods their one plan
AVERAGED = 2, 4, 8  # times shorter than the longest half-life of averaged weights
FEWER = {"sphere": (2, 4, 8), "kuramoto-sivashinsky-leads": (2, 4, 8)}  # where scoring costs more
CHOSEN_BY = 8  # steps that the search scores
DRAWS = {"crps": 2, "crps-4": 4}  # of a start in the score that trains
UPDATES, ROUNDS = 5, 8  # of a measurement of speed
TIMED, ROUNDS_TIMED = 128, 5  # members drawn together for milliseconds, and how often
PROCESSES = 3  # of a measurement of memory
WHICH = "kind", "network", "method", "batch", "rate", "halflife", "seconds", "seed"  # of a training
LEVELS = ("medium", "single"), ("medium", "broad", "single")  # of ML-EM
SAMPLERS, CALLS, SHARES = ("ancestral", "sde-dpm++2m"), (8, 16, 32), (0.5, 0.25, 0.125)  # its cells

Network = Literal["dual", "single", "broad", "medium", "light"]
Method = Literal[
    "diffusion", "crps", "crps-4", "consistency-2", "consistency-1", "moments-2", "frozen", "levels-2", "levels-8"
]
NETWORKS: tuple[Network, ...] = get_args(Network)
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Setting:
    """How a network trains. halflife: of the averaged weights, in windows; at most a 20th of those seen."""

    batch: int = BATCHES[0]
    rate: float = RATES[0]
    halflife: int = HALFLIFE


@dataclass(frozen=True)
class Contest:
    """A system, where its trajectories are, and the time of updates that is known."""

    name: str
    out: Path

    @property
    def system(self) -> System:
        return SYSTEMS[self.name]

    @property
    def rows(self) -> list[Row]:
        return rows_of(self.out)

    def rows_with(self, **values: Any) -> list[Row]:
        """The rows that have these values."""
        return [row for row in self.rows if values.items() <= row.items()]

    def experiment(self, network: Network, method: str, setting: Setting, updates: int, seed: int) -> dr.Experiment:
        """Raises what `untimed` raises."""
        experiment = self.untimed(network, method, seed)
        optim = replace(experiment.fit.optim, lr=setting.rate, warmup=min(100, updates // 10), decay="cosine")
        fit = replace(
            experiment.fit, iterations=updates, max_seconds=None, batch_size=setting.batch, optim=optim, seed=seed,
            precision="float32", ema_halflife=setting.halflife, sample_every=10**8, checkpoint_every=2000,
        )  # fmt: skip
        return replace(experiment, name="contest", fit=fit)

    def untimed(self, network: Network, method: str, seed: int) -> dr.Experiment:
        """Networks and method. Raises ValueError for a student whose teacher is not trained."""
        if method not in STEPS and method not in DRAWS:
            return self.student(network, method, seed)
        trained_by = "crps" if method in DRAWS else "diffusion"
        experiment = self.sized(replace(self.system.windows, trained_by=trained_by), network)
        config = experiment.method
        if isinstance(config, OneCallConfig):
            config = replace(config, draws=DRAWS[method])
        elif method == "frozen":
            assert isinstance(config, DenoisingConfig)
            config = replace(config, encoder_from=str(self.teacher("single", seed)), freeze_encoder=True)
        elif method.startswith("levels-"):
            assert isinstance(config, DenoisingConfig)
            assert isinstance(config.times, GivenTimes)
            config = replace(config, times=replace(config.times, draws=int(method.removeprefix("levels-"))))
        return replace(experiment, method=config)

    def student(self, network: Network, method: str, seed: int) -> dr.Experiment:
        """A student of the network's teacher, in the steps of its name."""
        by, steps = method.split("-")
        by_name: Any = by
        return Student(distilled(), by=by_name, steps=int(steps)).of(self.teacher(network, seed))

    def teacher(self, network: Network, seed: int) -> Path:
        """The network's longest training by diffusion of SECONDS at most. Raises ValueError where there is none."""
        finals = self.rows_with(kind="final", network=network, method="diffusion", seed=seed)
        teachers = [row for row in finals if row["seconds"] <= SECONDS and self.folder(row).is_dir()]
        if not teachers:
            raise ValueError(f"there is no teacher: train {network}:diffusion, seed {seed}, first")
        return self.folder(max(teachers, key=lambda row: row["seconds"]))

    def sized(self, recipe: Forecasting, network: Network) -> dr.Experiment:
        """A recipe of the system's trajectories with such a network and the system's patches."""
        recipe = replace(recipe, rate="single" if network == "broad" else network)
        experiment = replace(recipe, data=DataConfig(str(self.system.source(self.out))))(Silent())
        patch: Callable[[UViTConfig], UViTConfig] = lambda config: replace(config, patch=self.system.patch)  # noqa: E731
        configs = {key: value for key, value in vars(experiment.networks).items() if isinstance(value, UViTConfig)}
        sized = {key: patch(broad(config) if network == "broad" else config) for key, config in configs.items()}
        networks: Any = replace(experiment.networks, **sized)  # pyright: ignore[reportArgumentType]
        return replace(experiment, networks=networks)

    def plans(self, method: str) -> tuple[int | None, ...]:
        """Steps that are scored in the end; None: those of the method."""
        return FEWER.get(self.name, STEPS[method]) if method in STEPS else (None,)

    def speed(self, network: Network, method: str, batch: int) -> float:
        """Milliseconds of an update, measured at most once. The least of `ROUNDS`, of UPDATES updates each."""
        which = {"kind": "speed", "network": network, "method": method, "batch": batch}
        if rows := self.rows_with(**which):
            return rows[0]["ms"]
        experiment = self.experiment(network, method, Setting(batch), UPDATES * (ROUNDS + 1), 0)
        experiment = replace(experiment, fit=replace(experiment.fit, log_every=UPDATES))
        folder = self.out / "speeds" / f"{network}-{method}-{batch}"
        begun = time.process_time()
        with in_cpu_seconds():
            whole(dr.train(experiment, folder))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
        milliseconds = 1000 * batch / max(rates[1:])
        print(f"{network} by {method}, batches of {batch}: {milliseconds:.1f} ms, {time.process_time() - begun:.0f} s")
        add_rows(self.out, [which | {"ms": round(milliseconds, 3)}])
        return milliseconds

    def train(self, kind: str, network: Network, method: Method, setting: Setting, seconds: float, seed: int) -> None:
        """Trains, scores and adds a row for each plan, unless they are there."""
        which = self.which(kind, network, method, setting, seconds, seed)
        if self.rows_with(**which):
            return
        trained = self.fit(which)
        model = dr.load(str(self.folder(which)))
        plans = (CHOSEN_BY,) if kind != "final" and method in STEPS else self.plans(method)
        between = 0 if kind == "final" else STARTS
        rows = [trained | scored(model, self.system, steps, between=between) for steps in plans]
        add_rows(self.out, rows)
        print(
            *(f"{network} by {method}, {setting}, seed {seed}, {row['steps']} steps: {mean(row):.4f}" for row in rows),
            sep="\n",
        )

    def which(self, kind: str, network: Network, method: str, setting: Setting, seconds: float, seed: int) -> Row:
        """Values that tell a training from all others."""
        row: Row = {"kind": kind, "network": network, "method": method, **vars(setting)}
        row |= {"seconds": seconds, "seed": seed}
        assert tuple(row) == WHICH
        return row

    def fit(self, which: Row) -> Row:
        """Trains, or goes on. Returns `which`, the updates and the CPU seconds of this call."""
        network, method, seconds = which["network"], which["method"], which["seconds"]
        setting = Setting(which["batch"], which["rate"], which["halflife"])
        updates = max(1, round(1000 * seconds / self.speed(network, method, setting.batch)))
        begun = time.process_time()
        whole(dr.train(self.experiment(network, method, setting, updates, which["seed"]), self.folder(which)))
        return which | {"updates": updates, "cpu_seconds": round(time.process_time() - begun, 1)}

    def rescore(self) -> None:
        """Scores the final trainings anew whose rows lack a score of today."""
        rows = self.rows
        for i, row in enumerate(rows):
            if row["kind"] == "final" and "energy" not in row and (folder := self.folder(row)).is_dir():
                rows[i] = row | scored(dr.load(str(folder)), self.system, row["steps"])
                print(row["network"], row["method"], row["seed"], row["steps"], f"{mean(rows[i]):.4f}", flush=True)
        write_rows(self.out, rows)

    def folder(self, row: Row) -> Path:
        """The run of a row."""
        return self.out / "-".join(str(row[name]) for name in WHICH)

    def multilevel(self, seconds: float, seed: int) -> None:
        """Adds rows of ML-EM by single networks: sampler, steps and probabilities by the search's starts, with seed 0;
        each cell that no cheaper one beats there scored as the trainings are, with any seed.
        """
        final = {"kind": "final", "method": "diffusion", "seconds": seconds, "seed": seed}
        for networks in LEVELS:
            rows = [row for network in networks for row in self.rows_with(network=network, **final)[:1]]
            if len(rows) < len(networks):
                continue
            models = [dr.load(str(self.folder(row))) for row in rows]
            which = {"kind": "levels", "network": " + ".join(networks), "method": "ML-EM", "seconds": seconds}
            if seed == 0:
                shares = list(product(SHARES, repeat=len(models) - 1))
                cells = [
                    {"sampler": sampler, "steps": steps, "probabilities": list(p)}
                    for sampler, steps, p in product(SAMPLERS, CALLS, shares)
                ]
                self.level_rows(models, which | {"seed": 0, "between": STARTS}, cells)
            searched = self.rows_with(**which, seed=0, between=STARTS)
            best = pareto_front(searched, lambda row: (row["macs"]["1"], mean(row)))
            cells = [{name: row[name] for name in ("sampler", "steps", "probabilities")} for row in best]
            self.level_rows(models, which | {"seed": seed, "between": 0}, cells)

    def level_rows(self, models: Sequence[dr.Model], which: Row, cells: Sequence[Row]) -> None:
        """Adds a row for each cell of ML-EM, unless it is there."""
        for cell in cells:
            if not self.rows_with(**which, **cell):
                row = which | cell | multilevel(models, self.system, cell, which["between"])
                add_rows(self.out, [row])
                print(which["network"], which["seed"], cell, f"{row['macs']['1']:.1f} M, {mean(row):.4f}", flush=True)

    def timed_runs(self) -> dict[tuple[Network, Method], Path]:
        """The run of each network and method; of one that is not here its stand-in, which is trained."""
        finals, stand_ins = self.rows_with(kind="final"), StandIns(self.name, self.out)
        folders = {(row["network"], row["method"]): self.folder(row) for row in finals}
        return {key: path if path.is_dir() else stand_ins.of(*key) for key, path in folders.items()}

    def times(self) -> None:
        """Milliseconds of a member, by plan and members of a start: medians over rounds in which all plans take turns.

        Memory that was measured before stays.
        """
        shared = self.system.shared
        models = {key: dr.load(str(folder)) for key, folder in self.timed_runs().items()}
        plans = [(key, steps) for key in models for steps in self.plans(key[1])]
        drawers = {
            (key, steps, count): dr.Choice(steps=steps).drawer(
                models[key], batch_size=TIMED, members=count, precision="float32"
            )
            for (key, steps), count in product(plans, shared)
        }
        seconds: dict[tuple[Any, ...], list[float]] = {way: [] for way in drawers}
        for _ in range(ROUNDS_TIMED):
            for way, drawer in drawers.items():
                begun = time.process_time()
                _ = list(drawer.states(list(range(starts := max(1, TIMED // way[2])))))
                seconds[way].append(1000 * (time.process_time() - begun) / (starts * way[2]))
        memory = {(row["network"], row["method"]): row["mib"] for row in self.rows_with(kind="time") if "mib" in row}
        rows = [row for row in self.rows if row["kind"] != "time"]
        for (network, method), steps in plans:
            ms = {str(count): round(float(np.median(seconds[(network, method), steps, count])), 4) for count in shared}
            row: Row = {"kind": "time", "network": network, "method": method, "ms": ms}
            row |= {"steps": drawers[(network, method), steps, shared[0]].plan.num_steps}
            rows.append(row | ({"mib": memory[network, method]} if (network, method) in memory else {}))
        write_rows(self.out, rows)

    def memory(self) -> None:
        """MiB that drawing so many members of one start takes, beside the milliseconds; steps do not change them.

        Raises ValueError before there are milliseconds.
        """
        rows = self.rows
        timed = [row for row in rows if row["kind"] == "time"]
        if not timed:
            raise ValueError("no milliseconds are known, beside which memory stands: run times first")
        memory = {
            key: {str(count): memory_of(folder, self.plans(key[1])[0], count) for count in self.system.shared}
            for key, folder in self.timed_runs().items()
        }
        for row in timed:
            row["mib"] = memory[row["network"], row["method"]]
        write_rows(self.out, rows)

    def best(self, network: Network, method: Method, **values: Any) -> Setting:
        """The setting that the search prefers, of those with such values. Raises ValueError before it is done."""
        rows = self.rows_with(kind="search", network=network, method=method, **values)
        if not rows:
            raise ValueError(f"no batch and rate of {network} by {method} is known: search them first")
        row = min(rows, key=lambda row: np.nan_to_num(mean(row), nan=np.inf))
        return Setting(row["batch"], row["rate"], row["halflife"])

    def search(self, network: Network, method: Method, seconds: float = SEARCHED, batches: Sequence[int] = ()) -> None:
        """Batch, then rate at the best batch; then the neighbours of the best, until none of them is better.

        So a best rate is never the end of a grid.
        """
        batches = batches or BATCHES
        for batch in batches:
            self.train("search", network, method, Setting(batch), seconds, 0)
        first = self.best(network, method, rate=RATES[0])
        for rate in RATES:
            self.train("search", network, method, replace(first, rate=rate), seconds, 0)
        self.descend(network, method, batches, lambda cell: self.train("search", network, method, cell, seconds, 0))

    def descend(
        self, network: Network, method: Method, batches: Sequence[int], attempt: Callable[[Setting], None]
    ) -> None:
        """Tries neighbours of the best setting, until none of them is better."""
        center, setting = None, self.best(network, method)
        while center != setting:
            center = setting
            for neighbour in neighbours(center, batches):
                attempt(neighbour)
            setting = self.best(network, method)

    def averages(self, network: Network, method: Method, seconds: float = SEARCHED) -> None:
        """Shorter half-lives of averaged weights at the best batch and rate, scored as the search is."""
        setting = self.best(network, method)
        longest = 50 * seconds / self.speed(network, method, setting.batch) * setting.batch  # a 20th of the windows
        for shorter in AVERAGED:
            self.train("average", network, method, replace(setting, halflife=round(longest / shorter)), seconds, 0)

    def table(self) -> str:
        """Every training and plan so far: the mean CRPS, over seeds where there are several."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            if row["kind"] in ("search", "average", "final"):
                key = tuple(
                    row[name] for name in ("kind", "network", "method", "batch", "rate", "halflife", "seconds", "steps")
                )
                groups.setdefault(key, []).append(row)
        lines = [
            [
                *key,
                ", ".join(f"{mean(row):.4f}" for row in rows),
                f"{rows[0]['macs']['1']:.2f}",
                f"{rows[0]['macs']['16']:.2f}",
            ]
            for key, rows in sorted(
                groups.items(), key=lambda item: (item[0][0], item[0][6], np.mean([mean(row) for row in item[1]]))
            )
        ]
        header = (
            "kind",
            "network",
            "by",
            "batch",
            "rate",
            "half-life",
            "seconds",
            "steps",
            "CRPS, each seed",
            "M of 1",
            "of 16",
        )
        return markdown(header, lines, texts=3)


class StandIns(Contest):
    """Trainings of one update, whose draws take as long as those of any other."""

    def of(self, network: Network, method: str) -> Path:
        """The run of a stand-in, which is trained, or gone on with."""
        folder = self.out / "stand-ins" / f"{network}-{method}"
        whole(dr.train(self.experiment(network, method, Setting(), 1, 0), folder))
        return folder

    def teacher(self, network: Network, seed: int) -> Path:
        return self.of(network, "diffusion")


def neighbours(setting: Setting, batches: Sequence[int]) -> list[Setting]:
    """Half and twice the batch, where it is one of these, and half and twice the rate."""
    near = [batch for batch in (setting.batch // 2, 2 * setting.batch) if batch in batches]
    return [replace(setting, batch=batch) for batch in near] + [
        replace(setting, rate=rate) for rate in (setting.rate / 2, 2 * setting.rate)
    ]


def multilevel(models: Sequence[dr.Model], system: System, cell: Row, between: int) -> Row:
    """Cost and scores as of `scored`, and calls of each network, of single networks by ML-EM. macs: of levels that run.

    cell: sampler, steps, and the probabilities of all networks but the lightest
    """
    model, members = models[-1], system.members
    drawer = dr.Choice(steps=cell["steps"], sampler=cell["sampler"]).drawer(model, precision="float32")
    levels = tuple(model.ready(bfloat16=False).denoiser for model in models)
    denoiser = Multilevel(levels, drawer.plan.t, tuple(cell["probabilities"]))
    starts, truth = starts_of(model, system, between)
    batches = sample_batches(
        denoiser, drawer.step, denoiser.plan, model.shape, starts, batch_size=256, given=model.given, members=members
    )
    one = dr.Choice(steps=1)
    costs = [one.drawer(model, precision="float32").expected_cost.macs / 1e6 for model in models]
    macs = sum(cost * calls for cost, calls in zip(costs, denoiser.calls, strict=True))
    return {
        "macs": dict.fromkeys(map(str, system.shared), macs),
        "calls": list(denoiser.calls),
        **by_lead(by_start(batches, members), truth, area_of(model)),
    }


def memory_of(folder: Path, steps: int | None, members: int) -> float:
    """MiB by which a process grows at most as it draws so many members of one start by a training's model: the median
    of PROCESSES, each with its model and start loaded and nothing drawn.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        return float(np.median(list(alone.map(_growth, *zip(*[(folder, steps, members)] * PROCESSES, strict=True)))))


def _growth(folder: Path, steps: int | None, members: int) -> float:
    torch.set_num_threads(1)
    model = dr.load(str(folder))
    drawer = dr.Choice(steps=steps).drawer(model, batch_size=members, members=members, precision="float32")
    assert isinstance(model.given, HeldOut)
    _ = model.given(torch.tensor([0]))  # reads the held-out trajectories
    before = forget_peak()
    _ = list(drawer.states([0]))
    return round(((peak_memory(torch.device("cpu")) or 0) - before) / 2**20, 1)


def forget_peak() -> int:
    """Gives freed memory back and lets peak memory begin anew, on Linux. Returns the bytes that are left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory(torch.device("cpu")) or 0


def broad(config: UViTConfig) -> UViTConfig:
    """Half of its multiply-adds: 3/4 of its channels, 3/4 of the blocks of its middle."""
    *_, last = config.levels
    levels = [replace(level, channels=round(level.channels * 3 / 32) * 8) for level in config.levels]
    levels[-1] = replace(levels[-1], blocks=max(1, last.blocks * 3 // 4))
    return replace(config, levels=tuple(levels))


def mean(row: Row) -> float:
    """CRPS over starts and lead times."""
    return float(np.mean(row["crps"]))


def networks(only: Sequence[str]) -> Iterator[tuple[Network, Method]]:
    """Networks and what trains them, the two networks that decide first."""
    return (pair for pair in product(NETWORKS, METHODS) if not only or ":".join(pair) in only)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    verbs = "simulate", "speeds", "search", "averages", "train", "rescore", "multilevel", "times", "memory", "show"
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("--system", choices=SYSTEMS, default="kuramoto-sivashinsky")
    parser.add_argument(
        "--seconds", type=float, help=f"of a training ({SECONDS}), or of one of the search ({SEARCHED})"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", default=[], help="network:method")
    options = parser.parse_args()
    contest, file = Contest(options.system, options.out), RESULTS / f"contest-{options.system}.json.xz"
    options.out.mkdir(parents=True, exist_ok=True)
    if options.verb == "simulate":
        contest.system.simulate(options.out)
        return
    if file.exists() and not contest.rows:
        add_rows(options.out, kept(file, options.out))
    on_one_thread()
    if options.verb == "rescore":
        contest.rescore()
    if options.verb == "times":
        contest.times()
    if options.verb == "memory":
        contest.memory()
    if options.verb == "multilevel":
        for seed in options.seeds:
            contest.multilevel(options.seconds or SECONDS, seed)
    trains = options.verb in ("speeds", "search", "averages", "train")
    for network, method in networks(options.only) if trains else ():
        if options.verb == "speeds":
            for batch in options.batches:
                contest.speed(network, method, batch)
        elif options.verb == "search":
            contest.search(network, method, options.seconds or SEARCHED, options.batches)
        elif options.verb == "averages":
            contest.averages(network, method, options.seconds or SEARCHED)
        else:
            setting = contest.best(network, method)
            for seed in options.seeds:
                contest.train("final", network, method, setting, options.seconds or SECONDS, seed)
    if contest.rows:
        keep(file, contest.rows)
    print(contest.table())


if __name__ == "__main__":
    main()
