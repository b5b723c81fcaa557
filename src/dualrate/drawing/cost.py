"""Costs of drawing, measured now: seconds of a network's calls, bytes that tensors take, and a report with parameters
and operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dualrate.codecs.codec import decoded
from dualrate.config.ranges import Precision
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.modality import maker_of
from dualrate.experiment.model import Model
from dualrate.networks.blocks import in_bfloat16
from dualrate.sampling.cost import CallCost, priced, seconds_per_call


def call_seconds(model: Model, batch_size: int, *, seconds: float = 1.0, precision: Precision = "auto") -> CallCost:
    """Seconds of a row in calls of `batch_size` rows, and of its decoding, measured now, for about `seconds` each.

    precision: of the networks' matrix products
    """
    device, shape = model.device, model.process.state_shape(model.shape)
    label, condition_shape = 0 if model.num_classes else None, model.experiment.networks.given
    bfloat16 = in_bfloat16(precision, device, (batch_size, *shape))
    denoiser = model.ready(bfloat16=bfloat16).denoiser
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):

        def taken(call: Callable[[], object]) -> float:
            return seconds_per_call(call, seconds=seconds, device=device) / batch_size

        calls = priced(denoiser, batch_size, shape, label, condition_shape, device, taken)
    if not model.call_cost.decode:
        return calls
    x, draws = torch.zeros(batch_size, *model.shape, device=device), Draws(0, torch.arange(batch_size, device=device))
    return replace(calls, decode=taken(lambda: decoded(model.codec, x, draws)))


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within it: how many there are now, and the most at once.

    What an operation takes for itself while it runs is not counted, nor what was there before, such as weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if (key := storage._cdata) not in self.seen:
                self.seen.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def drawing_bytes(drawer: Drawer, seeds: Sequence[int] = (0,)) -> int:
    """The most bytes that tensors take at once, beside the weights, while samples of these seeds are drawn."""

    def most() -> int:
        with TensorBytes() as tensors:
            for _ in drawer.states(seeds):
                pass
        return tensors.most

    most()  # what is kept from the first time on is not counted
    return most()


def cost_report(drawer: Drawer) -> dict[str, object]:
    """Parameters, MACs and FLOPs, and latency of the networks' calls and of a batch's images, measured now.

    Light calls alone, without a context, are light calls too. A batch holds all members of a condition; a heavy call is
    priced for an image, which shares it with them in `macs_per_image` and `seconds_per_image` alone. The first of these
    counts the codec of a forecast in latents, as its scores do.
    """
    cost, conditions = drawer.cost, drawer.seeds_at_once
    count, coding = conditions * drawer.members, maker_of(drawer.model.experiment).coding(drawer)
    drawer = replace(drawer, batch_size=count)
    drawer.draw(range(conditions))  # the first compiles, records, chooses kernels
    taken = call_seconds(drawer.model, count, precision=drawer.precision)
    calls = {"heavy_call": "heavy", "light_call": "light", "light_call_alone": "without", "decode": "decode"}
    calls |= {"reading": "read"} if cost.calls.read else {}
    macs = {name: getattr(cost.calls, of) for name, of in calls.items()} | {"per_image": cost.macs + coding}
    return {
        **{f"parameters_{name}": parameters for name, parameters in drawer.model.parameters.items()},
        **{f"macs_{of}": number for of, number in macs.items()},
        **{f"flops_{of}": 2 * number for of, number in macs.items() if of != "decode"},
        **{f"seconds_{name}": count * getattr(taken, of) if macs[name] else 0.0 for name, of in calls.items()},
        f"seconds_per_image{'_without_codec' * (coding > 0)}": drawer.draw(range(conditions)).seconds / count,
        "steps": drawer.plan.num_steps,
        "heavy_calls_per_image": cost.heavy_calls,
        "light_calls_per_image": cost.light_calls,
        "light_calls_alone_per_image": cost.alone_calls,
        "members": drawer.members,
        "batch_size": count,
        "device": str(drawer.model.device),
        "precision": drawer.arithmetic,
    }
