"""Exact resume of a run from its newest checkpoint.

Batch i and every draw are functions of (seed, sample number), torch's generator (dropout layers read it) is seeded from
(seed, iteration, phase, micro-batch), and everything else is in the checkpoint. So N iterations straight equal k
iterations, a crash, and the rest: bit for bit on a CPU with the same number of threads; on a GPU but for the order in
which its libraries add. Micro-batches are weighted by their rows, so accumulation changes a result only by rounding
(and dropout masks), but for a method that says otherwise (`fixed_settings`).

What a checkpoint holds is in state.py, how it is written and found in checkpoint.py. A run whose configuration differs
is refused. Other versions, devices or threads only change the rounding: a note.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from dualrate.system.files import blaming, when_seen
from dualrate.system.launch import timeout
from dualrate.training import checkpoint
from dualrate.training.config import ROUNDING
from dualrate.training.distributed import World
from dualrate.training.state import RunState


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


def resume(
    state: RunState,
    directory: Path,
    identity: Mapping[str, Any],
    surroundings: Mapping[str, Any],
    places: Mapping[str, str],
    upgrade: Callable[[dict[str, Any]], dict[str, Any]],
    world: World,
    note: Callable[[str], None],
    fixed: Container[str] = (),
) -> int:
    """Restore the newest intact checkpoint of a folder. Returns the iterations done, -1 where there is none.

    identity: what is trained, with the state's configuration as its "fit"; places, upgrade: as of `fit`
    surroundings: what equal bits depend on, noted where it differs
    fixed: settings of the configuration that change the weights by this method
    Raises OtherRun for a checkpoint of another configuration, and what reading raises.
    """
    saved = checkpoint.recover(directory, note) if world.leads else None
    iteration = world.of_leader(-1 if saved is None else saved.state["iteration"])
    if iteration < 0:
        return iteration
    saved = saved or checkpoint.load(when_seen(checkpoint.path_of(directory, iteration), timeout()))
    written, config = saved.state["config"], state.config
    with blaming(saved.path):
        before, free = upgrade(written), {f"fit.{name}" for name in config.free() if name not in fixed}
        if changes := differences(before, identity, free, places):
            lines = "\n  ".join(("use a new run, or undo:", *changes)) + config.on_seconds(before["fit"])
            place = f"{saved.path} was trained with another configuration"
            raise OtherRun(place, (line.partition(": ")[0] for line in changes), f"; {lines}")
        then = {"processes": 1, **saved.state["surroundings"], **written["fit"]}
        now = {**surroundings, **{name: getattr(config, name) for name in ROUNDING}}
        if facts := [f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key]]:
            note(f"resuming, but not bit for bit: {'; '.join(facts)}")
        state.restore(saved)
    note(f"resuming at iteration {iteration}")
    return iteration
