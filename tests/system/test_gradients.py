"""Gradients of two processes, added up during the backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn import Parameter
from training import together

from dualrate.training import distributed as gradients
from dualrate.training.distributed import World, summed_gradients

SIZES = (3, 2, 2, 1)


@contextmanager
def watched(parameters: Sequence[Parameter], world: World, bucket: int) -> Iterator[list[int]]:
    """Around the pass that adds up, in buckets of so many elements: how many gradients there are when a sum begins."""
    found: list[int] = []
    all_reduce = dist.all_reduce

    def counted(*arguments, **options):
        found.append(sum(parameter.grad is not None for parameter in parameters))
        return all_reduce(*arguments, **options)

    with (
        mock.patch.object(gradients, "GRADIENT_BUCKET", bucket),
        mock.patch.object(dist, "all_reduce", counted),
        summed_gradients(parameters, world),
    ):
        yield found
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)


@dataclass(frozen=True)
class Reached:
    """A loss that reaches the first three parameters, on process 1 the first two; after one that reaches the first."""

    bucket: int

    def __call__(self, world: World) -> None:
        torch.use_deterministic_algorithms(True)  # fills memory that nothing was written to with what is no number
        parameters = [Parameter(torch.ones(size, dtype=torch.float64)) for size in SIZES]
        share = world.rank + 1
        (100 * share * parameters[0]).sum().backward()
        reached = enumerate(parameters[: 3 - world.rank], 1)
        loss = torch.stack([(10 * number * share * parameter).sum() for number, parameter in reached]).sum()
        with watched(parameters, world, self.bucket) as found:
            loss.backward()
        assert len(found) == (1 if self.bucket > sum(SIZES) else len(SIZES))
        sums = [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]
        assert sums == [[330] * 3, [60] * 2, [30] * 2, None]  # of the first 100 + 200 + 10 + 20


@pytest.mark.parametrize("bucket", [100, 1])
def test_gradients_are_summed_whichever_process_has_them(bucket):
    assert together.ended(together.start(Reached(bucket))) == [0, 0]


class Layers:
    """Four after each other, a bucket each."""

    def __call__(self, world: World) -> None:
        layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(4)))
        with watched(list(layers.parameters()), world, 4) as found:
            layers(torch.ones(1, 2)).sum().backward()
        assert found == [1, 2, 3, 4]


def test_a_sum_begins_when_its_gradients_are_there():
    assert together.ended(together.start(Layers())) == [0, 0]


class Convolution:
    """Weights whose channels are last in memory: so is the sum of their gradients."""

    def __call__(self, world: World) -> None:
        torch.manual_seed(0)
        alone = torch.nn.Conv2d(3, 4, 2).double().to(memory_format=torch.channels_last)
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        alone(x).square().sum().backward()
        expected = [parameter.grad for parameter in alone.parameters()]
        alone.zero_grad()
        with watched(list(alone.parameters()), world, 100):
            alone(x[world.rank :][:1]).square().sum().backward()
        for parameter, gradient in zip(alone.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
            assert parameter.grad.stride() == parameter.stride()


def test_sums_are_laid_out_as_the_weights():
    assert together.ended(together.start(Convolution())) == [0, 0]
