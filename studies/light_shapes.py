"""Light networks in another shape, trained beside the usual one for equal seconds of a core.

    python -m studies.light_shapes OUT --system kolmogorov --seconds 150 --seeds 0 1
    python -m studies.light_shapes OUT --images FOLDER --seconds 300 --seeds 0 1

`dual` has the usual light network. That of `coarse` begins at the second level, by patches of twice the side, with as
many channels as the heavy network has there: more multiply-adds in fewer, wider layers. That of `bare` has no blocks at
its finest level, and is as wide as the heavy network at the others.

Of a system OUT has the trajectories of studies/systems.py. Of each plan: the held-out loss of x_hat and the fair
CRPS, of each shape over `dual`, the latter with an interval over starts and trainings; milliseconds of a member, by how
many of a start are drawn together. docs/results/light-shapes-SYSTEM.json.xz keeps the rows.

Images are a source of `train auto --size tiny --rate dual`. The error of x_hat is that of held-out images on the same
noise, by contexts of an age as in 16 steps of which 4 are heavy; distances are in a feature net that is trained here;
shares are those of `benchmarks.calls`. docs/results/light-shapes.json keeps the rows of each processor.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import dualrate as dr
from benchmarks import workloads
from benchmarks.calls import CPU, over
from benchmarks.interleave import interleaved, quotient
from dualrate.data.images import ImageSet
from dualrate.diffusion.process import require_gaussian
from dualrate.experiment.network_configs import TwoConditional, TwoNetworks
from dualrate.metrics.distances import kernel_distance
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import CARD, FeatureNet, train_feature_net
from dualrate.networks.blocks import in_bfloat16
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.auto import TIERS, Auto
from dualrate.system.device import environment
from dualrate.system.progress import Silent
from studies.common import RESULTS, Row, add_rows, command, keep, markdown, on_one_thread, save
from studies.contest import Contest, Setting
from studies.equal_score import resampled
from studies.roll_outs import SIZES
from studies.systems import SYSTEMS, crps, interval
from studies.where import losses
from tools.gpu.cifar10 import Images, image_errors

Pair = TypeVar("Pair", TwoConditional, TwoNetworks)
SHAPES: tuple[Any, ...] = ("dual", "coarse", "bare")
SETTINGS = {"kuramoto-sivashinsky": Setting(16), "kolmogorov": Setting(8), "sphere": Setting(8, 4e-3)}
STEPS, COUNT, ROUNDS = (4, 8), 512, 9  # COUNT: held-out windows of a loss


def beyond_finest(networks: Pair) -> tuple[Level, ...]:
    """The light network's levels but the finest, as wide as those of the heavy one."""
    heavy, light = networks.encoder, networks.light
    assert isinstance(heavy, UViTConfig)
    assert isinstance(light, UViTConfig)
    pairs = zip(light.levels[1:], heavy.levels[1:], strict=True)
    return tuple(replace(level, channels=wide.channels) for level, wide in pairs)


def coarse(networks: Pair) -> Pair:
    """The pair with a light network from the second level on."""
    light: Any = networks.light
    return replace(networks, light=replace(light, levels=beyond_finest(networks), patch=2 * light.patch))


def bare(networks: Pair) -> Pair:
    """The pair with a light network that has no blocks at its finest level."""
    light: Any = networks.light
    levels = replace(light.levels[0], blocks=0), *beyond_finest(networks)
    return replace(networks, light=replace(light, levels=levels))


def shaped(experiment: dr.Experiment, shape: str, of: type[Pair]) -> dr.Experiment:
    """The experiment with the pair in another shape."""
    networks = experiment.networks
    assert isinstance(networks, of)
    shapes = {"dual": networks, "coarse": coarse(networks), "bare": bare(networks)}
    return replace(experiment, networks=shapes[shape])


