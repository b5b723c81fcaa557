"""`dualrate cost`: what a call and an image of a run cost; what a training will take."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import arg

from dualrate.cli.console import loaded, print_report
from dualrate.cli.distill import RECIPES as DISTILLED
from dualrate.cli.distill import TEACHERS, Student, student_recipe
from dualrate.cli.recipe import (
    AsJson,
    Compile,
    Device,
    Graphs,
    RunDir,
    checked,
    override,
    parse,
    recipe_named,
    with_own_options,
)
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.cli.train import RECIPES, STAGES
from dualrate.config.ranges import BatchSize, Dollars, GPUCount, Ranged, Share, as_path
from dualrate.experiment.experiment import Experiment
from dualrate.training.accelerators import ACCELERATORS

if TYPE_CHECKING:
    from dualrate.runs.prediction import Prediction

GPU = Literal["h100", "h200", "b200", "a100-80", "a100-40", "l40s", "rtx4090"]
PRICES = ", ".join(f"{name} {device.price:g}" for name, device in ACCELERATORS.items())
PRICE = f"US dollars of a GPU for an hour; if not given, assumed (November 2026): {PRICES}."


@dataclass(frozen=True)
class Cost(Ranged):
    """What calls and images of a run cost; with a recipe in its place, what training it will take on GPUs.

    Parameters, MACs and FLOPs of a heavy call, a light call and an image, with measured latency. For a recipe (its
    options: dualrate cost RECIPE --help; of a distillation: dualrate cost distill RECIPE --help), and for a run with
    --gpus: memory, time and price of its training, predicted.
    """

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    batch_size: BatchSize = 1
    """Rows per call when latency is measured."""
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.drawing.measure import cost_report

        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        found = cost_report(self.sampling.drawer(model, progress.note, batch_size=self.batch_size))
        if not self.json and not found["macs_heavy_call"]:  # one kind of call: no lines of zeros, and none said twice
            found = {k: v for k, v in found.items() if not ("_heavy_call" in k or "_alone" in k)}
        print_report(self.json, found)


@dataclass(frozen=True)
class OnGPUs(Ranged):
    """The GPUs of a training, and what is predicted of it on them."""

    gpus: GPUCount = 1
    """In all."""
    device: GPU = "h100"
    """What kind they are."""
    node: GPUCount = 8
    """GPUs of a machine: between machines the network is slower."""
    shard: GPUCount = 1
    """GPUs that hold the weights together, a part each."""
    utilisation: Share = 0.35
    """Share of the peak FLOP/s that is reached (MFU); an assumption."""
    price: Annotated[Dollars | None, arg(help=PRICE)] = None
    json: AsJson = False

    def report(self, experiment: Experiment) -> None:
        """Predict and print. Raises what `needs` and `predict` raise."""
        from dualrate.runs.prediction import Cluster, needs, predict
        from dualrate.runs.store import read_experiment

        device = ACCELERATORS[self.device]
        cluster = Cluster(device, self.gpus, self.node, self.shard, self.utilisation)
        print("running an iteration without numbers: up to a minute", file=sys.stderr)
        found = needs(experiment, read_experiment)
        price = device.price if self.price is None else self.price
        predicted = predict(found, experiment.fit, cluster)
        dollars = price * predicted.gpu_hours
        if self.json:
            print(json.dumps({"predicted": asdict(predicted) | {"price": dollars}}))
            return
        for line in self._lines(experiment, predicted, dollars, price):
            print(line)

    def _lines(self, experiment: Experiment, found: Prediction, dollars: float, price: float) -> list[str]:
        from dualrate.runs.prediction import LAUNCH

        fit, together = experiment.fit, f", weights held together by {self.shard}" if self.shard > 1 else ""
        side, one = fit.recompute_from, experiment.noun
        again = "" if side is None else f", blocks from {side} x {side} on computed again"
        less = "; less since blocks are compiled" if fit.compile else ""
        kept = {
            "weights": found.weights,
            "gradients": found.gradients,
            "Adam": found.adam,
            "averages": found.ema,
            f"activations of {found.images}": found.activations,
        }
        return [
            f"{experiment.name}: {fit.iterations:,} iterations of {fit.batch_size} {one}s",
            f"on {self.gpus} {self.device}, {min(self.node, self.gpus)} a machine{together}{again}",
            "PREDICTED by docs/scaling.md's model, never measured on a GPU",
            "",
            *self._fits(experiment, found),
            *(f"{f'  {name}':24}{_giga(size)}" for name, size in kept.items()),
            f"{'an iteration':24}{found.iteration:9.3f} s, {found.passes} x {found.images} {one}s a GPU",
            f"{'  computing':24}{found.compute:9.3f} s, {found.flops / 1e12:.3g} TFLOP for each {one} at "
            f"{self.utilisation:.0%} of the peak (assumed)",
            f"{'  exchanging gradients':24}{found.exchange:9.3f} s, at the same time as far as it can be",
            f"{'  launching':24}{found.launching:9.3f} s of a host, {1e6 * LAUNCH:.0f} microseconds an operator "
            f"(assumed{less})",
            f"{f'{one}s read':24}{found.images_per_second:9.0f} a second, {found.bytes_per_second / 1e6:.0f} MB",
            f"{'all of it':24}{found.hours:9.3g} h = {_round(found.gpu_hours)} GPU hours = {_round(dollars)} dollars "
            f"at {price:g} an hour ({'assumed' if self.price is None else 'given'})",
        ]

    def _fits(self, experiment: Experiment, found: Prediction) -> list[str]:
        """Whether a pass does, on these GPUs; and what would."""
        fit, most, on = experiment.fit, found.most_images, f"{self.gpus} {self.device}"
        one = experiment.noun
        micro = f"--fit.micro-batch {min(most * self.gpus, fit.batch_size)}"
        used = f"{'memory of a GPU':24}{_giga(found.used)} of {found.memory / 1e9:.0f} GB:"
        if found.fits:
            return [f"{used} fits; at most {most} {one}s a GPU and pass, {micro}"]
        if most == 0:
            return [f"{used} does NOT FIT on {on}, not even one {one}: raise --shard, or name another --device"]
        rows = min(fit.micro_batch or fit.batch_size, fit.batch_size)
        enough = -(-rows // (most * self.shard)) * self.shard
        return [f"{used} does NOT FIT on {on}", f"{'  what would fit':24}     --gpus {enough}, or {micro}"]


@dataclass(frozen=True)
class TrainingCost:
    """Predict what a training will take on GPUs: memory, time, price. Half a minute; nothing is trained."""

    experiment: Annotated[Experiment, arg(name="")]
    on: Annotated[OnGPUs, arg(name="")] = OnGPUs()

    def run(self) -> None:
        self.on.report(self.experiment)


@dataclass(frozen=True, kw_only=True)
class DistillationCost(Student):
    """Predict what a distillation will take on GPUs: memory, time, price. A minute; nothing is trained."""

    teacher: str
    """As of distill; or a recipe of train, for a teacher that is not there yet."""
    on: Annotated[OnGPUs, arg(name="")] = OnGPUs()

    def run(self) -> None:
        from dualrate.runs.store import EXPERIMENT, write_experiment

        teacher = as_path(self.teacher)
        if (teacher / EXPERIMENT).is_file() or (self.teacher not in RECIPES and ":" not in self.teacher):
            return self.on.report(self.of(teacher))
        recipe = recipe_named([self.teacher], RECIPES, Experiment, "cost distill RECIPE [options]")
        with TemporaryDirectory() as folder:  # of a run as it begins
            write_experiment(folder / teacher, checked(recipe(), Experiment, self.teacher))
            try:
                self.on.report(self.of(folder / teacher))
            except ValueError as error:
                raise ValueError(str(error).replace(f"{folder}/", "")) from error


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _giga(size: float) -> str:
    return f"{size / 1e9:9.2f} GB"


def parse_cost(arguments: list[str]) -> Cost | TrainingCost | DistillationCost:
    """Of a run, of a recipe's training, or of a distillation; of a run's training where GPUs are asked for."""
    name = arguments[0] if arguments else ""
    if name == "distill":
        return _parse_distillation(arguments[1:])
    if name in STAGES:
        stages = STAGES[name]()
        raise ValueError(f"{name} trains two stages: ask for {stages.first.name}, and for {stages.base.name}")
    if name in RECIPES or ":" in name:
        usage = "cost RECIPE [options]"
        recipe = recipe_named(arguments, RECIPES, Experiment, usage)
        recipe, arguments = with_own_options(recipe, arguments, "cost")
        return override(TrainingCost(checked(recipe(), Experiment, name)), arguments, "cost")
    if name in DISTILLED and not Path(name).is_dir():
        raise ValueError(f"{name} is a recipe of distill: ask for cost distill {name}")
    if any(argument.partition("=")[0] == "--gpus" for argument in arguments):
        from dualrate.runs.store import read_experiment

        return override(TrainingCost(read_experiment(name)), arguments, "cost")
    return parse(Cost, arguments, "dualrate cost")


def _parse_distillation(arguments: list[str]) -> DistillationCost:
    recipe = student_recipe(arguments, "cost distill RECIPE [options]")
    teacher = TEACHERS.get(arguments[0]) or tyro.MISSING
    return override(DistillationCost(recipe, teacher=teacher), arguments, "cost distill")
