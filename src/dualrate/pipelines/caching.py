"""Caches of `accelerate`: how a call of a network of diffusers uses results again, and when it runs whole.

A method says what is kept. Sources and equations stand in `denoisers/feature_cache.py`.

    fora                 what the row of blocks adds, as it was; what lies outside the row runs
    taylor, polynomial   the same, forecast in steps, or in log-SNR
    toca, duca           attention as it was, some tokens of each block made anew
    deep-cache           UNets: the input of the last layers, which alone run. Ma et al. 2023, arXiv 2312.00858, keep
                         every N-th step; their branch 0 is one layer

A call goes through a copy of the network that shares all parts but the blocks. The network stays as it is.
"""

from __future__ import annotations

import inspect
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from dualrate.denoisers.feature_cache import SHARES, By, Form, choose, forecast_features
from dualrate.diffusion.context import Context
from dualrate.diffusion.schedule import Schedule
from dualrate.pipelines.classes.kind import DECLARE, HIDDEN, TEXT, NetworkSpec, Rows
from dualrate.pipelines.cut_transformer import CutTokens, sharing
from dualrate.pipelines.policies import Fixed, Policy
from dualrate.sampling.cost import macs_of

Did = Literal["full", "partial", "skipped"]
Named = dict[str, Any]
Run = Callable[[Any], Any]  # a call of a copy of the network
Out = TypeVar("Out")
SKIPS = "res_hidden_states_tuple"
COUNTING = threading.RLock()  # no block is compiled then: torch never compiles again what it met under a counter
HOOKED = ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl", "_hf_hook")  # what hooks leave

LEVELS = {f"{kind}{way}Block2D" for kind in ("", "Attn", "CrossAttn") for way in ("Down", "Up")}


def by_name(module: Any, positional: Sequence[Any], named: Mapping[str, Any]) -> Named:
    """The arguments of a call of a module."""
    _, *bound = inspect.signature(type(module).forward).bind(module, *positional, **named).arguments.items()
    arguments = dict(bound)
    return arguments | arguments.pop("kwargs", {})


class _Through(nn.Module):
    """Stands in for blocks, for one call; other attributes are the first block's, as a head may ask for them."""

    def __init__(self, blocks: Iterable[nn.Module], through: Callable[[Named], Any]) -> None:
        super().__init__()
        self.blocks, self.through = nn.ModuleList(blocks), through  # they are parts, so that a LoRA's scale finds them

    def forward(self, *positional: Any, **named: Any) -> Any:
        return self.through(by_name(self.blocks[0], positional, named))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_modules"]["blocks"][0], name)


@dataclass
class Cache:
    """The cache of one of the calls that a step makes, in one sampling.

    shapes:  of the call's tensors
    past:    contexts that the method keeps, the latest first
    seen:    what the policy's change is counted from
    tried:   whether the latest call was forecast, be that kept or not
    """

    policy: Policy
    shapes: tuple[Any, ...]
    past: deque[Context]
    step: int = 0
    seen: Tensor | None = None
    change: float = 0.0
    tried: bool = False


