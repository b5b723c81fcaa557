"""Sampling: `trajectory`, the one loop; `rollout`, its end; `sample_batches`, images from seeds in batches.

    for each step (t -> s) of the plan:
        FULL:     context = encode(z, t)        heavy; with the contexts of before that it asks for
        PARTIAL:  context = renew(z, t, context)
        NONE:     context = nothing
        z = step(denoise with that context)     light

Noise is keyed by (image seed, step, draw): an image does not depend on its batch, nor on the batch size. `StepNoise`
makes the numbers of several steps at once. Of M samples a condition, the members, member m of seed i has the key
i + 2^40 m, so member 0 is the image of the seed. What a denoiser reads of the condition alone is computed once for all
members, before the first step.
"""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from dualrate.config.serial import type_name
from dualrate.denoisers.denoiser import Denoiser, Wrapper, check_labels, device_of, read
from dualrate.diffusion.brief import Brief
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse, for_rows, shared_time
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.sampling.step import Carry, Denoise, Step, Stepped
from dualrate.system.device import own_defaults

# numbers made at once: so many that launching kernels takes little of the time, on a CPU no more than its caches hold
AHEAD = {"cpu": 2**18, "cuda": 2**22}


class StepNoise:
    """(step, draw) -> the random numbers of a process for states (B, *shape), keyed by image, step and draw alone.

    One draw launches some hundred kernels, however many numbers they make: at small batches the numbers of many steps
    are made at once. No number depends on the others.
    """

    def __init__(self, process: Process, draws: Draws, steps: int, shape: Sequence[int]) -> None:
        self.process, self.draws, self.steps, self.shape = process, draws, steps, tuple(shape)
        ahead = AHEAD.get(draws.row.device.type, AHEAD["cpu"])
        self.at_once = max(1, ahead // max(1, len(draws.row) * math.prod(shape)))
        self.numbers: dict[tuple[int, int], Tensor] = {}

    def __call__(self, step: int, draw: int) -> Tensor:
        if (step, draw) not in self.numbers:
            later = range(step, max(step + 1, min(step + self.at_once, self.steps - 1)))  # few draw at the last step
            noise = self.process.noise(self.draws, [f"step {i} draw {draw}" for i in later], *self.shape)
            self.numbers.update(((i, draw), numbers) for i, numbers in zip(later, noise, strict=True))
        return self.numbers.pop((step, draw))


@dataclass(frozen=True, repr=False)
class State(Brief):
    """The state of a trajectory before step i of the plan, at time t.

    z: (B, ...); t: (), on the host; context with its z_tau: of the latest heavy call; carry: the step's own
    """

    i: int
    z: Tensor
    t: Tensor
    context: Context
    z_tau: Tensor | None
    carry: Carry


StepDraw = Callable[[int, int], Tensor]  # (step, draw) -> random numbers, of the process's `noise`


def reuses(plan: StepPlan) -> bool:
    """Whether some step of the plan uses a context of another time."""
    return any(refresh.reuses for refresh in plan.refresh)


def check_reuse(denoiser: Denoiser, step: Step, plan: StepPlan) -> None:
    """Refuse a plan that reuses a context under a sampler that breaks the law the context was trained under.

    Raises ValueError for a Markovian-only denoiser with a step that is not. Warns of a step that draws noise where the
    context needs a smooth path. (`trajectory` refuses a second call of the network with a reused context.)
    """
    if not reuses(plan):
        return
    if denoiser.reuse is Reuse.MARKOV and not step.markovian:
        raise ValueError(
            f"{type(step).__name__} ({step}) changes the joint law of (z_t, z_tau), which a reused dual-rate context "
            "was trained on. Use Ancestral (with eta 1), SDEDPMSolver2M or a covariance step with the Markov kernel, "
            "a step of your own that keeps this law (markovian = True), or a heavy call at every step from the first"
        )
    if denoiser.reuse is Reuse.SMOOTH and step.draws_noise:
        warnings.warn(
            f"{type(step).__name__} draws noise at every step, but this denoiser's reuse needs a smooth path: use DDIM "
            "or DPMSolver2M",
            stacklevel=3,
        )


def trajectory(
    denoiser: Denoiser,
    step: Step,
    plan: StepPlan,
    z: Tensor,
    cond: Cond,
    draw: StepDraw,
    *,
    start: int = 0,
    state: State | None = None,
) -> Iterator[State]:
    """Yields the state before step `start`, then after every step of the plan; with gradient if the caller has it on.

    z: (B, ...) at plan.t[start]. state: one that an earlier trajectory over this plan yielded, to go on from; then z
    and start are not looked at.
    draw: (step, draw) -> the random numbers that the process draws a state by: standard normal ones shaped like z.
    Raises ValueError where the denoiser's context may not be reused under this step, which breaks the law of pairs or
    calls the network at a second time; and for a state of another plan. Warns of noise where a smooth path is needed.
    """
    check_reuse(denoiser, step, plan)
    times = [shared_time(t) for t in plan.t]
    if state is None:
        if not 0 <= start < plan.num_steps:
            raise ValueError(f"start is one of the plan's steps 0..{plan.num_steps - 1}, got {start}")
        state = State(start, z, times[start], Context(), None, step.start())
    elif float(state.t) != plan.t[state.i]:
        raise ValueError(f"this state stands at step {state.i} of another plan: its time is not {plan.t[state.i]}")
    if state.z_tau is None and any(refresh.reuses for refresh in plan.refresh[state.i : state.i + 1]):
        raise ValueError(f"step {state.i} reuses a context: start at a heavy step, or pass a state that holds one")
    yield state
    for i in range(state.i, plan.num_steps):
        z, t, s, refresh = state.z, state.t, times[i + 1], plan.refresh[i]
        context, z_tau = state.context.a_step_later(), state.z_tau
        if refresh is Refresh.NONE:
            context, z_tau = Context(), None
        elif refresh is Refresh.FULL:
            context, z_tau = denoiser.encode(z, t, cond).after(context), z
        elif refresh is Refresh.PARTIAL:
            context = denoiser.renew(z, t, context, cond)
        numbers = map(partial(draw, i), itertools.count())
        denoise = _calls(denoiser, step, refresh, z, t, cond, context)
        z, carry = _checked(step, step(denoise, z, t, s, numbers.__next__, state.carry), z)
        state = State(i + 1, z, s, context, z_tau, carry)
        yield state


def _checked(step: Step, stepped: object, z: Tensor) -> Stepped:
    """The z_s and carry that a step returned. Raises ValueError for anything else, and a z_s of another shape."""
    match stepped:
        case (Tensor() as z_s, carry) if z_s.shape == z.shape:
            return z_s, carry
        case (Tensor() as z_s, _):
            what = f"z_s of {tuple(z_s.shape)}, not {tuple(z.shape)}"
        case _:
            what = f"a {type(stepped).__name__}"
    raise ValueError(
        f"{type_name(type(step))} returned {what}; a step returns (z_s, carry), a state like z_t and a value"
    )


def _calls(
    denoiser: Denoiser, step: Step, refresh: Refresh, z_t: Tensor, t: Tensor, cond: Cond, context: Context
) -> Denoise:
    """The `denoise` of one step, whose first call returns the x_hat of `encode`, if that computed one of its z.

    The network does not run twice at the step's (z, t): its output is kept. A heavy step that first calls at another z
    or time has a context of that; so has every call where `encode` leaves nothing but x_hat. `denoise` raises
    ValueError at a second time where the context is a reused one.
    """
    at_start: Tensor | None = None
    begins, free = True, denoiser.reuse is Reuse.FREE  # then the context is the same at every time
    bare = refresh is Refresh.FULL and context.x_hat is not None and not context.features

    def denoise(z: Tensor, time: Tensor) -> Tensor:
        nonlocal context, at_start, begins
        at_t, used = time is t or torch.equal(time, t), context
        moved = bare or not at_t or (begins and z is not z_t and not torch.equal(z, z_t))
        context, begins = context if bare else context.aged(), False
        if at_t and z is z_t and (bare or used.x_hat is None):
            at_start = denoiser.denoise(z, t, used, cond) if at_start is None else at_start
            return at_start
        if moved and not free:
            if refresh.reuses and not at_t:
                raise ValueError(
                    f"{type(step).__name__} calls the network at a second time in a step, which needs a context of "
                    "that time: use DPMSolver2M, which calls it once, or a heavy call at every step"
                )
            used = denoiser.encode(z, time, cond) if refresh is Refresh.FULL else used.aged()
            context = used.aged() if at_t and not bare else context
        return denoiser.denoise(z, time, used, cond)

    return denoise


def rollout(denoiser: Denoiser, step: Step, plan: StepPlan, z: Tensor, cond: Cond, draw: StepDraw) -> Tensor:
    """The last z of a trajectory."""
    for state in trajectory(denoiser, step, plan, z, cond, draw):
        z = state.z
    return z


def first_state(process: Process, draws: Draws, shape: Sequence[int]) -> Tensor:
    """(B, *shape): the states in which the trajectories of these draws begin."""
    return process.prior(process.noise(draws, ["start"], *shape)[0], shape)


MEMBER = 1 << 40  # between the keys of two members of a seed


@dataclass(frozen=True)
class Shared(Wrapper):
    """A denoiser whose context depends on the condition alone: each heavy call of a plan is made once.

    contexts: by their times: as many calls as the plan has, and its price says
    """

    contexts: dict[float, Context] = field(default_factory=dict)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        if float(t) not in self.contexts:
            self.contexts[float(t)] = self.inner.encode(z, t, cond)
        return self.contexts[float(t)]


def _is_seed(value: object) -> bool:
    try:
        return -(2**63) <= operator.index(value) < 2**63  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False


def sample_batches(
    denoiser: Denoiser,
    step: Step,
    plan: StepPlan,
    shape: Sequence[int],
    seeds: Sequence[int],
    label: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    bfloat16: bool = False,
    given: Callable[[Tensor], Tensor] | None = None,
    members: int = 1,
    first_member: int = 0,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[State], None] | None = None,
) -> Iterator[Tensor]:
    """Images, batch by batch, without gradient: (b, *shape) float32, nominally in [-1, 1], on the device.

    shape:    of one image, (C, H, W)
    seeds:    one integer per image; an image depends on nothing but its seed, its label, the plan and the step
    label:    one class per image; None for an unconditional model
    device:   None: where the denoiser's networks are; where none are seen, the first GPU, or the CPU without one
    bfloat16: networks run under autocast; x_hat, states and noise stay float32
    given:    of a conditional model: seeds (b,) -> what these images are made of (b, C, h, w), on the device
    members:  M, images for each seed, which come one after the other, whatever the batch size; a heavy call that
              depends on the condition alone is made once for all of them
    first_member: number of the first of them
    progress: called with (images done, images in all)
    watch:    called with every state of every batch: before the first step, and after each; what it raises ends it all
    Raises ValueError for no seeds, labels that are not one per seed or not known, a step of another process, a batch
    size or members below 1, members of a seed that is not below 2^40, or a plan that does not go from noise (1) to
    data (0).
    """
    if not len(seeds):
        raise ValueError("nothing to sample: the list of seeds is empty")
    if batch_size < 1 or members < 1:
        raise ValueError(f"batch_size and members are at least 1, got {batch_size} and {members}")
    if (plan.t[0], plan.t[-1]) != (1, 0):
        raise ValueError(f"images are sampled from t = 1 to 0, this plan goes from {plan.t[0]} to {plan.t[-1]}")
    if strange := [seed for seed in seeds if not _is_seed(seed)]:
        raise ValueError(f"seeds are 64-bit integers, got {strange[0]!r}")
    if members + first_member > 1 and (strange := [seed for seed in seeds if not 0 <= seed < MEMBER]):
        raise ValueError(f"seeds with several members lie between 0 and 2^40, got {strange[0]}")
    if label is not None and len(label) != len(seeds):
        raise ValueError(f"one label per image: got {len(label)} labels for {len(seeds)} seeds")
    if label is not None:
        check_labels(denoiser, label)
    if (process := getattr(denoiser, "process", step.process)) != step.process:
        raise ValueError(f"a step goes along the paths of the denoiser's process, {process}, got one of {step.process}")
    device, at_once = device_of(denoiser, device), max(1, batch_size // members)  # seeds in a batch

    def drawn(seed: Tensor, of: Tensor | None, y: Tensor | None) -> Iterator[Tensor]:
        """Yields all members of these seeds, (seeds, members, ...), as many at a time as a batch holds."""
        shared = Shared(denoiser) if y is not None and denoiser.reuse is Reuse.FREE else denoiser
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            of_seeds = read(denoiser, Cond(of, y))
        numbers = torch.arange(first_member, first_member + members, device=device)
        for part in numbers.split(max(1, batch_size // len(seed))):
            draws = Draws(0, (seed[:, None] + MEMBER * part).flatten())
            cond = replace(of_seeds, label=None if of is None else for_rows(of, len(draws.row)))
            if y is not None and shared is denoiser and not cond.features:
                cond = Cond(cond.label, for_rows(y, len(draws.row)))
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                z = first_state(step.process, draws, shape)
                noise = StepNoise(step.process, draws, plan.num_steps, shape)
                for state in trajectory(shared, step, plan, z, cond, noise):
                    z = state.z
                    if watch is not None:
                        watch(state)
            yield step.process.data(z).float().unflatten(0, (len(seed), len(part)))

    for first in range(0, len(seeds), at_once):
        rows = slice(first, first + at_once)
        with own_defaults():
            seed = torch.tensor(list(seeds[rows]), dtype=torch.int64, device=device)
            of = None if label is None else torch.tensor(list(label[rows]), dtype=torch.int64, device=device)
            images = torch.cat(list(drawn(seed, of, None if given is None else given(seed))), 1).flatten(0, 1)
        if progress is not None:
            progress(members * min(first + at_once, len(seeds)), members * len(seeds))
        yield images
