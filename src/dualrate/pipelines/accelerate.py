"""Caches on a pipeline of diffusers, one a guidance branch, and off again: `handle = dr.accelerate(pipe, refresh=4)`.

Each network's `forward` is wrapped on the instance. Modules, names and weights stay. A pipeline that calls a network
several times at a step, as for guidance, has a cache for each of these calls: a branch. Branches are told apart by all
that a call is given but the state and the time, whatever their order; those given the same, as where attention is
perturbed, by their order among each other. A branch that the step before did not have begins with a full call. Caches
begin anew with a sampling: where the scheduler has new times, where time rises, after an error in a call, and where
another thread calls. One thread's sampling must end before the next thread's begins.
"""

from __future__ import annotations

import copy
import functools
import itertools
import os
import threading
import warnings
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, SupportsIndex, get_args

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dualrate.denoisers.feature_cache import ORDER, SHARES, Form
from dualrate.diffusion.prediction import Convention, Flow
from dualrate.diffusion.schedule import RectifiedFlow, Schedule
from dualrate.pipelines.caching import Cache, CachedLevels, CachedTokens, CacheMethod, Did, Features, by_name
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.cut_transformer import CachedForward
from dualrate.pipelines.folder import way_to_load
from dualrate.pipelines.policies import Fixed, Policy
from dualrate.pipelines.schedulers import draws_noise, read_scheduler, times_left

MethodName = Literal["fora", "taylor", "polynomial", "deep-cache", "toca", "duca"]
METHODS: tuple[str, ...] = get_args(MethodName)
FEW = 8  # steps, or fewer, of which hardly one can be skipped
QUANTILES = (0.1, 0.5, 0.9, 1.0)  # of changes that are printed
PASSIVE = {"group_offloading", "layerwise_casting"}  # hooks of diffusers that leave alone what is computed
REMEMBERED = 16  # samplings
ENTERING = threading.Lock()  # a call's cache is looked up, and a sampling begun, by one thread at a time
JOINT = "; decides for a batch as one, so an image depends on the others in it"


class CallRecord(NamedTuple):
    """A call of a network, and what it did.

    branch: which of the conditions of its sampling, in the order in which they came
    change: what the policy saw
    macs:   multiply-adds; plain: of the network without a cache
    """

    branch: int
    step: int
    did: Did
    change: float
    macs: int
    plain: int


class Accelerated:
    """A pipeline's caches, until they are removed. As a context manager it removes them at the end.

    Printed, or shown by a notebook, it says what each sampling cost, and the changes that its policy saw, by which a
    threshold is chosen.

    samplings: by network the calls of its latest samplings, at most REMEMBERED of them, the latest last
    """

    def __init__(self, networks: Sequence[_Network]) -> None:
        self._networks = networks
        self.samplings = {network.name: network.samplings for network in networks}

    def remove(self) -> None:
        """Leave the pipeline as it was. A second time does nothing."""
        for network in self._networks:
            network.remove()

    def summary(self) -> dict[str, dict[str, int]]:
        """Counts for a log, by network: its calls by what they did, and the multiply-adds of all, and of plain ones.

        They are of the samplings in `samplings`.
        """
        totals: dict[str, dict[str, int]] = {}
        for name, samplings in self.samplings.items():
            calls = [call for sampling in samplings for call in sampling]
            macs, plain = cost_of(calls)
            totals[name] = {"samplings": len(samplings), **call_counts(calls), "macs": macs, "plain": plain}
        return totals

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        lines = []
        for network in self._networks:
            policy, earlier = network.method.policy, network.begun - len(network.samplings)
            kind = type(network.net).__name__
            lines.append(f"{network.name} ({kind}): {network.method_name}, {policy}{JOINT * bool(policy.sees)}")
            for number, calls in enumerate(network.samplings, earlier + 1):
                lines.append(f"  sampling {number}: {sampling_summary(calls, policy, network.name)}")
        return "\n".join(lines)


