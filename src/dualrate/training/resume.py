"""Exact resume of a run from its newest checkpoint.

Batch i and every draw are functions of (seed, sample number), torch's generator (dropout layers read it) is seeded from
(seed, iteration, phase, micro-batch), and everything else is in the checkpoint. So N iterations straight equal k
iterations, a crash, and the rest: bit for bit on a CPU with the same number of threads; on a GPU but for the order in
which its libraries add. Micro-batches are weighted by their rows, so accumulation changes a result only by rounding
(and dropout masks).

A run whose configuration differs is refused. Other versions, devices or threads only change the rounding: a note.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from dualrate.training.checkpoint import Checkpoint
from dualrate.training.config import ROUNDING, FitConfig


class OtherRun(ValueError):
    """A run in its folder is another one than is trained. place: in words; changes: names of settings that differ"""

    def __init__(self, place: str, changes: Iterable[str], ways: str) -> None:
        super().__init__(f"{place}{ways}")
        self.place, self.changes = place, tuple(changes)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Container[str], places: Mapping[str, str]
) -> list[str]:
    """Lines `key: before -> now` for every leaf that differs, except keys in `free`.

    places: of a key that says where something is, the key that says what it is: where that is the same, it may differ
    """
    old, new = _leaves(before), _leaves(now)
    moved = {place for place, what in places.items() if old.get(what) and old.get(what) == new.get(what)}
    keys = [key for key in old | new if key not in free and key not in moved]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.removesuffix("."): tree}
    return {key: leaf for name, part in tree.items() for key, leaf in _leaves(part, f"{prefix}{name}.").items()}


def check_same_run(
    saved: Checkpoint,
    identity: Mapping[str, Any],
    config: FitConfig,
    surroundings: Mapping[str, Any],
    places: Mapping[str, str],
    upgrade: Callable[[dict[str, Any]], dict[str, Any]],
    note: Callable[[str], None],
) -> None:
    """Raise OtherRun for a checkpoint of another configuration; note what else prevents equal bits.

    identity: with `config` as its "fit"; places, upgrade: as of `fit`
    """
    written, free = saved.state["config"], {f"fit.{name}" for name in config.free()}
    before = upgrade(written)
    if changes := differences(before, identity, free, places):
        lines = "\n  ".join(("use a new run, or undo:", *changes)) + config.on_seconds(before["fit"])
        place = f"{saved.path} was trained with another configuration"
        raise OtherRun(place, (line.partition(": ")[0] for line in changes), f"; {lines}")
    then = {"processes": 1, **saved.state["surroundings"], **written["fit"]}
    now = {**surroundings, **{name: getattr(config, name) for name in ROUNDING}}
    if other := [f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key]]:
        note(f"resuming, but not bit for bit: {'; '.join(other)}")
