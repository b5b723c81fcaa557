"""What a comparison that is short of time measures: fewer images, and the useful first."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dualrate.compare.candidates import Candidate
from dualrate.compare.comparison import Session, useful_first
from dualrate.diffusion.plan import StepPlan


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1e9, 1000), (2000, 1000), (1999, 750), (1000, 500), (900, 500), (0, 500)]
)
def test_as_many_images_as_there_is_time_for(seconds, expected):
    """Two candidates of a second an image; 1000 are wanted, and a score needs 300."""
    evaluators = [SimpleNamespace(net=SimpleNamespace(dim=150))]
    session = SimpleNamespace(seconds=lambda one, seeds: len(seeds), _evaluators_of=lambda seeds: evaluators)
    found = Session.images(session, ["one", "other"], 7, 1000, seconds)  # type: ignore[arg-type]
    assert found == expected


def candidate(run: str, steps: int, *, named: bool = False) -> Candidate:
    return Candidate(Path(run), run, "ddim", StepPlan.uniform(steps), named=named)


def test_the_useful_first():
    every = [candidate("a", steps) for steps in (4, 8, 16)] + [candidate("b", 8), candidate("b", 2, named=True)]
    made = useful_first(every, {one.key: one.plan.num_steps for one in every})
    assert [(one.network, one.plan.num_steps) for one in made] == [("b", 2), ("a", 4), ("b", 8), ("a", 8), ("a", 16)]