def sampling_summary(calls: Sequence[CallRecord], policy: Policy, name: str) -> str:
    """A line on the calls of a sampling of a network: how many ran whole, and what all of them cost."""
    text = ", ".join(f"{n} {did}" for did, n in call_counts(calls).items() if n or did != "partial") + " calls"
    changes = [call.change for call in calls if call.change]
    if policy.sees.startswith("forecast"):
        worst = max((call.change for call in calls if call.did == "skipped"), default=0.0)
        text += f", {len(changes)} verified, kept up to an error of {worst:.2g}"
    if changes:
        at = torch.tensor(changes, dtype=torch.float64).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
        text += ", changes " + ", ".join(f"{q:.0%} {value:.2g}" for q, value in zip(QUANTILES, at, strict=True))
    macs, plain = cost_of(calls)
    return f"{text}; {macs / 1e9:.4g} of {plain / 1e9:.4g} GMACs, {share_of_plain(macs, plain, name)}"


def share_of_plain(macs: int, plain: int, name: str) -> str:
    """Cost of a network beside a plain one, in words."""
    return f"{macs / plain if plain else 1:.2f} of the plain {name}'s multiply-adds"


def call_counts(calls: Sequence[CallRecord]) -> dict[Did, int]:
    """The number of calls by what they did."""
    return {did: sum(call.did == did for call in calls) for did in get_args(Did)}


def cost_of(calls: Sequence[CallRecord]) -> tuple[int, int]:
    """Multiply-adds of the calls, and of plain ones."""
    return sum(call.macs for call in calls), sum(call.plain for call in calls)


def accelerate(
    pipe: Any,
    method: MethodName | None = None,
    *,
    refresh: int | Policy = 4,
    order: int = ORDER,
    outer: int = 1,
    scheduler: Any = None,
) -> Accelerated:
    """Make a pipeline of diffusers, or a network of one, cheaper, in place, until `remove()` of what is returned.

    pipe:      a pipeline, or its transformer or UNet for a loop of your own, which calls it at falling times
    method:    fora, taylor, polynomial, toca, duca, or deep-cache for UNets; None: that, or polynomial for others
    refresh:   whole calls at every N-th step, or where a policy (`pipelines/policies.py`) says
    order:     of the forecast, of taylor and polynomial
    outer:     how many of the last layers run at every step, of deep-cache
    scheduler: of diffusers, beside a network alone: polynomial, duca and SpeCa ask it for its times
    All networks of the pipeline take part whose class is in `KINDS` (`classes/catalogue.py`). Raises ValueError where
    there is none, where one cannot have this method or policy, and where one is compiled as a whole or changed by
    another tool; TypeError for the name of a model, with the way to load it. Warns, here or as it draws, of a scheduler
    that draws noise, of few steps, and where a sampling skips no call, or its calls cost more than plain ones.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
    refresh = Fixed(refresh) if isinstance(refresh, SupportsIndex) else refresh  # numpy's too
    if not isinstance(refresh, Policy):
        way = f": for a threshold, FirstBlock({refresh})" if isinstance(refresh, float) else ""
        raise ValueError(f"refresh is every how many steps, or a Policy, got {refresh!r}{way}")
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"order is a whole number, 0 or more, got {order!r}")
    source = type(pipe).__name__
    if isinstance(pipe, str | os.PathLike):
        raise TypeError(f"pipe is a pipeline of diffusers, got {os.fspath(pipe)!r}: {way_to_load(Path(pipe))}")
    if isinstance(pipe, nn.Module):
        kind = KINDS.get(type(pipe).__name__)
        role = "unet" if kind and kind.has_levels(pipe) else "transformer"
        pipe = SimpleNamespace(components={role: pipe}, scheduler=scheduler)
    elif scheduler is not None:
        raise ValueError(f"{source} has a scheduler, which counts: drop scheduler=, or set pipe.scheduler")
    parts = {name: part for name, part in getattr(pipe, "components", {}).items() if isinstance(part, nn.Module)}
    networks = {name: net for name, net in parts.items() if type(getattr(net, "_orig_mod", net)).__name__ in KINDS}
    if not networks:
        classes = ", ".join(type(part).__name__ for part in parts.values()) or "no networks"
        got = source if classes == source else f"{source} with {classes}"
        raise ValueError(f"a pipeline with a {', '.join(KINDS)}, or that alone, is expected, got {got}")
    methods: dict[str, tuple[str, CacheMethod]] = {}
    for name, net in networks.items():
        check_free(name, net)
        kind = KINDS[type(net).__name__]
        chosen = method or ("deep-cache" if kind.rows is None and kind.has_levels(net) else "polynomial")
        if (order != ORDER and chosen not in get_args(Form)) or (outer != 1 and chosen != "deep-cache"):
            raise ValueError(f"order is of taylor and polynomial, outer of deep-cache: drop it for {chosen}")
        if chosen == "deep-cache":
            cache = CachedLevels(net, kind, refresh, outer)
        elif chosen in SHARES:
            cache = CachedTokens(net, kind, refresh, chosen)
        else:
            cache = Features(net, kind, refresh, chosen, order)
        convention(pipe.scheduler, cache)
        methods[name] = chosen, cache
    return Accelerated([_Network(name, *by_method, pipe) for name, by_method in methods.items()])


def check_uncompiled(name: str, net: Any) -> None:
    """Raises ValueError for a network that is compiled as a whole, so that its blocks cannot stand aside."""
    if getattr(net, "_orig_mod", net) is not net or getattr(net, "_compiled_call_impl", None) is not None:
        raise ValueError(
            f"{name} is compiled as a whole, so its blocks cannot stand aside: take the network that is not "
            f"(pipe.{name} = pipe.{name}._orig_mod, or after pipe.{name}.compile() a network that is loaded anew), "
            f"accelerate it, and compile its blocks (pipe.{name}.compile_repeated_blocks())"
        )


def check_free(name: str, net: Any) -> None:
    """Raises ValueError as `check_uncompiled`, and for a network that another tool has changed."""
    check_uncompiled(name, net)
    wrapper = vars(net).get("_old_forward", vars(net).get("forward"))
    if isinstance(wrapper, CachedForward) and wrapper.args[0].net is net:
        raise ValueError(f"{name} is accelerated already: call remove() of its handle first")
    if isinstance(vars(net).get("forward"), CachedForward):  # of the network that it is a copy.copy() of
        del net.forward
    for part in net.modules():
        hooks = set(getattr(getattr(part, "_diffusers_hook", None), "hooks", ()))
        unwrapped = getattr(part.forward, "__func__", None) is type(part).forward or "_hf_hook" in vars(part)
        if hooks - (set() if part is net else PASSIVE) or not (unwrapped or hooks):
            what = f"the hooks {', '.join(hooks)}" if hooks else "another forward"
            raise ValueError(
                f"{type(part).__name__} in {name} has {what}: if that is another cache, take it off first "
                f"(pipe.{name}.disable_cache(), or as its tool says); if it offloads, accelerate before"
            )


def convention(scheduler: Any, method: CacheMethod) -> Convention | None:
    """The convention of the scheduler's times; None where none is needed. Raises ValueError as `read_scheduler`."""
    if not method.timed:
        return None
    if scheduler is None:
        raise ValueError(
            f"this method asks a scheduler how noisy each time of a {type(method.net).__name__} is: pass scheduler=, "
            "or take method 'taylor' or 'fora'"
        )
    return read_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})[1]


