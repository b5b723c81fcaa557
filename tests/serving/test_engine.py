"""Requests drawn together are those drawn alone, whatever the others ask for, and none is in another's way."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from contracts.test_contracts import MADE, PROCESS, STEPS, conditions, may_reuse
from torch import Tensor

import dualrate as dr
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.random import Draws
from dualrate.sampling.trajectory import rollout
from dualrate.serving.engine import Batched, Engine

SHAPE = (1, 8, 8)


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
        cond = conditions(Draws(0, torch.tensor(self.seeds)), self.denoiser)
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
