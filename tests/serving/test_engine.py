"""Requests drawn together are those drawn alone, whatever the others ask for, and none is in another's way."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from contracts.test_contracts import MADE, PROCESS, STEPS, conditions, may_reuse
from serving.made import model
from torch import Tensor

import dualrate as dr
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.diffusion.random import Draws
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Guidance
from dualrate.sampling.trajectory import rollout
from dualrate.serving.engine import Batched, Capacity, Drawing, Engine, Full

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However busy the machine is, a turn waits for all."""
    monkeypatch.setattr("dualrate.serving.engine.PAUSE", 20.0)


@dataclass(frozen=True)
class Asked:
    """A trajectory in float64."""

    denoiser: dr.Denoiser
    step: dr.Step
    plan: dr.StepPlan
    seeds: Sequence[int]
    members: int = 1
    guidance: float = 1.0

    def through(self, denoiser: dr.Denoiser) -> Tensor:
        draws = Draws(0, torch.tensor([seed * 10 + m for seed in self.seeds for m in range(self.members)]))
        of = self.denoiser.inner if isinstance(self.denoiser, Counted) else self.denoiser
        cond = conditions(Draws(0, torch.tensor(self.seeds)), of)
        if self.guidance != 1:
            denoiser = Guided(denoiser, PROCESS, self.guidance, 3)
        with torch.no_grad():
            cond = denoiser.read(cond) if isinstance(denoiser, dr.Denoiser) else cond
            cond = replace(cond, label=None if cond.label is None else cond.label.repeat_interleave(self.members))
            return rollout(
                denoiser, self.step, self.plan, draws.normal("z", *SHAPE).double(), cond,
                lambda i, j: draws.normal(f"{i} {j}", *SHAPE).double(),
            )  # fmt: skip


def together(engine: Engine, *several: Asked) -> list[Tensor]:
    """All at once: none begins before all have a place."""
    gate = threading.Barrier(len(several))

    def draw(asked: Asked) -> Tensor:
        with engine.enter(len(asked.seeds)) as drawing:
            gate.wait(30)
            return asked.through(Batched(asked.denoiser, drawing, False))

    with ThreadPoolExecutor(len(several)) as pool:
        return list(pool.map(draw, several))


def of_plans(denoiser: dr.Denoiser, make_step: Callable[[dr.StepPlan], dr.Step], **more: object) -> list[Asked]:
    reuses = may_reuse(denoiser, make_step(dr.StepPlan.uniform(2)))
    plans = [dr.StepPlan.uniform(n, min(n, h) if reuses else n) for n, h in ((3, 2), (5, 1), (4, 4))]
    plans = [plan.renewing(denoiser.between) for plan in plans]
    return [
        Asked(denoiser, make_step(plan), plan, seeds, **more)  # type: ignore[arg-type]
        for plan, seeds in zip(plans, ([0], [1, 2], [3]), strict=True)
    ]


def same(engine: Engine, several: Sequence[Asked]) -> None:
    for got, asked in zip(together(engine, *several), several, strict=True):
        torch.testing.assert_close(got, asked.through(asked.denoiser), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MADE)
def test_plans_of_every_denoiser_are_drawn_together_as_alone(name):
    denoiser = MADE[name]()
    make_step = next(make for make in STEPS.values() if may_reuse(denoiser, make(dr.StepPlan.uniform(4))))
    with Engine() as engine:
        same(engine, of_plans(denoiser, make_step))
        assert not engine._alone or name in ("guided", "oracle")  # guidance belongs around the engine's denoiser
        assert name in ("guided", "oracle") or engine.rows.total() > engine.batches.total() + 3
        assert (engine.waiting, engine.images_at_work) == (0, 0)


@pytest.mark.parametrize("name", STEPS)
def test_every_sampler_is_drawn_together_as_alone(name):
    denoiser = MADE["dual"]()
    with Engine() as engine:
        same(engine, of_plans(denoiser, STEPS[name]) + of_plans(denoiser, STEPS["ancestral"], guidance=2.5))