class _Network:
    """A network of the pipeline, its wrapper and its caches."""

    def __init__(self, name: str, method_name: str, method: CacheMethod, pipe: Any) -> None:
        self.name, self.net, self.method, self.pipe = name, method.net, method, pipe
        self.method_name, self.begun, self.branch = method_name, 0, 0
        self.samplings: deque[list[CallRecord]] = deque(maxlen=REMEMBERED)
        self.thread, self.left = 0, dict[int, float]()  # of the sampling; times at which threads were interrupted
        self.on, self.digests = True, Digests()
        self.warned_of: Any = None
        self.times: Any = None
        self.forget()
        self.check_scheduler()
        self.place = "_old_forward" if "_hf_hook" in vars(self.net) else "forward"  # offloading stays outside
        self.was_set, self.before = self.place in self.net.__dict__, getattr(self.net, self.place)
        self.wrapper = functools.update_wrapper(CachedForward(_forward, self), self.before)
        setattr(self.net, self.place, self.wrapper)

    def remove(self) -> None:
        """Take the wrapper off. Where something else was put around it since, it stays there and does nothing."""
        self.on = False
        self.forget()
        for place in ("forward", "_old_forward"):
            if vars(self.net).get(place) is self.wrapper:
                setattr(self.net, place, self.before)
        if vars(self.net).get("forward") is self.before and not self.was_set:
            del self.net.forward
        self.check_cost()

    def forget(self) -> None:
        """Drop all that is of a sampling."""
        self.steps = 0  # that are left, with this one
        self.now: tuple[float, Any] | None = None
        self.earlier: dict[Hashable, Cache] = {}  # of the step before
        self.caches: dict[Hashable, Cache] = {}
        self.branches: dict[Hashable, int] = {}
        self.convention: Convention | None = None

    def check_scheduler(self) -> None:
        """Warn, once of each, of a scheduler that draws noise."""
        scheduler = self.pipe.scheduler
        if scheduler is not self.warned_of and draws_noise(scheduler):
            warnings.warn(
                f"{type(scheduler).__name__} draws noise at every step, so what a cache holds is of another path: take "
                "a deterministic scheduler, such as DPMSolverMultistepScheduler",
                stacklevel=2,
            )
        self.warned_of = scheduler

    def begin(self, times: Any, time: float) -> None:
        """Start a sampling at a time, of which the scheduler has these times. Raises as where it was accelerated."""
        self.check_cost()
        self.forget()
        check_uncompiled(self.name, getattr(self.pipe, self.name, self.net))
        self.method.check_parted()
        self.check_scheduler()
        self.times, self.convention = times, convention(self.pipe.scheduler, self.method)
        left = times_left(times, time)
        self.steps, different = len(left), len(set(left))
        if 0 < different <= FEW:
            warnings.warn(
                f"{different} steps are few: features change much from one to the next, so a cache hardly pays. Take "
                "fewer steps without it, or a student (docs/distil.md)",
                stacklevel=2,
            )
        self.samplings.append([])
        self.begun, self.unpriced = self.begun + 1, True

    def check_cost(self) -> None:
        """Warn, once, of a sampling that cost more than a plain one, or skipped nothing."""
        calls = self.samplings[-1] if self.samplings and self.unpriced else []
        (macs, plain), idle = cost_of(calls), call_counts(calls)["full"] == len(calls) > FEW
        if macs > plain or idle:
            self.unpriced, policy = False, self.method.policy
            changes = [call.change for call in calls if call.change]
            why = f"too few calls were skipped: raise the threshold of {policy}"
            if idle:
                why = f"no call was skipped: {policy} skips none, or the condition is new at every step: change either"
            if idle and changes:
                least = f"the smallest change was {min(changes):.2g}"
                why = f"no call was skipped: {least}, so raise the threshold of {policy} above it"
            cost = share_of_plain(macs, plain, self.name)
            warnings.warn(f"{self.name} cost {cost}, as {why}; or remove() the cache", stacklevel=2)

    def cache(self, time: float, shapes: tuple[Any, ...], condition: Hashable) -> Cache:
        """The cache of a call at a step of the scheduler, of these shapes of tensors and this condition."""
        scheduler = self.pipe.scheduler
        times, step = getattr(scheduler, "timesteps", None), getattr(scheduler, "step_index", None)
        step = getattr(scheduler, "counter", None) if step is None else step  # of PNDM, which repeats a time
        fresh = times is not self.times
        if self.change_thread(time, fresh) or self.now is None or time > self.now[0] or fresh:
            self.begin(times, time)
        if self.now != (time, step):  # in bfloat16 two steps may have the same time
            self.steps -= self.steps > 1 and self.now is not None
            self.now, self.earlier, self.caches = (time, step), self.caches, {}
        branch = next(key for rank in itertools.count() if (key := (shapes, condition, rank)) not in self.caches)
        self.branch = self.branches.setdefault(branch, len(self.branches))
        if (cache := self.earlier.get(branch)) is None:
            policy = copy.deepcopy(self.method.policy)
            policy.steps = self.steps
            cache = Cache(policy, shapes, deque(maxlen=self.method.order + 1))
        return self.caches.setdefault(branch, cache)

    def change_thread(self, time: float, fresh: bool) -> bool:
        """Whether another thread calls; fresh: at new times. Raises RuntimeError where that one was interrupted."""
        thread = threading.get_ident()
        if thread == self.thread:
            return False
        if time < self.left.pop(thread, time) and not fresh:
            raise RuntimeError(
                f"another thread began a sampling with this {self.name} before the one of this thread ended, and a "
                f"cache is of one at a time: let each thread accelerate a pipeline whose {self.name} is a copy.copy() "
                "of it, which shares the weights"
            )
        if self.now is not None:
            self.left[self.thread] = self.now[0]
        self.thread = thread
        return True

    def clock(self, time: float) -> tuple[Schedule | None, Tensor]:
        """A schedule, and where it has a step of the scheduler."""
        step = torch.tensor(time, dtype=torch.float64, device="cpu")
        if self.convention is None:
            return None, step
        if isinstance(self.convention, Flow):
            return RectifiedFlow(), step / self.convention.units
        return self.convention.betas, (step + 1) / self.convention.betas.steps


