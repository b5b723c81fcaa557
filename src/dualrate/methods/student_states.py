"""Where a few-step student is trained: pairs (t, s) and states z_t of its own law, without gradient.

    FromData        s ~ U(0, 1), t = min(s + U(0, 1 / N), 1), z_t ~ q(. | x)          any number of steps >= N
    SegmentRollout  z_tau ~ q(. | x) at a heavy time of a plan, from there the student's own steps      algorithm A
    FullRollout     z = noise at t = 1, from there the student's own steps: no data, labels only        algorithm B
    ForwardPairs    (z_t, z_tau) on one forward path of x: for pre-training

A dual-rate student must see z_t drawn given the z_tau whose context it gets, hence the rollouts. There t and tau lie on
the plan's grid, and s is uniform *inside* the interval (t_{i+1}, t_i): at the lower end of the last one, s = 0, z_s is
the student's own output, about which any two denoisers agree, and the last step would learn nothing.

Sources: Moment Matching Distillation (Salimans et al. 2024, arXiv 2406.04103) for `FromData`, Dual-Rate Diffusion
(arXiv 2605.18190) for A and B; what the latter leaves open (which step of a segment, several pairs from one path) is
ours. Steps are taken in turn by sample number, so that rows cover the plan evenly, however they are split (`turns`).

`StudentMethod` trains a student at such states: both versions of moment matching (moment_matching.py) derive from it.
`Distillation` is what they share with EM distillation (em_distillation.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Factor, FirstIterations, Pairs, Ranged, Steps
from dualrate.data.conditions import Conditioning, Unconditional
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Batch, Cond, Refresh, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Weighting, x_loss_weight
from dualrate.methods.times import stratified_uniform, to_device
from dualrate.networks.blocks import eval_mode
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.trajectory import trajectory
from dualrate.training.method import Loss, Phase, by_time_quartile


@dataclass(frozen=True)
class StudentStates:
    """R states of a batch of B rows, and the K heavy calls whose contexts they get; no tensor requires a gradient.

    z_t: (R, ...); t, s: (R,) float64, s < t
    row: (R,) the row of the batch that a state belongs to, in order, as many of each; call: (R,) the heavy call whose
         context it gets
    z_tau: (K, ...); tau: (K,) float64; call_row: (K,) the row of the batch that a heavy call belongs to
    light: (L,) the states at a later time than that of their context, perhaps none; None where no context is reused
    """

    z_t: Tensor
    t: Tensor
    s: Tensor
    row: Tensor
    call: Tensor
    z_tau: Tensor
    tau: Tensor
    call_row: Tensor
    light: Tensor | None = None

    def x_hat(self, student: Denoiser, cond: Cond) -> Tensor:
        """(R, ...): the student's output at every state, as a sampler gets it, with gradient through both networks.

        At a heavy time that is the encoder's own, where it has a head. cond: of the batch.
        """
        context = student.encode(self.z_tau, self.tau, cond[self.call_row])
        heavy_x_hat, light = context.x_hat, self.light
        if heavy_x_hat is None:
            return student.denoise(self.z_t, self.t, context.rows(self.call), cond[self.row])
        if light is None:
            return heavy_x_hat[self.call]
        later = context.aged().rows(self.call[light])
        x_hat = student.denoise(self.z_t[light], self.t[light], later, cond[self.row[light]])
        return heavy_x_hat[self.call].index_copy(0, light, x_hat)


def turns(draws: Draws, count: int) -> Tensor:
    """(B,) numbers below `count`: rows k count, ..., (k + 1) count - 1 have each once, in turn, from a random one on.

    If all began at 0, batches of half as many rows would meet the same ones in every second iteration.
    """
    row = draws.host.row
    first = Draws(draws.seed, row // count).uniform("first of a turn")
    return (row + (first * count).long()) % count


StateSource = Callable[[Denoiser, Batch, Cond, Draws], StudentStates]
"""Draws states for a batch, of (student, batch, cond, draws); a row's depend on nothing but its sample number."""