@dataclass
class Counted(dr.Denoiser):
    """Counts the calls of the networks of another, their rows, and the requests' order in them."""

    inner: dr.Denoiser
    calls: list[tuple[str, int]] = field(default_factory=list)
    fails: Callable[[str, Tensor], bool] = lambda method, z: False
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def _count(self, method: str, z: Tensor) -> None:
        self.begun.set()
        assert self.gate.wait(30)
        self.calls.append((method, len(z)))
        if self.fails(method, z):
            raise FloatingPointError("not a number")

    def read(self, cond: Cond) -> Cond:
        assert cond.given is not None
        self._count("read", cond.given)
        return self.inner.read(cond)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        self._count("encode", z)
        return self.inner.encode(z, t, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        self._count("denoise", z)
        return self.inner.denoise(z, t, context, cond)

    def rows(self, method: str) -> list[int]:
        return [rows for of, rows in self.calls if of == method]


def ancestral(steps: int, heavy: int) -> tuple[dr.Step, dr.StepPlan]:
    return dr.Ancestral(PROCESS), dr.StepPlan.uniform(steps, heavy)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", ["dual decoder", "both rates", "decoder"])
def test_samples_of_a_condition_are_drawn_together_whatever_their_number(name, guidance):
    """Members share a row of the condition, in each request as many as it has."""
    heavy = 1 if name == "dual decoder" else 2
    step, plan = ancestral(4, heavy)
    several = [Asked(MADE[name](), step, plan, seeds, m, guidance) for seeds, m in (([0, 1], 4), ([2], 6), ([3], 1))]
    with Engine() as engine:
        same(engine, several)
        assert not engine._alone


def test_requests_of_one_condition_share_its_heavy_call():
    """While one of them is at work: its context is not kept for later."""
    step, plan = ancestral(3, 1)
    counted = Counted(MADE["dual decoder"]())
    alike = [Asked(counted, step, plan, [5]) for _ in range(4)]
    with Engine() as engine, ThreadPoolExecutor(1) as pool:
        came, submit = list[str](), engine.submit
        engine.submit = lambda call: came.append(call.method) or submit(call)  # its turns may take any
        drawn = pool.submit(together, engine, *alike)
        wait_until(lambda: len(came) == 4)
        counted.gate.set()
        got = drawn.result(30)
        assert counted.rows("encode") == [1]
        assert max(counted.rows("denoise")) == 4
        for images in got:
            torch.testing.assert_close(images, alike[0].through(counted.inner), rtol=1e-9, atol=1e-10)
        together(engine, alike[0], replace(alike[1], seeds=[6]))
        assert sum(counted.rows("encode")) == 3


def test_requests_take_turns_where_not_all_have_room():
    """A small one is drawn while large ones that came before it are at work, and keeps none of them from its steps."""
    counted, ends = Counted(MADE["dual"]()), []
    of = [([0, 1], 20), ([2, 3], 20), ([4], 4)]
    with Engine(Capacity(rows=2)) as engine, ThreadPoolExecutor(3) as pool:

        def draw(seeds: list[int], steps: int) -> None:
            with engine.enter(len(seeds)) as drawing:
                Asked(counted.inner, *ancestral(steps, steps), seeds).through(Batched(counted, drawing, False))
            ends.append(len(seeds))

        waiting = [pool.submit(draw, *of[0])]
        wait_until(lambda: engine.batches.total() == 0 and engine.waiting == 0 and bool(engine._drawings))
        waiting += [pool.submit(draw, *one) for one in of[1:]]
        wait_until(lambda: engine.waiting == 2)
        counted.gate.set()
        for one in waiting:
            one.result(30)
    assert ends == [1, 2, 2]
    turns = counted.rows("encode")[:12]
    assert turns.count(1) == 4, turns  # in few rows it is soon done
    assert turns[:6].count(2) >= 2, turns
    assert max(counted.rows("denoise")) == 2


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_a_batch_takes_about_as_long_as_it_may():
    counted = Counted(MADE["dual"](), fails=lambda method, z: time.sleep(0.02 * len(z)))
    counted.gate.set()
    step, plan = ancestral(6, 6)
    with Engine(Capacity(seconds=0.05)) as engine:
        together(engine, *(Asked(counted, step, plan, [seed]) for seed in range(8)))
    assert max(counted.rows("encode")[6:]) <= 3


def test_what_is_cancelled_ends_while_it_waits_and_its_place_is_free():
    counted = Counted(MADE["dual"]())
    asked = Asked(counted, *ancestral(4, 4), [0])
    with Engine(Capacity(images=2)) as engine, ThreadPoolExecutor(2) as pool:
        first, second = engine.enter(1), engine.enter(1)

        def draw(drawing: Drawing) -> Tensor:
            with drawing:
                return asked.through(Batched(counted, drawing, False))

        at_work = pool.submit(draw, first)
        assert counted.begun.wait(30)
        waiting = pool.submit(draw, second)
        wait_until(lambda: engine.waiting == 1)
        with pytest.raises(Full, match="2 images are at work, and of 1 more there would be over 2: try again in a few"):
            engine.enter(1)
        second.cancel()
        with pytest.raises(CancelledError):
            waiting.result(30)  # though the call of the first is still at work
        assert engine.images_at_work == 1
        counted.gate.set()
        torch.testing.assert_close(at_work.result(30), asked.through(counted.inner))


def test_a_call_that_fails_is_an_error_of_its_own_request_alone():
    """So is one whose rows are no numbers; the others are drawn, and so are those that come after."""
    counted = Counted(MADE["dual"](), fails=lambda method, z: bool(z.isnan().any()))
    counted.gate.set()
    good = [Asked(counted, *ancestral(3, 2), [seed]) for seed in range(3)]

    class Spoiled(dr.Ancestral):
        def __call__(self, denoise, z, t, s, draw, carry):
            z, carry = super().__call__(denoise, z, t, s, draw, carry)
            return z * float("nan"), carry

    bad = replace(good[0], step=Spoiled(PROCESS))
    with Engine() as engine, ThreadPoolExecutor(4) as pool:

        def draw(asked: Asked) -> Tensor:
            with engine.enter(1) as drawing:
                return asked.through(Batched(counted, drawing, False))

        for _ in range(2):
            drawn = [pool.submit(draw, asked) for asked in (*good, bad)]
            for one, asked in zip(drawn, good, strict=False):
                torch.testing.assert_close(one.result(30), asked.through(counted.inner), rtol=1e-9, atol=1e-10)
            with pytest.raises(FloatingPointError, match="not a number"):
                drawn[-1].result(30)
        assert (engine.alive, engine.images_at_work, engine._alone) == (True, 0, set())


def test_a_call_that_cannot_be_told_from_others_fails_and_the_engine_goes_on():
    counted = Counted(MADE["dual"]())
    counted.gate.set()
    asked = Asked(counted, *ancestral(3, 2), [0])
    with Engine() as engine, engine.enter(1) as drawing:
        z, t, cond = torch.zeros(1, *SHAPE), torch.tensor(0.5).double(), Cond(label=[1])  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="unhashable"):
            pool.submit(Batched(counted, drawing, False).denoise, z, t, Context(), cond).result(10)
        assert engine.alive
        torch.testing.assert_close(together(engine, asked)[0], asked.through(counted.inner), rtol=1e-9, atol=1e-10)