class Digests:
    """Tells conditions apart: tensors by 64 bits of their content, computed where they are.

    A tensor that is passed again, as pipelines do at every step, is not read again unless it was written to. Any other
    costs a wait for its device. None of them is kept.
    """

    def __init__(self) -> None:
        self.seen = WeakTensorKeyDictionary()  # tensor -> its version, its digest

    def of(self, value: Any) -> Hashable:
        """Equal for equal conditions."""
        if isinstance(value, Tensor):
            return tuple(value.shape), value.dtype, self._of_tensor(value)
        if isinstance(value, Mapping):
            return tuple((name, self.of(part)) for name, part in value.items() if part is not None)
        if isinstance(value, list | tuple):
            return tuple(map(self.of, value))
        return value if isinstance(value, Hashable) else repr(value)

    def _of_tensor(self, x: Tensor) -> int:
        if x.is_inference():  # which count no versions
            return _digest(x)
        if x not in self.seen or self.seen[x][0] != x._version:
            self.seen[x] = x._version, _digest(x)
        return self.seen[x][1]


BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _digest(x: Tensor) -> int:
    """A sum over all elements of a hash of each and its place."""
    x = torch.view_as_real(x) if x.is_complex() else x
    mixed = x.detach().contiguous().view(BITS[x.element_size()]).flatten().long()
    mixed = (mixed + torch.arange(len(mixed), device=x.device) * 0x1E3779B97F4A7C15) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ mixed >> 32) * 0x14D049BB133111EB
    return int((mixed ^ mixed >> 29).sum())


