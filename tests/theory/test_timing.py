"""Plans of sampling, and the law of the times of training."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest

from dualrate.diffusion.context import Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.methods.times import GivenTimes, SingleTime, TimeSampler, latest_heavy, radical_inverse

FULL, KEEP, NONE = Refresh.FULL, Refresh.KEEP, Refresh.NONE
sizes = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
ROWS = 200_000


def draws(rows=ROWS, seed=3):
    return Draws(seed, torch.arange(rows))


@given(sizes)
def test_uniform_plan(size):
    n, h = size
    plan = StepPlan.uniform(n, h)
    np.testing.assert_allclose(plan.t, (n - np.arange(n + 1)) / n, rtol=1e-6, atol=1e-12)
    assert (plan.t[0], plan.t[-1]) == (1.0, 0.0)
    assert (plan.num_steps, plan.num_heavy) == (n, h)
    assert [i for i, refresh in enumerate(plan.refresh) if refresh is FULL] == [(j * n) // h for j in range(h)]
    assert set(plan.refresh) <= {FULL, KEEP}


@given(st.integers(1, 12), st.integers(1, 12))
def test_tau_is_the_next_heavy_time_where_heavy_calls_divide_steps(h, ratio):
    n = h * ratio
    plan = StepPlan.uniform(n, h)
    tau = None
    for i in range(n):
        tau = plan.t[i] if plan.refresh[i] is FULL else tau
        assert tau == pytest.approx(-(-(n - i) * h // n) / h)  # ceil(t H) / H, on integers


@given(sizes, st.data())
def test_json_round_trip_is_exact(size, data):
    n, h = size
    plan = StepPlan.at(n, data.draw(st.sets(st.integers(0, n - 1), min_size=h, max_size=h)))
    assert StepPlan.from_json(plan.to_json()) == plan


def test_plans_at_given_times():
    plan = StepPlan.at([1.0, 0.5, 0.2, 0.1], heavy=[1])
    assert plan == StepPlan((1.0, 0.5, 0.2, 0.1), (NONE, FULL, KEEP))
    assert StepPlan.uniform(4, 0).refresh == (NONE,) * 4
    assert StepPlan.uniform(4) == StepPlan.uniform(4, 4)


@pytest.mark.parametrize(
    ("t", "refresh"),
    [
        ((1.0, 0.0), (KEEP,)),  # nothing to keep
        ((1.0, 0.6, 0.3, 0.0), (FULL, NONE, KEEP)),  # it was dropped
        ((1.0, 0.5, 0.0), (FULL,)),  # one entry missing
        ((1.0,), ()),
        ((0.0, 1.0), (FULL,)),  # the wrong way round
        ((1.0, 0.5, 0.5), (FULL, FULL)),
        ((1.0, float("nan"), 0.0), (FULL, FULL)),
        ((1.5, 0.0), (FULL,)),
        ((1.0, -0.1), (FULL,)),
    ],
)
def test_impossible_plans_are_refused(t, refresh):
    with pytest.raises(ValueError):
        StepPlan(t, refresh)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StepPlan.uniform(0, 0),
        lambda: StepPlan.uniform(4, 5),
        lambda: StepPlan.uniform(4, -1),
        lambda: StepPlan.at(4, [4]),
        lambda: StepPlan.at(4, [-1]),
        lambda: StepPlan.from_json("[]"),
        lambda: StepPlan.from_json("{"),
        lambda: StepPlan.from_json('{"t": [1, 0]}'),
        lambda: StepPlan.from_json('{"t": [1, 0], "refresh": ["often"]}'),
        lambda: StepPlan((1.0, 0.0), ("full",)),
        lambda: StepPlan("10", (FULL,)),
        lambda: StepPlan((True, False), (FULL,)),
        lambda: StepPlan.uniform(True),
        lambda: StepPlan.uniform(4.0),
        lambda: StepPlan.uniform(4, 2.0),
        lambda: StepPlan.at(4, [1.5]),
        lambda: StepPlan.at("1050", []),
        lambda: StepPlan.spread([1.0], 0),
        lambda: TimeSampler(heavy=(0, 4)),
        lambda: TimeSampler(heavy=(8, 4)),
        lambda: TimeSampler(dropout=1.5),
        lambda: TimeSampler(first=(0.9, 0.6)),
        lambda: TimeSampler(first=(0.0, 0.6)),
        lambda: TimeSampler(first=(0.6, 0.9), phase=0),
    ],
)
def test_impossible_requests_are_refused(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"t": "10", "refresh": ["full"]}', "t: expected a list, got '10'"),
        ('{"t": [1, "0"], "refresh": ["full"]}', r"t\[1\]: expected a number, got '0'"),
        ('{"t": [true, false], "refresh": ["full"]}', r"t\[0\]: expected a number, got True"),
        ('{"t": [1, null], "refresh": ["full"]}', r"t\[1\]: expected a number, got None"),
        ('{"t": [1, [0]], "refresh": ["full"]}', r"t\[1\]: expected a number, got \[0\]"),
        ('{"t": [1, NaN, 0], "refresh": ["full", "full"]}', "decrease strictly"),
        ('{"t": [1e400, 0], "refresh": ["full"]}', r"lie in \[0, 1\]"),
        ('{"t": [1' + "0" * 400 + ', 0], "refresh": ["full"]}', "not a plan"),
        ('{"t": [1, 0], "refresh": "full"}', "refresh: expected a list"),
        ('{"t": [1, 0], "refresh": [0]}', r"refresh\[0\]: expected one of .*, got 0"),
        ('{"t": [1, 0], "refresh": ["FULL"]}', "expected one of .*, got 'FULL'"),
        ('{"t": [1, 0], "refresh": ["full"], "steps": 1}', "expected"),
        ("[" * 100_000, "not a plan"),
        ("3", "expected"),
    ],
)
def test_text_that_is_no_plan_is_told_where(text, message):
    with pytest.raises(ValueError, match=message) as error:
        StepPlan.from_json(text)
    assert len(str(error.value)) < 300


def test_numbers_of_numpy_and_torch_make_the_same_plan():
    """A plan of lists is hashable too, and all of them are equal."""
    want = StepPlan.at([1.0, 0.5, 0.25, 0.0], [0, 2])
    t = np.array([1.0, 0.5, 0.25, 0.0])
    for made in (
        StepPlan.at(t, np.array([0, 2])),
        StepPlan.at(torch.from_numpy(t), [np.int64(0), np.int32(2)]),
        StepPlan.at(t.astype(np.float32), torch.tensor([2, 0])),
        StepPlan(list(t), [FULL, KEEP, FULL]),
        StepPlan(t, np.array([FULL, KEEP, FULL])),
    ):
        assert made == want
        assert hash(made) == hash(want)
        assert {type(time) for time in made.t} == {float}
        assert StepPlan.from_json(made.to_json()) == want
    assert StepPlan.uniform(np.int64(8), np.int32(2)) == StepPlan.uniform(8, 2) == StepPlan.at(np.int64(8), [0, 4])
    assert StepPlan.spread(np.linspace(1, 0, 9), 2) == StepPlan.at(np.linspace(1, 0, 9), [0, 4])


@pytest.mark.parametrize("heavy", [(4, 32), (8, 8)])
def test_law_of_training_times(heavy):
    low, high = heavy
    counts = np.arange(low, high + 1)
    chance = np.log1p(1 / counts) / np.log((high + 1) / low)  # log-uniform on the integers
    times = TimeSampler(heavy=heavy)(draws())
    t, tau = times.t.numpy(), times.tau.numpy()
    assert ((t <= tau) & (tau <= 1) & (t > 0)).all()
    assert kstest(t, "uniform").statistic < 3e-4  # far below 0.001 of independent draws: t is stratified
    error = 4 / ROWS**0.5
    assert (tau == 1).mean() == pytest.approx((chance / (2 * counts)).sum(), abs=error / 4)
    for gap in (0.001, 0.02, 0.06, 0.1, 0.2):
        expected = (1 - gap) * (chance * np.maximum(1 - counts * gap, 0)).sum()
        assert (tau - t > gap).mean() == pytest.approx(expected, abs=error / 2)

    def distribution(y):  # density E[min(1, H y)] below 1
        wide = y[:, None]
        return (chance * np.where(wide < 1 / counts, counts * wide**2 / 2, wide - 1 / (2 * counts))).sum(1)

    grid = np.linspace(0.01, 0.99, 99)
    measured = np.searchsorted(np.sort(tau), grid, side="right") / ROWS
    np.testing.assert_allclose(measured, distribution(grid), atol=error / 2)


@pytest.mark.parametrize(("steps", "heavy"), [(16, 7), (16, 2), (32, 4), (8, 1)])
def test_segments_are_those_of_a_late_plan(steps, heavy):
    """tau of every step of it, and no context before its first heavy call, which is at 7/8."""
    plan, tau = StepPlan.late(steps, heavy), None
    for t, refresh in zip(plan.t, plan.refresh, strict=False):
        found = latest_heavy(torch.tensor([t]), torch.tensor([heavy]), torch.tensor([0.875]))
        tau = t if refresh is FULL else tau
        assert found.item() == pytest.approx(1 if tau is None else tau)


def chances(sampler):
    """P(H), for each H from the least to the largest."""
    low, high = sampler.heavy
    return np.diff(np.log(np.arange(low, high + 2))) / np.log((high + 1) / low)


def test_odds_of_few_heavy_calls():
    sampler = TimeSampler(heavy=(1, 8))
    expected = chances(sampler)
    found = np.bincount(sampler._num_heavy(draws()).long().numpy(), minlength=9) / ROWS
    assert found[0] == 0
    assert (np.abs(found[1:] - expected) < 4 * (expected / ROWS) ** 0.5).all()


def density(sampler, t, tau):
    """p(tau | t) of a time with context under `first`, dropout apart; its integral is P(F >= t). t, tau: (B,).

    F ~ U(a, b) is tau H / j in segment j, so p = sum over H, j <= H of P(H) H / (j (b - a)), where
    a <= tau H / j <= b and tau (j - 1) / j < t <= tau.
    """
    (a, b), total = sampler.first, torch.zeros_like(tau)
    for heavy, chance in enumerate(chances(sampler), sampler.heavy[0]):
        for j in range(1, heavy + 1):
            first = tau * heavy / j
            there = (a <= first) & (first <= b) & (tau * (j - 1) / j < t) & (t <= tau)
            total = total + chance * heavy / (j * (b - a)) * there
    return total


def test_law_of_late_plans():
    """t is uniform; (t, tau) has the density in closed form; without context is what comes before the first call."""
    sampler = TimeSampler(heavy=(1, 4), first=(0.5, 0.9), dropout=0.0)
    times = sampler(draws())
    t, tau = times.t, times.tau
    assert kstest(t.numpy(), "uniform").statistic < 3e-4
    assert ((t > 0) & (t <= tau) & (tau <= 1)).all()
    with_context = torch.zeros(ROWS, dtype=torch.bool).index_fill(0, times.heavy_rows, True)
    assert (tau[~with_context] == 1).all()
    assert float(tau[with_context].max()) <= 0.9
    for low in (0.0, 0.45, 0.55, 0.7, 0.85):
        here = (t > low) & (t <= low + 0.05)
        middle = low + 0.025
        assert with_context[here].double().mean() == pytest.approx(min(1, max(0, (0.9 - middle) / 0.4)), abs=0.02)
    fine, edges = 1000, np.linspace(0, 1, 11)
    grid = (torch.arange(fine).double() + 0.5) / fine
    p = density(sampler, grid[:, None].expand(fine, fine), grid[None].expand(fine, fine))
    expected = p.view(10, 100, 10, 100).sum((1, 3)).numpy() / fine**2
    found = np.histogram2d(t[with_context].numpy(), tau[with_context].numpy(), (edges, edges))[0] / ROWS
    np.testing.assert_allclose(found, expected, atol=1.5e-3)
    assert expected.sum() == pytest.approx(0.7, abs=1e-3)  # E[F]
    assert expected[0, 8] > 0.002  # one call at 0.8 to 0.9, and a context that old


def test_dropout_of_late_plans_is_among_images_with_a_context():
    times = TimeSampler(heavy=(1, 4), first=(0.5, 0.9))(draws(4000))
    assert (times.tau[times.heavy_rows] < 1).all()
    assert len(times.heavy_rows) == pytest.approx(0.5 * 0.7 * 4000, rel=0.05)


@pytest.mark.parametrize(("dropout", "size"), [(0.5, 32), (0.0, 64), (1.0, 0), (0.25, 48)])
def test_every_batch_keeps_its_share_of_contexts(dropout, size):
    for first in (0, 64, 6400, 10**9):
        kept = TimeSampler(dropout=dropout)(Draws(3, torch.arange(first, first + 64))).heavy_rows
        assert len(kept) == size
        assert len(kept.unique()) == size


def test_kept_contexts_have_the_law_of_all():
    times = TimeSampler(heavy=(4, 32))(draws())
    assert kstest(times.t[times.heavy_rows].numpy(), "uniform").statistic < 1e-3
    gaps = times.tau - times.t
    assert gaps[times.heavy_rows].mean() == pytest.approx(float(gaps.mean()), rel=0.01)


DROPOUTS = [0.0, 0.1, 0.236068, 0.25, 0.381966, 0.5, 0.618034, 0.7, 0.75, 0.763932, 0.9, 0.99]


@pytest.mark.parametrize("first", [0, 12_345_679])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_context_dropout_is_tied_to_nothing(dropout, first):
    """Kept rows have the law of all: of t, of the gap to tau given H, of H; at multiples of the golden ratio too.

    The bounds are those of independent draws: Kolmogorov's 1.95 / sqrt(n) for 1 in 1,000, 4 standard errors of a share.
    """
    rows = 20_000
    sampler, draws = TimeSampler(heavy=(4, 32), dropout=dropout), Draws(3, torch.arange(first, first + rows))
    times = sampler(draws)
    kept = times.heavy_rows
    assert len(kept) == pytest.approx((1 - dropout) * rows, abs=2 * np.log2(rows))
    assert kstest(times.t[kept].numpy(), "uniform").statistic < 1.95 / len(kept) ** 0.5
    quarter = (4 * times.t).long().clamp(max=3)
    for i in range(4):
        share = (quarter[kept] == i).double().mean()
        assert share == pytest.approx(0.25, abs=4 * (3 / 16 / len(kept)) ** 0.5)
    dropped = torch.ones(rows, dtype=torch.bool).index_fill(0, kept, False)
    gap, heavy = times.tau - times.t, sampler._num_heavy(draws)
    if 100 < len(kept) < rows:
        for values in (gap, gap * heavy, heavy):
            n = 1 / (1 / len(kept) + 1 / int(dropped.sum()))
            assert ks_2samp(values[kept].numpy(), values[dropped].numpy()).statistic < 1.95 / n**0.5


def test_the_radical_inverse_mirrors_binary_digits():
    rows = torch.tensor([0, 1, 2, 3, 4, 6, 2**31, 2**32 + 1])
    assert radical_inverse(rows).tolist() == [0, 0.5, 0.25, 0.75, 0.125, 0.375, 2.0**-32, 0.5]
    block = radical_inverse(torch.arange(64, 128))  # one in every 64th
    assert (block * 64).long().sort().values.tolist() == list(range(64))


@pytest.mark.parametrize("sampler", [TimeSampler(), TimeSampler(first=(0.6, 0.9)), SingleTime()], ids=str)
def test_times_depend_on_seed_and_row_alone(sampler):
    together, alone = sampler(draws(16)), sampler(Draws(3, torch.tensor([11])))
    assert together.t[11] == alone.t[0]
    assert together.tau[11] == alone.tau[0]
    assert (sampler(draws(16, seed=4)).t != together.t).all()


def test_a_single_rate_model_has_one_time():
    times = SingleTime()(draws(100))
    assert torch.equal(times.t, times.tau)
    assert torch.equal(times.heavy_rows, torch.arange(100))


def test_the_times_of_a_decoder_are_uniform_with_one_heavy_call():
    found = GivenTimes()(Draws(0, torch.arange(6000)))
    assert kstest(found.t.numpy(), "uniform").statistic < 1e-3
    assert torch.equal(found.heavy_rows, torch.arange(6000))
    assert bool((found.tau == 1).all())


def test_fixed_grid_of_training_times():
    times = TimeSampler(heavy=(8, 8), phase=0)(draws())
    torch.testing.assert_close((times.tau * 8).round(), times.tau * 8)
    assert ((times.tau - times.t >= 0) & (times.tau - times.t < 1 / 8)).all()
    assert (times.tau == 1).double().mean() == pytest.approx(1 / 8, abs=1e-4)