@dataclass(frozen=True)
class Shapes(Contest):
    """The contest, of pairs by diffusion alone."""

    def untimed(self, network: str, method: str, seed: int) -> dr.Experiment:
        size = SIZES.get(self.name, self.system.windows.size)
        experiment = self.sized(replace(self.system.windows, size=size), "dual")
        return shaped(experiment, network, TwoConditional)

    def plans(self, method: str) -> tuple[int | None, ...]:
        return STEPS

    def train_all(self, seconds: float, seeds: list[int]) -> None:
        """Trains and scores what is missing, shapes in turn."""
        for seed, shape in ((seed, shape) for seed in seeds for shape in SHAPES):
            self.train("final", shape, "diffusion", SETTINGS[self.name], seconds, seed)
            which: Row = {"kind": "loss", "network": shape, "seconds": seconds, "seed": seed}
            if not self.rows_with(**which):
                row = self.rows_with(kind="final", network=shape, seconds=seconds, seed=seed)[0]
                add_rows(self.out, [which | {"losses": losses(dr.load(str(self.folder(row))), COUNT)}])

    def milliseconds(self) -> dict[tuple[str, int, int], list[float]]:
        """Milliseconds of a member, by shape, steps and members of a start, in rounds where all take turns."""
        models = {shape: dr.load(str(self.folder(self.rows_with(kind="final", network=shape)[0]))) for shape in SHAPES}
        drawers = {
            (shape, steps, count): dr.Choice(steps=steps).drawer(
                models[shape], batch_size=count, members=count, precision="float32"
            )
            for shape in SHAPES
            for steps in STEPS
            for count in self.system.shared
        }
        taken: dict[tuple[str, int, int], list[float]] = {way: [] for way in drawers}
        for _ in range(ROUNDS + 1):
            for way, drawer in drawers.items():
                begun = time.process_time()
                _ = list(drawer.states([0]))
                taken[way].append(1000 * (time.process_time() - begun) / way[2])
        return {way: each[1:] for way, each in taken.items()}

    def time_rows(self) -> list[Row]:
        """Medians of milliseconds by shape and plan, and of their quotients by those of `dual`, measured once."""
        if not self.rows_with(kind="time"):
            taken = self.milliseconds()
            for shape, steps in ((shape, steps) for shape in SHAPES for steps in STEPS):
                ms = {str(count): taken[shape, steps, count] for count in self.system.shared}
                over_dual = {count: np.divide(each, taken["dual", steps, int(count)]) for count, each in ms.items()}
                row: Row = {
                    "kind": "time",
                    "network": shape,
                    "steps": steps,
                    "processor": environment(CPU)["processor"],
                }
                for name, each in (("ms", ms), ("over_dual", over_dual)):
                    row[name] = {count: round(float(np.median(times)), 4) for count, times in each.items()}
                add_rows(self.out, [row])
        return self.rows_with(kind="time")

    def comparison(self, seconds: float) -> str:
        """Scores of each shape, and losses, scores and times over those of `dual`."""
        finals, lost = (self.rows_with(kind=kind, seconds=seconds) for kind in ("final", "loss"))
        errors = {shape: [sum(row["losses"]) for row in lost if row["network"] == shape] for shape in SHAPES}
        scores = resampled(finals, lambda row: (row["network"], row["steps"]), crps)
        lines = []
        for row in self.time_rows():
            shape, steps = row["network"], row["steps"]
            loss = ", ".join(f"{b / a:.3f}" for a, b in zip(errors["dual"], errors[shape], strict=True))
            times = [f"{row['ms'][count]:.2f}, x {row['over_dual'][count]:.2f}" for count in row["ms"]]
            ratio = interval(scores[shape, steps] / scores["dual", steps], 3)
            lines.append([shape, steps, loss, interval(scores[shape, steps], 4), ratio, *times])
        header = ("network", "steps", "loss of x_hat over dual's", "CRPS", "over dual's")
        return markdown((*header, *(f"ms of {count}" for count in self.system.shared)), lines, texts=1)


KEPT = RESULTS / "light-shapes.json"
AGES, TIMES, HELD_OUT = (0.0, 1 / 16, 3 / 16), 6, 1000  # of contexts, of errors, images of both
PLANS, DRAWN, EPOCHS = (8, 16), 5000, 3  # steps and images of a distance, epochs of the net that it is in
TOGETHER, PLAN, TIMED = (1, 64), dr.StepPlan.uniform(16, 4), 5.0  # images and plan of a time, seconds of measuring it


