"""Measurements of a comparison that is short of time: fewer images, and the useful first."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dualrate.cli.demo import IMAGES
from dualrate.comparison.candidates import DUAL_PLANS, LADDER, Candidate
from dualrate.comparison.compare import Session, useful_first
from dualrate.comparison.yardstick import Yardstick
from dualrate.diffusion.plan import StepPlan


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1e9, 1000), (2000, 1000), (1999, 750), (1000, 500), (900, 500), (0, 500)]
)
def test_as_many_images_as_there_is_time_for(seconds, expected):
    """Two candidates of a second an image; 1000 are wanted, and a score needs 300."""
    yardstick = Yardstick.__new__(Yardstick)
    yardstick.evaluators = [SimpleNamespace(net=SimpleNamespace(dim=150))]
    session = SimpleNamespace(seconds=lambda one, seeds: len(seeds), yardstick=yardstick)
    found = Session.count(session, ["one", "other"], 7, 1000, seconds)  # type: ignore[arg-type]
    assert found == expected


def candidate(run: str, steps: int, *, named: bool = False) -> Candidate:
    return Candidate(Path(run), run, "ddim", StepPlan.uniform(steps), named=named)


def test_the_useful_first():
    """Names first, in their order by turns; then the networks by turns, the main plan of each, which comes first."""
    every = [candidate("a", steps) for steps in (8, 4, 16)] + [candidate("b", 8), candidate("b", 2, named=True)]
    made = useful_first(every)
    assert [(one.network, one.plan.num_steps) for one in made] == [("b", 2), ("a", 8), ("b", 8), ("a", 4), ("a", 16)]
    named = [candidate("a", steps, named=True) for steps in (16, 8)] + [candidate("b", 32, named=True)]
    assert [(one.network, one.plan.num_steps) for one in useful_first(named)] == [("a", 16), ("b", 32), ("a", 8)]


def test_the_main_plan_of_every_network_comes_first():
    """The pair's of the demo, and single networks of about its cost."""
    assert DUAL_PLANS[0] == (16, 4)
    assert LADDER[0] == 8
    names = [name for name, _, _ in IMAGES]
    assert (IMAGES[0][2], len({*names[:3]})) == ("16/4", 3)
    measured = useful_first([candidate(model, int(plan.split("/")[0]), named=True) for _, model, plan in IMAGES])
    networks = len({model for _, model, _ in IMAGES})
    assert len({one.network for one in measured[:networks]}) == networks
    assert (measured[0].network, measured[0].plan.num_steps) == ("fashion-mnist-dual-45", 16)
