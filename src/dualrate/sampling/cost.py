"""The cost of sampling: multiply-adds, by torch's formulas, of a heavy call, a light call, and an image under a plan.

1 multiply-add = 1 MAC = 2 FLOPs. Counted are matrix products and convolutions (torch.utils.flop_counter), which is what
papers count, and the recurrences of scans; norms, activations and the sampler's own arithmetic are not. Projections of
a context are part of the heavy call that computes them.

    image = branches x (H x heavy / M + N x light) + decode,   branches = 2 under guidance, M members share a heavy call
    image = branches x (read / M + H x heavy + N x light) + decode,   where they share a reading of it instead

where a step that uses the encoder's own output makes no light call, and calls that renew a part of a context are light
ones at their own cost. So are those without a context where that is another network; else they are priced as light
calls, of which they lack at most the embedding of tau. Outside a guidance interval a light call runs one branch; calls
that make a context always run both. Where the cost of a call depends on its rows (`Denoiser.varies`), an image
costs what `mean_macs` counts while images are drawn; a call, that of a row of zeros.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from dualrate.config.serial import of_package, type_name
from dualrate.denoisers.denoiser import Denoiser, Metered, abilities, device_of, read
from dualrate.diffusion.context import Cond, Context, Refresh, Reuse, Shape
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Process
from dualrate.networks import scan
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import State, sample_batches
from dualrate.system.device import pick_device

# fused attention by the shapes of queries, keys and values; torch counts that of GPUs alone
FORMULAS: dict[Any, Any] = (
    flop_registry
    | scan.FORMULAS
    | {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **more: sdpa_flop_count(
            q.shape, k.shape, v.shape
        )
    }
)


@dataclass(frozen=True)
class CallCost:
    """The cost of one row of a heavy (encode) and of a light (denoise with its context) call: MACs, or any other unit.

    denoised: whether a heavy call has denoised already, so that its step makes no light one
    bare:    whether it leaves no features behind: then further calls of its step are heavy ones, too
    of_condition: whether a heavy call sees the condition alone, so that the members of one share it
    decode:  once for each image: the decoding of its latent
    partial: a call that renews a part of the context, where the denoiser makes such
    alone:   a denoise call without a context, where that is no light one (`alone_differs`)
    read:    of a condition, before the first step, where the denoiser reads
    """

    heavy: float
    light: float
    denoised: bool = False
    decode: float = 0
    partial: float = 0
    alone: float | None = None
    read: float = 0
    of_condition: bool = False
    bare: bool = False

    @property
    def without(self) -> float:
        """The cost of a denoise call without a context."""
        return self.light if self.alone is None else self.alone

    def shared(self, members: int) -> CallCost:
        """The cost of each of M = `members` samples that share all calls which see their condition alone."""
        return replace(self, read=self.read / members, heavy=self.heavy / (members if self.of_condition else 1))

    def of(self, steps: int, heavy: int, alone: int = 0) -> float:
        """The cost of an image of N steps, H of them with a heavy call and `alone` of them without a context."""
        light = (steps - heavy * self.denoised - alone) * self.light + alone * self.without
        return self.read + heavy * self.heavy + light + self.decode

    def affordable(self, steps: int, budget: float) -> NDArray[np.bool_]:
        """A table, [heavy calls, steps without a context], of whether a plan of N steps may have them within a budget.

        It has one column where a step without a context costs as much as a light call.
        """
        counted, most = self.alone is not None, budget * (1 + 1e-9)

        def fits(heavy: int, alone: int) -> bool:
            exists = heavy + alone <= steps and (heavy > 0 or alone == steps or not counted)
            return exists and self.of(steps, heavy, alone) <= most

        columns = range(steps + 1 if counted else 1)
        return np.array([[fits(heavy, alone) for alone in columns] for heavy in range(steps + 1)])


def in_macs(count: float) -> str:
    """A number of multiply-adds, in words."""
    unit, size = next(((unit, size) for unit, size in (("G", 1e9), ("M", 1e6)) if count >= size), ("k", 1e3))
    return f"{count / size:.3g} {unit}MACs"


@dataclass(frozen=True, repr=False)
class PlanCost:
    """The calls that one image takes, and their cost.

    heavy_calls, light_calls: rows per image, guidance branches counted
    partial_calls, alone_calls: of the light ones, those that renew a part of a context, and those without one
    mean: MACs of all calls of an image, where these differ from image to image; None: as the calls cost
    members: images that share a heavy call, or a reading of their condition
    read_calls: rows of conditions
    """

    calls: CallCost
    heavy_calls: int
    light_calls: int
    mean: float | None = None
    partial_calls: int = 0
    alone_calls: int = 0
    members: int = 1
    read_calls: int = 0

    @property
    def macs(self) -> int:
        return int(self.total(self.calls) if self.mean is None else self.mean + self.calls.decode)

    def total(self, calls: CallCost) -> float:
        """The total price of these calls at the costs `calls`, in seconds or any other unit."""
        calls = calls.shared(self.members)
        reusing = self.light_calls - self.partial_calls - self.alone_calls
        light = reusing * calls.light + self.partial_calls * calls.partial + self.alone_calls * calls.without
        return self.read_calls * calls.read + self.heavy_calls * calls.heavy + light + calls.decode

    @property
    def flops(self) -> int:
        return 2 * self.macs

    def __repr__(self) -> str:
        """The sum, then a line for each kind of calls, with what one of them costs."""
        calls, reusing = self.calls, self.light_calls - self.partial_calls - self.alone_calls
        shared = f", shared by {self.members} members" * (self.members > 1)
        kinds = (
            (self.read_calls, calls.read, f"to read the condition{shared}"),
            (self.heavy_calls, calls.heavy, f"a heavy call{shared * calls.of_condition}"),
            (reusing, calls.light, "a light call"),
            (self.partial_calls, calls.partial, "a light call that renews a part"),
            (self.alone_calls, calls.without, "a light call without a context"),
            (int(calls.decode > 0), calls.decode, "to decode"),
        )
        lines = [f"  {count:4} x {in_macs(each)} {name}" for count, each, name in kinds if count]
        mean = ", on average" * (self.mean is not None)
        return "\n".join([f"{in_macs(self.macs)} a sample{mean} (two FLOPs each)", *lines])


def macs_of(call: Callable[[], object]) -> int:
    """Multiply-adds of whatever `call` runs."""
    with torch.inference_mode(False), torch.no_grad(), _Counter() as counter:  # that mode hides products of matrices
        call()
    return counter.flops // 2


class _Counter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode, whose first use takes seconds: it loads torch's compiler."""

    flops = 0

    def counted(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, FORMULAS.get(func.overloadpacket)
        if (
            formula is None and func is not torch.ops.prim.device.default
        ):  # of parts, perhaps, which only tensors of inference mode do not show by themselves
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


_Counter.__torch_dispatch__ = _Counter.counted  # set here, since torch wraps what a class defines by its compiler


def call_cost(
    denoiser: Denoiser,
    shape: Shape,
    label: int | None,
    device: torch.device | str | None = None,
    *,
    given: Shape | None = None,
) -> CallCost:
    """Counts one call of each kind on a row of zeros.

    shape: (C, H, W) of states; given: of the condition; device: as of `sample_batches`
    """
    return priced(denoiser, 1, shape, label, given, device_of(denoiser, device), macs_of)


def priced(
    denoiser: Denoiser,
    rows: int,
    shape: Shape,
    label: int | None,
    condition_shape: Shape | None,
    device: torch.device,
    price: Callable[[Callable[[], object]], float],
) -> CallCost:
    """The `price` of one call of each kind on so many rows of zeros: its MACs, or seconds. shape: of states"""
    z, t = torch.zeros(rows, *shape, device=device), torch.full((rows,), 0.5, dtype=torch.float64, device=device)
    y = None if condition_shape is None else torch.zeros(rows, *condition_shape, device=device)
    unread = Cond(None if label is None else torch.full((rows,), label, device=device), y)
    with torch.no_grad():
        cond = read(denoiser, unread)
    reading = price(lambda: read(denoiser, unread)) if cond.features else 0
    context = Context()

    def encode() -> None:
        nonlocal context
        context = denoiser.encode(z, t, cond)

    heavy, aged = price(encode), context.aged()
    light = price(lambda: denoiser.denoise(z, t, aged, cond))
    can = abilities(denoiser)
    partial = price(lambda: denoiser.renew(z, t, aged, cond)) if Refresh.PARTIAL in can.between else 0
    alone = price(lambda: denoiser.denoise(z, t, Context(), cond)) if can.alone_differs else None
    free, denoised, bare = denoiser.reuse is Reuse.FREE, context.x_hat is not None, not context.features
    return CallCost(heavy, light, denoised, partial=partial, alone=alone, read=reading, of_condition=free, bare=bare)


def mean_macs(
    denoiser: Denoiser,
    step: Step,
    plan: StepPlan,
    shape: Shape,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    device: torch.device | str | None = None,
) -> float:
    """Multiply-adds of an image, without its decoding: a mean over images that are drawn here.

    Arguments: as of `sample_batches`.
    """
    drawn = sample_batches(denoiser, step, plan, shape, seeds, labels, batch_size=len(seeds), device=device)
    return macs_of(lambda: list(drawn)) / len(seeds)


def expected_costs(
    calls: CallCost,
    reuse: Reuse,
    step: Step,
    plan: StepPlan,
    shape: Shape,
    *,
    label: int | None = None,
    wrap: Callable[[Denoiser], Denoiser] = lambda inner: inner,
) -> list[PlanCost]:
    """Costs of one image up to the end of each step, counted on a trajectory without networks.

    The decoding comes with the last step.
    calls, reuse: of the denoiser; wrap: guidance, around the meter. Raises ValueError as `sample_batches`.
    """
    metered, undecoded = Metered(_WithoutNetworks(calls, reuse, step.process)), replace(calls, decode=0)
    costs: list[PlanCost] = []

    def count(state: State) -> None:
        seen = metered.meter
        kinds = {"partial_calls": seen.partial, "alone_calls": seen.alone, "read_calls": seen.read}
        costs.append(PlanCost(undecoded, seen.heavy, seen.light, **kinds))

    labels = None if label is None else [label]
    for _ in sample_batches(wrap(metered), step, plan, shape, [0], labels, device="cpu", watch=count):
        pass
    return [*costs[1:-1], replace(costs[-1], calls=calls)]


def check_calls(step: Step, plan: StepPlan, shape: Shape) -> None:
    """Raises ValueError for what is no step, and for another package's that makes other calls than it declares."""
    if of_package(type(step)):  # tests count the calls of ours
        return
    if not isinstance(step, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"a drawer takes a step such as dr.DDIM(model.process), got {step!r}")
    metered = Metered(_WithoutNetworks(CallCost(0, 1), Reuse.FREE, step.process))
    list(sample_batches(metered, step, StepPlan.late(plan.t, plan.num_steps), shape, [0], device="cpu"))
    calls, steps, once = metered.meter.light, plan.num_steps, min(plan.num_steps, step.single_call_steps)
    if calls != (steps - once) * step.calls_per_step + once:
        raise ValueError(
            f"{type_name(type(step))} calls the network {calls} times in {steps} steps, and declares calls_per_step "
            f"{step.calls_per_step} but at {step.single_call_steps} steps (single_call_steps): declare "
            f"calls_per_step = {math.ceil(calls / steps)}, and how many steps call once"
        )


@dataclass(frozen=True)
class _WithoutNetworks(Denoiser):
    """A denoiser that makes the calls of another one, and computes nothing."""

    calls: CallCost
    reuse: Reuse
    process: Process

    def read(self, cond: Cond) -> Cond:
        rows = 1 if cond.label is None else len(cond.label)
        return replace(cond, features=(torch.zeros(rows),)) if self.calls.read and not cond.features else cond

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        if not self.calls.heavy:
            return Context()
        return Context(() if self.calls.bare else (z,), t, x_hat=self._nothing(z) if self.calls.denoised else None)

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        return replace(context, x_hat=self._nothing(z))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self._nothing(z) if context.x_hat is None else context.x_hat

    def _nothing(self, z: Tensor) -> Tensor:
        """Zeros in place of x_hat, which has no planes of noise."""
        return 0 * self.process.data(z)


def seconds_per_call(
    call: Callable[[], object], *, seconds: float = 1.0, device: torch.device | str | None = None
) -> float:
    """Median duration of a call, after one to warm up, over at least three calls and about `seconds`, at most 1,000.

    device: where the call works, as of `pick_device`; its queue is empty before and after each
    """
    device = pick_device(None) if device is None else torch.device(device)

    def taken() -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    taken()
    ends, durations = time.perf_counter() + seconds, [taken() for _ in range(3)]
    while time.perf_counter() < ends and len(durations) < 1000:  # a call of nothing takes no time
        durations.append(taken())
    return sorted(durations)[len(durations) // 2]
