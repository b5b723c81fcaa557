"""What a comparison has time for, on made-up contenders of known cost."""

from pathlib import Path

import pytest
from dualrate.compare.contender import Contender
from dualrate.compare.speed import FEWEST, affordable, levels, middles_first, useful_first

from dualrate.diffusion.plan import StepPlan


def contender(steps: int, run: str = "a", sampler="ancestral", **more) -> Contender:
    return Contender(Path(run), run, sampler, StepPlan.uniform(steps), **more)


def seconds_of(one: Contender, images: int) -> float:
    """A millisecond a step."""
    return one.plan.num_steps * images / 1000


@pytest.mark.parametrize(
    ("most", "fewest", "expected"),
    [(1000, 192, [1000, 750, 500, 250]), (1000, 400, [1000, 750, 500]), (200, 192, [200]), (600, 1, [600, 500, 250])],
)
def test_levels_are_blocks_that_can_be_scored(most, fewest, expected):
    assert levels(most, fewest) == expected


@pytest.mark.parametrize(
    ("seconds", "wanted", "expected"),
    [
        (30, 4, ([8, 4, 2, 16], 1000)),  # all of them, as a thousand images take a second a step
        (29, 4, ([8, 4, 2, 16], 500)),  # fewer images before fewer contenders
        (29, 3, ([8, 4, 2], 1000)),
        (7, 3, ([8, 4, 2], 500)),
        (6, 3, ([8, 4], 500)),  # even the fewest images do not do: the first ones
        (0, 3, ([8, 4], 500)),
    ],
)
def test_fewer_images_then_fewer_contenders_and_never_none(seconds, wanted, expected):
    picked, images = affordable([contender(n) for n in (8, 4, 2, 16)], seconds_of, seconds, [1000, 500], wanted=wanted)
    assert ([one.plan.num_steps for one in picked], images) == expected
    assert len(picked) >= FEWEST


def test_one_that_is_too_dear_does_not_keep_others_out():
    picked, _ = affordable([contender(n) for n in (1, 2, 64, 3)], seconds_of, 6, [1000], wanted=4)
    assert [one.plan.num_steps for one in picked] == [1, 2, 3]


def test_the_useful_first():
    """What was named; then runs in turns, good samplers before others, and costs spread from the middle."""
    made = [contender(n, "a") for n in (4, 8)]
    made += [contender(n, "a", "sde-dpm++2m", gamma=gamma) for n in (4, 8, 16) for gamma in (0.0, 0.2)]
    made += [contender(n, "b", "ddim") for n in (4, 8)]
    named = contender(99, "b", "heun", named=True)
    order = useful_first([*made, named], {one.key: one.plan.num_steps for one in [*made, named]})
    assert order[0] is named
    assert [(one.run.name, one.sampler, one.gamma, one.plan.num_steps) for one in order[1:6]] == [
        ("a", "sde-dpm++2m", 0.2, 8),
        ("b", "ddim", 0.0, 8),
        ("a", "sde-dpm++2m", 0.2, 4),
        ("b", "ddim", 0.0, 4),
        ("a", "sde-dpm++2m", 0.2, 16),
    ]
    assert [one.sampler for one in order[6:]] == ["sde-dpm++2m"] * 3 + ["ancestral"] * 2
    assert len(order) == len(made) + 1


@pytest.mark.parametrize("count", range(12))
def test_middles_first_keeps_all_and_begins_in_the_middle(count):
    made = middles_first(range(count))
    assert sorted(made) == list(range(count))
    assert made[:1] == [count // 2][:count]
    if count >= 5:
        assert min(made[:3]) < count // 2 < max(made[:3])