@dataclass(frozen=True)
class FromData(Ranged):
    """States of a student that calls its whole network at every step; it serves every number of steps >= `steps`."""

    steps: Steps
    process: Process

    @torch.no_grad()
    def __call__(self, student: Denoiser, batch: Batch, cond: Cond, draws: Draws) -> StudentStates:
        s, rows = stratified_uniform(draws.host), torch.arange(len(batch), device=batch.x.device)
        t, s = to_device(batch.x.device, (s + draws.host.uniform("t - s") / self.steps).clamp(max=1), s)
        z_t = self.process.add_noise(batch.x, t, self.process.noise(draws, ["z_t"], *batch.x.shape[1:])[0])
        return StudentStates(z_t, t, s, rows, rows, z_t, t, rows)


@dataclass(frozen=True)
class PlanStates(Ranged):
    """States at the steps of a plan, which has a context at every step. pairs: (t, s) per row"""

    plan: StepPlan
    process: Process
    pairs: Pairs = 1


@dataclass(frozen=True)
class SegmentRollout(PlanStates):
    """Algorithm A: the state at a heavy time from data, then the student's own steps.

    The pairs of a row are all in one segment, so that they share its heavy call.
    """

    @torch.no_grad()
    def __call__(self, student: Denoiser, batch: Batch, cond: Cond, draws: Draws) -> StudentStates:
        grid = _PlanSteps(self.plan, self.process, draws)
        step, start = turns(draws, self.plan.num_steps)[:, None], grid.heavy_step
        length = grid.segment_end[step] - start[step]
        apart = torch.arange(self.pairs) * length // self.pairs
        step = start[step] + (step - start[step] + apart) % length
        (noise,) = self.process.noise(draws, ["z_tau"], *batch.x.shape[1:])
        (tau,) = to_device(batch.x.device, grid.times[start[step[:, 0]]])
        z_tau = self.process.add_noise(batch.x, tau, noise)
        return grid.follow(student, z_tau, start[step[:, 0]], step, cond)


@dataclass(frozen=True)
class FullRollout(PlanStates):
    """Algorithm B: the student's own steps from noise; of the batch it uses labels, and x for its shape only.

    The pairs of a row are spread over the plan.
    """

    @torch.no_grad()
    def __call__(self, student: Denoiser, batch: Batch, cond: Cond, draws: Draws) -> StudentStates:
        first, apart = turns(draws, self.plan.num_steps), torch.arange(self.pairs) * self.plan.num_steps // self.pairs
        step = (first[:, None] + apart) % self.plan.num_steps
        shape = batch.x.shape[1:]
        noise = self.process.prior(self.process.noise(draws, ["rollout start"], *shape)[0], shape).to(batch.x.dtype)
        return _PlanSteps(self.plan, self.process, draws).follow(student, noise, torch.zeros_like(first), step, cond)