@dataclass
class CacheMethod(ABC):
    """A way of calling a network with a cache.

    order:  of the forecast; form: how it is made
    costs:  multiply-adds of a part of a call of given shapes, counted when it first runs
    parted: blocks of which copies run, for some of the tokens or some of the layers
    """

    net: Any
    kind: NetworkSpec
    policy: Policy
    order: int = 0
    form: Form = "polynomial"
    costs: dict[Any, int] = field(default_factory=dict)
    parted: Sequence[Any] = ()

    @property
    def timed(self) -> bool:
        """Whether `call` needs a schedule and its time."""
        return self.order > 0 and self.form == "polynomial"

    @abstractmethod
    def call(self, run: Run, cache: Cache, schedule: Schedule | None, t: Tensor) -> tuple[Any, Did]:
        """The network's output at t, and what was done."""

    def check_parted(self) -> None:
        """Raises ValueError for hooks, and what is like hooks, on a block that runs in part: they want all of it."""
        for block in self.parted:
            replaced = getattr(block.forward, "__func__", None) is not type(block).forward
            if replaced or any(vars(block).get(name) for name in HOOKED):
                raise ValueError(
                    f"{type(block).__name__} runs in part, so it is to be neither compiled nor offloaded nor hooked: "
                    "take that off, hook or offload its parts, or in a transformer take 'taylor'"
                )

    def macs(self, cache: Cache, did: Did) -> tuple[int, int]:
        """Multiply-adds of the call, and of a plain one."""
        return self.costs[cache.shapes, did], self.costs[cache.shapes, "full"]

    def counted(self, cache: Cache, part: str, call: Callable[[], Out]) -> Out:
        """Run a part of a call and return its output; the first time its multiply-adds are counted."""
        if (cache.shapes, part) in self.costs:
            return call()
        outputs: list[Out] = []
        with_gradients = torch.set_grad_enabled(torch.is_grad_enabled())  # as the caller has them
        with COUNTING, torch.compiler.set_stance("force_eager"):
            self.costs[cache.shapes, part] = macs_of(with_gradients(lambda: outputs.append(call())))
        return outputs[0]

    def copied(self, blocks: Iterable[nn.Module], through: Callable[[Named], Any]) -> Any:
        """The network with `through` in the place of its rows."""
        row, *rest = self.rows.names
        parts = {row: nn.ModuleList([_Through(blocks, through)]), **{name: nn.ModuleList() for name in rest}}
        return sharing(self.net, **parts)

    @property
    def blocks(self) -> list[Any]:
        """The blocks of all rows."""
        return self.rows.blocks(self.net)

    @property
    def rows(self) -> Rows:
        """The rows of blocks. Raises ValueError where there are none."""
        if self.kind.rows is None:
            way = "take 'deep-cache'" if self.kind.has_levels(self.net) else DECLARE.format("rows=Rows(names=...)")
            raise ValueError(f"{type(self.net).__name__} has levels and no row of blocks: {way}")
        return self.kind.rows


class Features(CacheMethod):
    """fora, taylor, polynomial. Held: what the blocks between those that are seen add to each stream, what a verified
    one adds, and for an age the step.
    """

    def __init__(self, net: Any, kind: NetworkSpec, policy: Policy, name: str, order: int) -> None:
        form = "taylor" if name == "taylor" else "polynomial"
        super().__init__(net, kind, policy, 0 if name == "fora" else order, form)
        kind.check_blocks(net)
        _ = self.rows

    def call(self, run: Run, cache: Cache, schedule: Schedule | None, t: Tensor) -> tuple[Any, Did]:
        did: list[Did] = []

        def through(named: Named) -> Any:
            streams, full = self.passed(named, cache, schedule, t)
            did.append("full" if full else "skipped")
            out = [streams[name] for name in self.rows.streams]
            return tuple(out) if len(out) > 1 else out[0]

        return self.counted(cache, "full", lambda: run(self.copied(self.blocks, through))), did[0]

    def macs(self, cache: Cache, did: Did) -> tuple[int, int]:
        full, inner, last = (self.costs.get((cache.shapes, name), 0) for name in ("full", "inner", "last"))
        return full - inner if did == "skipped" else full + last * cache.tried, full

    def passed(self, named: Named, cache: Cache, schedule: Schedule | None, t: Tensor) -> tuple[Named, bool]:
        """The streams after the row, and whether all of it ran."""
        sees, names, blocks = cache.policy.sees, self.rows.streams, self.blocks
        verified, first = sees.startswith("forecast"), int(sees in ("first block", "forecast of first"))
        last = len(blocks) - (sees == "forecast of last")

        def ran(part: str, row: Sequence[Any], streams: Named) -> Named:
            def all_of_it() -> Named:
                now = streams
                for block in row:
                    out = block(**named | now)
                    out = out if isinstance(out, tuple) else (out,)
                    if len(out) != len(names):
                        raise ValueError(
                            f"{type(block).__name__} returns {len(out)} tensors, expected {', '.join(names)}: "
                            + DECLARE.format("rows=Rows(streams=...), with what each block returns, in that order")
                        )
                    now = dict(zip(names, out, strict=True))
                return now

            return self.counted(cache, part, all_of_it) if row else streams

        start = {name: named[name] for name in names}
        before = ran("first", blocks[:first], start)
        first_added = before[HIDDEN] - start[HIDDEN] if first else None
        whole = not cache.past or cache.policy.due(cache.step) or (not sees and cache.policy.refresh(cache.step, 0.0))
        cache.tried = not whole
        if not whole:
            features = forecast_features(self.latest(cache), t, schedule)
            added = features[:-1] if verified else features
            dropped = len(names) - len(added)  # a last block may return no text
            sums = [before[name] + more for name, more in zip(names[dropped:], added, strict=True)]
            guess = dict(zip(names, [None] * dropped + sums, strict=True))
            after = ran("last", blocks[last:], guess)
            if verified:
                real = after[HIDDEN] - guess[HIDDEN] if first_added is None else first_added
                cache.change = _error(features[-1], real)
            elif first_added is not None:
                cache.change = _change(first_added, cache.seen)
            if not sees or not cache.policy.refresh(cache.step, cache.change):
                return after, False
        inner = ran("inner", blocks[first:last], before)
        after = ran("last", blocks[last:], inner)
        additions = [inner[name] - before[name] for name in names if inner[name] is not None]
        if verified:
            additions.append(after[HIDDEN] - inner[HIDDEN] if first_added is None else first_added)
        elif first_added is not None:
            cache.seen = first_added
        if cache.past and cache.past[0].tau == t:  # a solver may call twice at a time
            cache.past.popleft()
        cache.past.appendleft(Context(tuple(feature.detach() for feature in additions), tau=t, age=cache.step))
        return after, True

    def latest(self, cache: Cache) -> Context:
        """The contexts that are held as one, in which an age is counted from the next refresh, or from now."""
        later = (cache.step, *(context.age for context in cache.past))
        latest, *earlier = (
            replace(context, age=now - context.age) for context, now in zip(cache.past, later, strict=False)
        )
        return replace(latest, earlier=tuple(earlier))


