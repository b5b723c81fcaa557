"""The log of a training run: `metrics.jsonl` always; TensorBoard or Weights & Biases as well, if asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dualrate.system.progress import Reporter

Logger = Literal["tensorboard", "wandb"]
COUNTS = ("images", "seconds", "skipped")


class RunningMeans:
    """Means of named values over a log interval. Its state goes into checkpoints, so a resumed interval is whole."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, list[float]] = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, appended; lines after `iteration` (of a lost continuation) go.

    Trouble writing never stops training: it is noted once, and the file is then left alone.
    """

    def __init__(self, path: Path, iteration: int, note: Callable[[str], None]) -> None:
        self.path, self._note, self._lost = path, note, False
        try:
            size = end = 0
            for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
                size += len(line)
                # lines without an iteration stay where others follow
                with suppress(ValueError, KeyError, TypeError, RecursionError):
                    if json.loads(line)["iteration"] > iteration:
                        break
                    if line.endswith(b"\n"):
                        end = size
            if size:
                os.truncate(path, end)
        except OSError as error:
            self._give_up(error)

    def write(self, values: Mapping[str, float]) -> None:
        if self._lost:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._lost = True
        self._note(f"cannot write {self.path} ({error.strerror}): training goes on without its log")


Write = Callable[[Mapping[str, float], int], Any]  # of values by name ("model/loss", "lr"), after so many iterations
Open = Callable[[int], tuple[Write, Callable[[], Any]]]  # after so many iterations: what writes, and what ends it


class Logged:
    """A `Reporter` that passes everything on to `shown`, and mean values over `every` iterations to a logger."""

    def __init__(self, shown: Reporter, every: int, open_logger: Open) -> None:
        self.shown, self.every, self._open = shown, every, open_logger
        self._write: Write = lambda values, iteration: None
        self._end: Callable[[], Any] = lambda: None
        self._means = RunningMeans()

    def begin(self, begun: int) -> None:
        """Opens the logger, once the run is this process's own. Until then nothing is logged.

        begun: iterations done; what was logged after them, of a lost continuation, goes where the logger allows it
        """
        self._write, self._end = self._open(begun)

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.shown.update(iteration, total, logs)
        self._means.add({name: value for name, value in logs.items() if name not in COUNTS})
        if iteration % self.every == 0 or iteration == total:
            self._write(self._means.means() | {name: logs[name] for name in COUNTS if name in logs}, iteration)
            self._means = RunningMeans()

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()
        self._end()


def _tensorboard(run: Path, config: Mapping[str, Any]) -> Open:
    from torch.utils.tensorboard import SummaryWriter

    def opened(begun: int) -> tuple[Write, Callable[[], Any]]:
        writer = SummaryWriter(run / "tensorboard", purge_step=begun + 1)

        def write(values: Mapping[str, float], iteration: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, iteration)
            writer.flush()

        return write, writer.close

    return opened


def _weights_and_biases(run: Path, config: Mapping[str, Any]) -> Open:
    import wandb  # pyright: ignore[reportMissingImports]

    def opened(begun: int) -> tuple[Write, Callable[[], Any]]:
        at = wandb.init(project="dualrate", name=run.name, group=str(run), dir=run, config=dict(config))
        return lambda values, iteration: at.log(dict(values), step=iteration), at.finish

    return opened


def logged(logger: Logger, shown: Reporter, run: Path, config: Mapping[str, Any], every: int) -> Logged:
    """`shown`, with values also logged by TensorBoard, in RUN/tensorboard, or Weights & Biases, in project "dualrate".

    config: the experiment, JSON-able; every: iterations between what is logged
    Raises ValueError, naming the extra, if the logger's package is not installed.
    """
    try:
        open_logger = {"tensorboard": _tensorboard, "wandb": _weights_and_biases}[logger](run, config)
    except ImportError as error:
        raise ValueError(
            f"{logger} is not installed ({error}): pip install 'dualrate[{logger}]', or train without --log"
        ) from error
    return Logged(shown, every, open_logger)
