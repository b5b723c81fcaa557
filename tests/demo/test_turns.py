"""Plans in turns, on a clock that only drawing moves: who is measured, in what order, and when it ends."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report.made import row

from dualrate.demo import turns
from dualrate.demo.turns import Limits, Turns
from dualrate.diffusion.plan import StepPlan

LIMITS = Limits(seconds=100, fewest=100, enough=500, shown=10)


@dataclass(frozen=True)
class Fake:
    """A drawer that only moves the clock of its world."""

    network: str
    plan: StepPlan
    world: Any
    batch_size: int = 125

    def draw(self, seeds):
        return self.world.draw(self, seeds)


@dataclass
class World:
    """A machine on which an image of the plan of N steps takes N seconds times `slow`, of each round its own."""

    slow: float = 1.0
    disturbed: int | None = None  # the round that takes a hundred times as long
    now: float = 1000.0

    def __post_init__(self):
        self.calls: list[tuple[int, range]] = []
        self.kept: dict[tuple[int, range], float] = {}
        self.told: list[tuple[int, int, float]] = []

    def draw(self, drawer, seeds):
        self.now += self.slow * drawer.plan.num_steps * len(seeds)
        return SimpleNamespace(images=np.zeros((len(seeds), 1, 2, 2), np.uint8))

    def keep_features(self, drawer, seeds, nets, directory, **_):
        plan = drawer.plan
        if len(seeds) <= turns.ROUND and (plan.num_steps, seeds) not in self.kept:
            disturbed = 100 if seeds.start // turns.ROUND == self.disturbed else 1
            seconds = disturbed * self.slow * plan.num_steps * len(seeds)
            self.calls.append((plan.num_steps, seeds))
            self.kept[plan.num_steps, seeds] = seconds
            self.now += seconds
        return [SimpleNamespace(read=lambda ids: SimpleNamespace(seconds=self.kept[plan.num_steps, ids]))]

    def measure(self, steps, limits=LIMITS):
        drawers = [Fake(f"of {n}", StepPlan.uniform(n), self) for n in steps]
        judge = SimpleNamespace(net=None)
        start = self.now
        found = Turns(judge, limits, None, lambda *told: self.told.append(told)).measure(drawers)  # type: ignore[arg-type]  # type: ignore[arg-type]
        self.took = self.now - start
        return found


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(turns, "keep_features", made.keep_features)
    monkeypatch.setattr(Turns, "_place", lambda self, drawer: None)

    def measured(drawer, seeds, judge, **_):
        steps = drawer.plan.num_steps
        made = row(drawer.network, steps=steps, heavy=steps, count=len(seeds), seconds=-1)
        return SimpleNamespace(row=made)

    monkeypatch.setattr(turns, "measure", measured)
    return made


def counts(found):
    return {one.row.network: one.row.score.fingerprint.count for one in found}


def test_every_plan_draws_a_round_before_any_draws_the_next(world):
    world.slow = 0.001
    found = world.measure([3, 1, 2], Limits(100, 100, 120, 10))
    assert world.calls == [(n, seeds) for seeds in (range(50), range(50, 100), range(100, 120)) for n in (3, 1, 2)]
    assert counts(found) == {"of 3": 120, "of 1": 120, "of 2": 120}
    assert all(len(one.images) == 10 for one in found)


def test_a_round_that_was_disturbed_does_not_show_in_the_seconds(world):
    world.slow, world.disturbed = 0.0001, 1
    found = world.measure([4, 8], Limits(100, 100, 250, 10))
    assert [one.row.seconds_per_image for one in found] == pytest.approx([0.0004, 0.0008])


@pytest.mark.parametrize("slow", [0.004, 0.01, 0.03, 0.05, 0.1])
def test_it_ends_in_time_with_as_many_images_of_each(slow, world):
    """Three plans of 6 seconds per image at slow = 1, and 500 images of each: 3,000 seconds."""
    world.slow = slow
    found = world.measure([3, 2, 1])
    assert world.took <= LIMITS.seconds
    (count,) = set(counts(found).values())
    assert count >= LIMITS.fewest
    assert count == 500 or world.took > LIMITS.seconds - 50 * slow * 6
    assert world.told[-1][0] == count * len(found)


@pytest.mark.parametrize(("slow", "expected"), [(0.1, 8), (0.15, 6), (0.2, 4)])
def test_the_least_useful_plans_are_left_out_where_time_is_short(slow, expected, world):
    """At slow = 1 a plan of one step takes 110 seconds for what is shown and its fewest images."""
    world.slow = slow
    found = world.measure([1] * 7 + [2], LIMITS)
    assert len(found) == expected
    assert world.took <= LIMITS.seconds + 10 * slow


def test_two_plans_are_measured_however_slow_the_machine_is(world):
    world.slow = 50
    assert counts(world.measure([1, 2, 3])) == {"of 1": 100, "of 2": 100}


def test_every_draw_is_told(world):
    world.slow = 0.001
    world.measure([3, 2, 1])
    assert [(images, total) for images, total, _ in world.told] == [(50 * i, 1500) for i in range(1, 31)]


def test_what_is_kept_takes_no_time_and_the_rest_goes_on(world):
    world.slow = 0.1
    first = world.measure([3, 2, 1])
    before = list(world.calls)
    second = world.measure([3, 2, 1])
    assert counts(second)["of 3"] > counts(first)["of 3"]
    assert not set(before) & set(world.calls[len(before) :])