class CachedTokens(CacheMethod):
    """toca, duca. Held: what `CutTokens` keeps, and the partial steps since each token was made."""

    def __init__(self, net: Any, kind: NetworkSpec, policy: Policy, name: str) -> None:
        super().__init__(net, kind, policy)
        self.share = SHARES[name]
        self.by: By = "attention" if name == "toca" else "random"
        if not isinstance(policy, Fixed):
            raise ValueError(f"{name} wants to know the next refresh: refresh=N is expected, got {policy}")
        CutTokens(cast(Any, self))  # raises where it cannot be
        self.parted = self.blocks
        self.check_parted()

    @property
    def timed(self) -> bool:
        """The time decides which tokens are random."""
        return self.by == "random"

    def call(self, run: Run, cache: Cache, schedule: Schedule | None, t: Tensor) -> tuple[Any, Did]:
        cut: Any = CutTokens(cast(Any, _OneCall(self, run)), self.by == "attention")
        of_call = (None, None, None)
        policy = cast(Fixed, cache.policy)
        ahead = policy.every - (cache.step - policy.first + 1) % policy.every  # steps to the next refresh
        if not cache.past or cache.policy.refresh(cache.step, 0.0):
            if cut.scores and (cache.shapes, "plain") not in self.costs:  # a call more, once
                self.counted(cache, "plain", lambda: run(self.net))
            *features, out = self.counted(cache, "full", lambda: cut.whole(*of_call))
            cache.past.appendleft(Context((*features, torch.zeros_like(features[-1]))))
            return out, "full"
        sums, attention, received, age = cache.past[0].features
        if self.by == "random" and ahead % 2 == 0:
            return self.counted(cache, "skipped", lambda: cut.rest(*of_call, sums.sum(1))), "skipped"
        chosen = choose(received, age, t, self.share, self.by)
        sums, out = self.counted(cache, "partial", lambda: cut.part(*of_call, sums, attention, chosen))
        cache.past.appendleft(Context((sums, attention, received, (age + 1).scatter(2, chosen, 0))))
        return out, "partial"

    def macs(self, cache: Cache, did: Did) -> tuple[int, int]:
        """A refresh of toca computes attention a second time, for its scores."""
        return self.costs[cache.shapes, did], self.costs.get((cache.shapes, "plain"), self.costs[cache.shapes, "full"])