@dataclass(frozen=True)
class ForwardPairs(PlanStates):
    """z_t and z_tau of one forward path, at the steps of the plan that keep a context: where the light network works.

    A light network whose encoder has no head also runs at the heavy times; it meets those in the rollouts only.
    There is one pair per row.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plan.num_heavy == self.plan.num_steps:
            raise ValueError("this plan makes a heavy call at every step, so its light network has nothing to learn")

    @torch.no_grad()
    def __call__(self, student: Denoiser, batch: Batch, cond: Cond, draws: Draws) -> StudentStates:
        grid, rows = _PlanSteps(self.plan, self.process, draws), torch.arange(len(batch), device=batch.x.device)
        keeps = torch.nonzero(grid.heavy_step != torch.arange(len(grid.heavy_step))).flatten()
        step = keeps[turns(draws, len(keeps))]
        times = grid.times[step], grid.times[grid.heavy_step[step]], grid.inside(step[:, None]).squeeze(1)
        t, tau, s = to_device(rows.device, *times)
        noise_tau, noise_t = self.process.noise(draws, ["z_tau", "z_t"], *batch.x.shape[1:])
        z_t, z_tau = self.process.pair(batch.x, t, tau, noise_tau, noise_t)
        return StudentStates(z_t, t, s, rows, rows, z_tau, tau, rows, light=rows)


class _PlanSteps:
    """A plan's steps as tensors on the host, which thus knows what to compute, and paths along them for `draws`.

    times: (N + 1,); heavy_step, segment_end: (N,), for every step the one of its heavy call, and of the next or N
    """

    def __init__(self, plan: StepPlan, process: Process, draws: Draws) -> None:
        self.plan, self.process, self.draws = plan, process, draws
        self.heavy = [i for i, refresh in enumerate(plan.refresh) if refresh is Refresh.FULL]
        self.ends = [*self.heavy[1:], plan.num_steps]
        lengths = torch.tensor([end - first for first, end in zip(self.heavy, self.ends, strict=True)])
        self.times = torch.tensor(plan.t, dtype=torch.float64)
        self.heavy_step = torch.tensor(self.heavy).repeat_interleave(lengths)
        self.segment_end = torch.tensor(self.ends).repeat_interleave(lengths)

    def inside(self, step: Tensor) -> Tensor:
        """s: (B, k), uniform in the interval below every step's time, open at both ends."""
        upper, lower = self.times[step], self.times[step + 1]
        return lower + self.draws.host.uniform("s", step.shape[1]) * (upper - lower)

    def follow(self, student: Denoiser, z: Tensor, start: Tensor, step: Tensor, cond: Cond) -> StudentStates:
        """States at `step`: (B, k) of each row's path, which begins as z: (B, ...) at the heavy step `start`: (B,).

        A row is followed to the end of its last step's segment, so contexts that nothing asks for are not computed. The
        student may be called with no rows.
        """
        z, last = z.clone(), step.amax(1)
        z_t = z.new_empty(*step.shape, *z.shape[1:])
        z_tau = z.new_zeros(len(z), self.plan.num_steps, *z.shape[1:])  # filled at heavy steps
        for first, end in zip(self.heavy, self.ends, strict=True):
            rows = torch.nonzero((start <= first) & (last >= first)).flatten()
            furthest, steps = min(self.plan.num_steps - 1, end), step[rows]
            (rows,) = to_device(z.device, rows)
            z_tau[rows, first] = z[rows]
            for i, state in enumerate(self.path(student, z[rows], rows, cond[rows], first, furthest), first):
                of_row, of_pair = to_device(z.device, *torch.nonzero(steps == i, as_tuple=True))
                z_t[rows[of_row], of_pair] = state[of_row]
                if i == end:
                    z[rows] = state
        return self.gather(z_t, z_tau, step)

    def path(self, student: Denoiser, z: Tensor, rows: Tensor, cond: Cond, first: int, last: int) -> list[Tensor]:
        """States at steps first..last: `z` itself, then the student's own ancestral steps."""
        draws = Draws(self.draws.seed, self.draws.row[rows])

        def draw(i: int, count: int) -> Tensor:
            return self.process.noise(draws, [f"rollout step {i} draw {count}"], *z.shape[1:])[0]

        states = trajectory(student, Reverse(self.process), self.plan, z, cond, draw, start=first)
        return [state.z for state in islice(states, last - first + 1)]

    def gather(self, z_t: Tensor, z_tau: Tensor, step: Tensor) -> StudentStates:
        """One entry per pair; pairs of a row whose contexts are the same share the heavy call."""
        row = torch.arange(len(step)).repeat_interleave(step.shape[1])
        heavy = self.heavy_step[step].flatten()
        calls, call = torch.unique(row * self.plan.num_steps + heavy, return_inverse=True)
        call_row, at = calls // self.plan.num_steps, calls % self.plan.num_steps
        light = torch.nonzero(heavy < step.flatten()).flatten()
        times = self.times[step].flatten(), self.inside(step).flatten(), self.times[at]
        t, s, tau, row, call, call_row, at, light = to_device(z_t.device, *times, row, call, call_row, at, light)
        reused = light if self.plan.num_heavy < self.plan.num_steps else None
        return StudentStates(z_t.flatten(0, 1), t, s, row, call, z_tau[call_row, at], tau, call_row, reused)


def gaps(gap: Tensor, s: Tensor) -> dict[str, Tensor]:
    """`moment_gap`, the mean square of g_phi - g_theta, and its parts in four quarters of s, whose mean it is."""
    square = gap.detach().square().flatten(1).mean(1)
    return {"moment_gap": square.mean()} | by_time_quartile("gap_s", square, s)