@dataclass(frozen=True)
class OfImages(Contest):
    """The contest, of pairs that `train auto` makes of a source of images."""

    source: str

    def untimed(self, network: str, method: str, seed: int) -> dr.Experiment:
        return shaped(Auto(dr.DataConfig(self.source), "tiny", "dual")(Silent()), network, TwoNetworks)

    def experiment(self, network: Any, method: str, setting: Setting, updates: int, seed: int) -> dr.Experiment:
        experiment = super().experiment(network, method, setting, updates, seed)
        return replace(experiment, fit=replace(experiment.fit, precision="auto"))

    def evaluator(self, train: ImageSet, test: ImageSet) -> Evaluator[FeatureNet]:
        folder = self.out / "features"
        if not (folder / CARD).exists():
            train_feature_net(train, test, epochs=EPOCHS).save(folder)
        return Evaluator(FeatureNet.load(folder), train, test)

    def train_all(self, seconds: float, seeds: list[int]) -> None:
        """Trains and scores what is missing, shapes in turn."""
        fit = TIERS["tiny"].fit
        setting, judge = Setting(fit.batch_size, fit.optim.lr, fit.ema_halflife), None
        for seed, shape in ((seed, shape) for seed in seeds for shape in SHAPES):
            which = self.which("final", shape, "diffusion", setting, seconds, seed)
            if not self.rows_with(**which):
                row = self.fit(which)
                model = dr.load(str(self.folder(which)))
                sets = [model.experiment.data.images(split) for split in ("train", "test")]
                judge = judge or self.evaluator(*sets)
                add_rows(self.out, [row | scored(model, sets[1], judge)])
                print(shape, seed, self.rows_with(**which)[0], flush=True)
        here = environment(CPU)["processor"]
        elsewhere = [row for row in json.loads(KEPT.read_text()) if row["processor"] != here] if KEPT.exists() else []
        rows = [row | {"processor": here} for row in self.rows]
        save(KEPT, json.dumps(elsewhere + rows, indent=0) + "\n")

    def shares(self, seconds: float) -> str:
        """Shares of light calls, and times of samples over those of `dual`, by how many images are drawn together."""
        rows = {shape: self.rows_with(kind="final", network=shape, seconds=seconds)[0] for shape in SHAPES}
        models, lines = {shape: dr.load(str(self.folder(row))) for shape, row in rows.items()}, []
        for count in TOGETHER:
            bfloat16 = in_bfloat16("auto", CPU, (count, *models["dual"].shape))
            samples = {shape: workloads.sampling(model, PLAN, count, bfloat16) for shape, model in models.items()}
            rounds = interleaved(samples, CPU, seconds=TIMED)
            for shape, model in models.items():
                calls, cost = workloads.a_call_each(model, count, bfloat16), model.call_cost
                share = over(calls["heavy"], calls["light"], TIMED, cost.light / cost.heavy)
                lines.append([shape, count, share, quotient(rounds, shape, "dual")["cpu"]])
        return markdown(["network", "images", "share", "time of a sample"], lines, texts=1)

    def comparison(self, seconds: float) -> str:
        """Ratios over `dual`, by training; thirds of the errors from low noise to high."""
        finals, lines = self.rows_with(kind="final", seconds=seconds), []
        usual = {row["seed"]: row for row in finals if row["network"] == "dual"}
        for row in finals:
            dual = usual[row["seed"]]
            errors = [
                np.divide(row["errors"][age], dual["errors"][age]).reshape(3, -1).mean(1) for age in dual["errors"]
            ]
            lines.append(
                [
                    row["network"], row["seed"], row["updates"], f"{row['macs'] / 1e6:.1f}",
                    *(", ".join(f"{ratio:.3f}" for ratio in ratios) for ratios in errors),
                    *("{:.2f} [{:.2f}, {:.2f}], {:.4f}".format(*score) for score in row["scores"].values()),
                ]
            )  # fmt: skip
        ages = (f"error, age {float(age):.3g}" for age in next(iter(usual.values()))["errors"])
        header = (
            "network",
            "seed",
            "updates",
            "million multiply-adds",
            *ages,
            *(f"FD, KID in {n} steps" for n in PLANS),
        )
        return markdown(header, lines, texts=1)


def scored(model: dr.Model, test: ImageSet, judge: Evaluator[FeatureNet]) -> Row:
    """Errors of x_hat by age of the context, low noise first; distances in features by steps: FD, its ends, kernel."""
    assert test.labels is not None
    pixels, labels = (torch.from_numpy(np.asarray(part[:HELD_OUT])) for part in (test.images, test.labels))
    process, scores = require_gaussian(model.process, model.name), {}
    errors = {
        age: [
            round(float(error.mean()), 6)
            for _, error in image_errors(model.denoiser, process, Images(pixels, labels), age, TIMES)
        ]
        for age in AGES
    }
    for steps in PLANS:
        features = judge.net.features(dr.Choice(steps=steps).drawer(model).draw(range(DRAWN)).images)
        replicates = np.quantile(judge.replicates(features), (0.025, 0.975))
        kernel = kernel_distance(features, judge.reference_features)
        scores[steps] = [round(float(x), 6) for x in (judge.value(features)[0], *replicates, kernel.value)]
    return {"macs": model.call_cost.light, "errors": errors, "scores": scores, "accuracy": judge.net.card.accuracy}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", choices=SETTINGS, default="kolmogorov")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", help="a source of images, in place of a system")
    options = parser.parse_args()
    on_one_thread()
    assert options.system in SYSTEMS
    options.out.mkdir(parents=True, exist_ok=True)
    shapes = OfImages("images", options.out, options.images) if options.images else Shapes(options.system, options.out)
    shapes.train_all(options.seconds, options.seeds)
    print(shapes.comparison(options.seconds))
    if isinstance(shapes, OfImages):
        print(shapes.shares(options.seconds))
    else:
        keep(RESULTS / f"light-shapes-{options.system}.json.xz", shapes.rows)


if __name__ == "__main__":
    main()