class _OneCall(NamedTuple):
    """A call in the place of a `CutNetwork`."""

    method: CacheMethod
    run: Run

    @property
    def blocks(self) -> list[Any]:
        return self.method.blocks

    def called_with(self, row: Any, *_: Any) -> tuple[Any, Any]:
        out = self.with_image(lambda named: row(**named), alone=row.chosen is not None)
        return row.added, out

    def rest(self, z: Any, log_snr: Any, label: Any, added: Tensor) -> Any:
        return self.with_image(lambda named: named[HIDDEN] + added)

    def with_image(self, image: Callable[[Named], Tensor], alone: bool = False) -> Any:
        """A call with `image` in the place of the blocks; alone: with a text of no tokens. After them none is read."""
        paired = self.method.rows.streams != (HIDDEN,)

        def through(named: Named) -> Any:
            out = image(named | {TEXT: named[TEXT][:, :0]} if paired and alone else named)
            return (named[TEXT], out) if paired else out

        return self.run(self.method.copied(self.blocks, through))


class CachedLevels(CacheMethod):
    """deep-cache. Held: the input of the last `outer` layers."""

    def __init__(self, net: Any, kind: NetworkSpec, policy: Policy, outer: int) -> None:
        super().__init__(net, kind, policy)
        self.outer, name = outer, type(net).__name__
        if not kind.has_levels(net):
            raise ValueError(f"{name} has one level, and 'deep-cache' is for UNets: take 'taylor'")
        if policy.sees:
            raise ValueError(f"{name} has no row of blocks to see a change in: take refresh=N, got {policy}")
        if strange := {type(block).__name__ for block in (net.down_blocks[0], net.up_blocks[-1])} - LEVELS:
            raise ValueError(f"outer levels of a UNet are {', '.join(sorted(LEVELS))}, got {', '.join(strange)}")
        layers = len(net.up_blocks[-1].resnets)
        if not (isinstance(outer, int) and 1 <= outer <= layers):
            raise ValueError(f"outer: 1 to {layers} of the last layers run at every step, got {outer!r}")
        self.parted = [net.up_blocks[-1], *net.down_blocks[: outer > 1]]
        self.check_parted()

    def call(self, run: Run, cache: Cache, schedule: Schedule | None, t: Tensor) -> tuple[Any, Did]:
        net, (*earlier, last) = self.net, self.net.up_blocks
        end = _layers(last, slice(-self.outer, None))

        def ending(named: Named) -> Any:
            return end(**named | {HIDDEN: cache.past[0].features[0], SKIPS: named[SKIPS][: self.outer]})

        def whole(named: Named) -> Any:
            start = sharing(_layers(last, slice(-self.outer)), upsamplers=None)
            h = start(**named | {SKIPS: named[SKIPS][self.outer :]}) if len(start.resnets) else named[HIDDEN]
            cache.past.appendleft(Context((h.detach(),)))
            return ending(named)

        if not cache.past or cache.policy.refresh(cache.step, 0.0):
            up = nn.ModuleList([*earlier, _Through([last], whole)])
            return self.counted(cache, "full", lambda: run(sharing(net, up_blocks=up))), "full"
        first = sharing(_layers(net.down_blocks[0], slice(self.outer - 1)), downsamplers=None)
        down = nn.ModuleList([first] if self.outer > 1 else [])
        cut = sharing(net, down_blocks=down, mid_block=None, up_blocks=nn.ModuleList([_Through([end], ending)]))
        return self.counted(cache, "skipped", lambda: run(cut)), "skipped"


def _layers(block: Any, part: slice) -> Any:
    """Some layers of a level."""
    layers = {name: getattr(block, name)[part] for name in ("resnets", "attentions") if hasattr(block, name)}
    return sharing(block, **layers)


def _change(now: Tensor, before: Any) -> float:
    """The relative change, in L1."""
    return float((now.float() - before.float()).abs().mean() / before.float().abs().mean())


def _error(guess: Tensor, real: Tensor) -> float:
    """The greatest relative error of a row, in L2."""
    off, size = (value.flatten(1).norm(dim=1) for value in (guess.float() - real.float(), real.float()))
    return float((off / size).max())
