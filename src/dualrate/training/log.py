"""The log of a training run: `metrics.jsonl` always; TensorBoard or Weights & Biases as well, if asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
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
            size = kept = 0
            for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
                size += len(line)
                # lines without an iteration stay where others follow
                with suppress(ValueError, KeyError, TypeError, RecursionError):
                    if json.loads(line)["iteration"] > iteration:
                        break
                    if line.endswith(b"\n"):
                        kept = size
            if size:
                os.truncate(path, kept)
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


class Logged:
    """A `Reporter` that passes everything on to `shown`, and mean values over `every` iterations to `write`.

    write: called with the values by name ("model/loss", "lr", ...) and the number of iterations done
    finish: called at the end of the run
    """

    def __init__(
        self, shown: Reporter, every: int, write: Callable[[Mapping[str, float], int], Any], finish: Callable[[], None]
    ) -> None:
        self.shown, self.every, self.write, self.finish = shown, every, write, finish
        self._means = RunningMeans()

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.shown.update(iteration, total, logs)
        self._means.add({name: value for name, value in logs.items() if name not in COUNTS})
        if iteration % self.every == 0 or iteration == total:
            self.write(self._means.means() | {name: logs[name] for name in COUNTS if name in logs}, iteration)
            self._means = RunningMeans()

    def note(self, text: str) -> None:
        self.shown.note(text)

    def close(self) -> None:
        self.shown.close()
        self.finish()


def _ending(made: Any, way: str) -> Callable[[], None]:
    """Ends what a cached function has made; nothing, where it was never called."""

    def end() -> None:
        if made.cache_info().currsize:
            getattr(made(), way)()

    return end


def logged(logger: Logger, shown: Reporter, run: Path, config: Mapping[str, Any], every: int) -> Reporter:
    """`shown`, with values also logged by TensorBoard, in RUN/tensorboard, or Weights & Biases, in project "dualrate".

    config: the experiment, JSON-able; every: iterations between what is logged
    Raises ValueError, naming the extra, if the logger's package is not installed.
    """
    try:
        if logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            board = cache(lambda: SummaryWriter(run / "tensorboard"))  # at the first line: the folder may be in use
        else:
            import wandb  # pyright: ignore[reportMissingImports]

            about = {"project": "dualrate", "name": run.name, "group": str(run), "dir": run, "config": dict(config)}
            started = cache(lambda: wandb.init(**about))
            return Logged(
                shown, every, lambda values, i: started().log(dict(values), step=i), _ending(started, "finish")
            )
    except ImportError as error:
        raise ValueError(
            f"{logger} is not installed ({error}): pip install 'dualrate[{logger}]', or train without --log"
        ) from error

    def write(values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            board().add_scalar(name, value, iteration)
        board().flush()

    return Logged(shown, every, write, _ending(board, "close"))
