"""Gradients summed over the processes of a training, while the backward pass still makes others.

    with summed_gradients(parameters, world):
        loss.backward()

A gradient that is made goes into a bucket, and a full bucket is added up in the background. Buckets begin in the same
order in every process, the last parameters' first, as a backward pass mostly makes them. One that some process never
fills, since none of its rows reaches a parameter, begins there at the end of the pass, and those after it too.

Not by DistributedDataParallel: phases that alternate, frozen parameters and several networks in a loss need no wrapper
here, and a parameter that has a gradient in no process still has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import compress

import torch
import torch.distributed as dist
from torch import nn

from dualrate.machine.world import World, buckets

BUCKET = 2**22  # elements that are added up at once: many for a network card's sake, few so that the first begin early


class _Bucket:
    """Parameters whose gradients are added up at once, with a number for each: how many processes made it.

    missing: gradients that the backward pass has not made yet
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.missing = parameters, len(parameters)

    @torch.no_grad()
    def begin(self) -> None:
        """From here on the gradients are parts of one tensor, in the background."""
        have = [parameter.grad is not None for parameter in self.parameters]
        own = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        sizes = [parameter.numel() for parameter in self.parameters]
        total = self.parameters[0].new_zeros(sum(sizes) + len(sizes))
        *parts, self.made = total.split([*sizes, len(sizes)])
        laid_out = [  # as optimizers want it
            part.as_strided(parameter.shape, parameter.stride())
            for parameter, part in zip(self.parameters, parts, strict=True)
        ]
        for parameter, part in zip(self.parameters, laid_out, strict=True):
            parameter.grad = part
        if own:
            torch._foreach_copy_(list(compress(laid_out, have)), own)  # pyright: ignore[reportPrivateImportUsage]
        self.complete = all(have)
        if self.complete:  # a copy of numbers to the device would wait for it
            self.made.fill_(1)
        else:
            self.made.copy_(torch.tensor(have))
        self.work = dist.all_reduce(total, async_op=True)

    @torch.no_grad()
    def finish(self) -> None:
        assert self.work is not None
        self.work.wait()
        if not self.complete:  # else there is nothing to learn from it, and reading it would wait for the device
            for parameter, processes in zip(self.parameters, self.made.tolist(), strict=True):
                parameter.grad = parameter.grad if processes else None


@contextmanager
def summed_gradients(parameters: Iterable[nn.Parameter], world: World) -> Iterator[None]:
    """Around a backward pass, the last of those whose gradients are added up here: then they are sums over all.

    Of weights that are held together the backward pass itself adds them up. Raises RuntimeError where the others
    cannot be reached, as torch does.
    """
    if world.size == 1 or world.mesh is not None:
        yield
        return
    waiting = [_Bucket(own) for own in buckets(reversed(list(parameters)), BUCKET)]
    begun: list[_Bucket] = []

    def begin(*, full: bool) -> None:
        while waiting and (not full or waiting[0].missing == 0):
            waiting[0].begin()
            begun.append(waiting.pop(0))

    def hook(bucket: _Bucket, parameter: nn.Parameter) -> None:
        bucket.missing -= 1
        begin(full=True)

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(hook, bucket))
        for bucket in waiting
        for parameter in bucket.parameters
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
    begin(full=False)
    for bucket in begun:
        bucket.finish()