@torch.compiler.disable  # what it notes would be frozen in a graph
def _forward(network: _Network, *positional: Any, **named: Any) -> Any:
    net, method = network.net, network.method
    if not network.on:
        return network.before(*positional, **named)
    arguments = by_name(net, positional, named)
    times = set(torch.as_tensor(arguments.get("timestep", ())).flatten().tolist())
    entering = [name for name in method.kind.between if arguments.get(name) is not None]
    if entering or len(times) != 1:
        why = f"{entering[0]} enters between its blocks" if entering else f"its rows are at {len(times)} times"
        warnings.warn(f"{network.name} runs whole where {why}: such calls are not accelerated", stacklevel=2)
        return network.before(*positional, **named)
    shapes = tuple((name, tuple(value.shape)) for name, value in arguments.items() if isinstance(value, Tensor))
    try:
        time = times.pop() * method.kind.units(net)
        if torch.as_tensor(arguments["timestep"]).dtype.itemsize == 2:  # it was rounded: the scheduler's own is meant
            nearest, *_ = times_left(getattr(network.pipe.scheduler, "timesteps", None), time) or [time]
            time = nearest if abs(nearest - time) <= time / 100 else time  # further off: it is none of the scheduler's
        condition = network.digests.of({name: arguments[name] for name in [*arguments][1:] if name != "timestep"})
        with ENTERING:
            cache, (schedule, t) = network.cache(time, shapes, condition), network.clock(time)
            branch, calls, times = network.branch, network.samplings[-1], network.times
        out, did = method.call(lambda copied: type(net).forward(copied, *positional, **named), cache, schedule, t)
    except BaseException:
        with ENTERING:
            if network.thread == threading.get_ident():
                network.forget()
        raise
    calls.append(CallRecord(branch, cache.step, did, cache.change, *method.macs(cache, did)))
    cache.step += 1
    if cache.step == cache.policy.steps:  # its last: what it holds may be large, and decoding comes next
        cache.past.clear()
        cache.seen = None
    if len(set(times_left(times, time))) == 1:
        network.check_cost()
    return out