@dataclass(frozen=True, kw_only=True)
class Distillation(Ranged):
    """A student of a teacher.

    networks:     the student's
    teacher:      never changed; it sees states of `process`
    student_rate: factor of the student's learning rate, below 1 so that an auxiliary can follow it
    condition:    whose `weighed` says how much each number counts
    """

    networks: nn.ModuleDict
    student: Denoiser
    teacher: Denoiser
    process: Process
    weighting: Weighting
    student_rate: Factor = 1.0
    condition: Conditioning = Unconditional()

    def denoiser(self) -> Denoiser:
        return self.student

    def deviance(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """(R,): that of the process, of numbers that the condition weighs."""
        return self.process.deviance(self.condition.weighed(x), self.condition.weighed(x_hat))

    def weight(self, t: Tensor, like: Tensor) -> Tensor:
        """w(t), shaped to multiply `like`."""
        return expand(self.weighting.snr_weight(self.process.schedule.log_snr(t)), like)


@dataclass(frozen=True, kw_only=True)
class StudentMethod(Distillation):
    """A student, where it is trained, and its pre-training.

    states: where (z_t, t, s) and the context come from
    pretraining: iterations of the denoising loss at `pretraining_states` with the encoder's U-ViT, `backbone`, frozen:
        the light network and the projections learn to read it. Afterwards all of the student trains
    """

    states: StateSource
    pretraining: FirstIterations = 0
    pretraining_states: StateSource | None = None
    backbone: nn.Module | None = None

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        if iteration >= self.pretraining:
            return (self.phase(iteration - self.pretraining),)
        assert self.backbone is not None
        frozen_ids = {id(weight) for weight in self.backbone.parameters()}
        trained = tuple(weight for weight in self.networks.parameters() if id(weight) not in frozen_ids)
        return (Phase("pretraining", trained, self.pretraining_loss),)

    def phase(self, iteration: int) -> Phase:
        """The update of an iteration after pre-training, counted from there."""
        return Phase("student", tuple(self.networks.parameters()), self.student_loss, self.student_rate)

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        raise NotImplementedError

    def pretraining_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The denoising loss of the student at `pretraining_states`."""
        assert self.pretraining_states is not None
        assert self.backbone is not None
        states = self.pretraining_states(self.student, batch, batch.cond, draws)
        with eval_mode(self.backbone):
            x_hat = states.x_hat(self.student, batch.cond)
        error = self.deviance(batch.x[states.row], x_hat)
        return Loss((x_loss_weight(self.weighting, self.process.schedule, states.t).to(error.dtype) * error).mean())

    def sampled(self, batch: Batch, draws: Draws) -> tuple[StudentStates, Tensor, Tensor, Tensor]:
        """States, x~ there (with gradient, if the caller has it on), x drawn of it, and z_s ~ q(z_s | z_t, sg x).

        The states are a sampler's, so without dropout; x~ is with it.
        """
        with eval_mode(self.networks):
            states = self.states(self.student, batch, batch.cond, draws)
        x = states.x_hat(self.student, batch.cond)
        of_states = draws.repeated(len(states.row) // len(batch))
        drawn = self.process.drawn(x.detach(), of_states, "x")
        (noise,) = self.process.noise(of_states, ["z_s"], *x.shape[1:])
        return states, x, drawn, self.process.posterior(states.z_t, drawn, states.t, states.s).sample(noise)

    def descent(self, loss: Tensor, drawn: Tensor, gap: Tensor, states: StudentStates) -> Loss:
        """E w(s) L(eta): its value means nothing, its gradient does. loss: (R,); drawn, gap: (R, ...).

        Logs: `gaps`, and `spread` in quarters of t: the variance over the places of what was drawn, a mean over
        channels; of tokens (1 - sum p^2) / V, p their shares in a sample. Where t is high z_t says little of x: there,
        in `spread_t3`, it is small for a student that collapses to grey, or to one token.
        """
        places = drawn.reshape(*drawn.shape[:2], -1)  # (R, C, of each channel)
        spread = by_time_quartile("spread_t", places.var(2, correction=0).mean(1), states.t)
        return Loss((self.weight(states.s, loss) * loss).mean(), gaps(gap, states.s) | spread)