def test_a_context_that_goes_while_it_is_looked_for_is_made_again():
    """Its last request may be left at any time."""

    class Going(WeakValueDictionary):
        def __contains__(self, key: object) -> bool:
            there = super().__contains__(key)
            self.pop(key, None)
            return there

    asked = Asked(MADE["dual decoder"](), *ancestral(3, 1), [5])
    with Engine() as engine:
        engine._shared = Going()
        same(engine, [asked, asked])


def test_a_denoiser_that_takes_no_batch_is_called_for_each_request():
    @dataclass
    class OfOne(Counted):
        def denoise(self, z, t, context, cond):
            float(t)  # as of a plan
            return super().denoise(z, t, context, cond)

    picky = OfOne(MADE["dual"]())
    picky.gate.set()
    several = [Asked(picky, *ancestral(steps, 1), [steps]) for steps in (3, 4, 5)]
    with Engine() as engine:
        for got, asked in zip(together(engine, *several), several, strict=True):
            torch.testing.assert_close(got, asked.through(picky.inner), rtol=1e-9, atol=1e-10)
        assert engine._alone


def test_an_engine_that_ends_ends_what_waits():
    counted = Counted(MADE["dual"]())
    with ThreadPoolExecutor(1) as pool, Engine() as engine:
        drawing = engine.enter(1)
        asked = Asked(counted, *ancestral(3, 3), [0])
        drawn = pool.submit(asked.through, Batched(counted, drawing, False))
        threading.Timer(0.2, counted.gate.set).start()
        wait_until(drawn.running)
        time.sleep(0.05)
    with pytest.raises(CancelledError):
        drawn.result(30)
    with pytest.raises(Full):
        engine.enter(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_the_engine_dies_its_requests_end(monkeypatch):
    """So a server that is told to stop then waits for none of them."""
    counted = Counted(MADE["dual"]())

    def dies(*of: object) -> None:
        raise SystemError

    monkeypatch.setattr(Engine, "_answer", dies)  # with a call that was taken
    with ThreadPoolExecutor(1) as pool, Engine() as engine:
        drawn = pool.submit(Asked(counted, *ancestral(3, 3), [0]).through, Batched(counted, engine.enter(1), False))
        with pytest.raises(CancelledError):
            drawn.result(30)
        assert not engine.alive


def test_drawers_of_many_settings_are_drawn_as_alone():
    """Plans, samplers, guidance, classes and seeds of their own, in whole bytes."""
    of = model()
    settings = [(4, 2, None, 1.0, None), (6, 1, None, 3.0, 1), (3, 3, "ddim", 1.0, None), (5, 2, "sde-dpm++2m", 1.5, 2)]
    drawers = [
        Choice(n, h, sampler).drawer(of, guidance=Guidance(w), label=label, note=lambda text: None)
        for n, h, sampler, w, label in settings
    ]
    steps: list[list[int]] = [[] for _ in drawers]

    def draw(number: int) -> np.ndarray:
        with engine.enter(3) as drawing:
            see = lambda done, x_hat: steps[number].append(done if x_hat is None else done + len(x_hat) * 100)  # noqa: E731
            return drawing.images(drawers[number], range(number, number + 3), see)

    with Engine() as engine, ThreadPoolExecutor(4) as pool:
        for number, images in enumerate(pool.map(draw, range(4))):
            alone = drawers[number].draw(range(number, number + 3)).images
            assert np.abs(images.astype(int) - alone.astype(int)).max() <= 1  # of rounding
    assert steps[0] == [0, 301, 302, 303, 304]


def test_a_request_alone_has_the_same_bits():
    drawer = Choice(4, 2).drawer(model(), note=lambda text: None)
    with Engine() as engine, engine.enter(2) as drawing:
        np.testing.assert_array_equal(drawing.images(drawer, range(2)), drawer.draw(range(2)).images)
