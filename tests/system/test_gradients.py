"""Gradients of two processes, added up."""

import torch
from torch.nn import Parameter
from training import together

from dualrate.training.distributed import World, sum_gradients

SIZES = (3, 2, 2, 1)


class Reached:
    """A loss that reaches the first three parameters, on process 1 the first two; after one that reaches the first."""

    def __call__(self, world: World) -> None:
        parameters = [Parameter(torch.ones(size, dtype=torch.float64)) for size in SIZES]
        parameters.insert(1, Parameter(torch.ones(2)))  # of another type
        share = world.rank + 1
        (100 * share * parameters[0]).sum().backward()
        reached = [parameters[0], *parameters[2:]][: 3 - world.rank]
        loss = torch.stack([(10 * n * share * parameter).sum() for n, parameter in enumerate(reached, 1)]).sum()
        (loss + parameters[1].sum()).backward()
        sum_gradients(parameters, world)
        sums = [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]
        assert sums == [[330] * 3, [2] * 2, [60] * 2, [30] * 2, None]  # of the first 100 + 200 + 10 + 20


class Convolution:
    """Weights whose channels are last in memory: so are the sums of their gradients."""

    def __call__(self, world: World) -> None:
        torch.manual_seed(0)
        alone = torch.nn.Conv2d(3, 4, 2).double().to(memory_format=torch.channels_last)
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        alone(x).square().sum().backward()
        expected = [parameter.grad for parameter in alone.parameters()]
        alone.zero_grad()
        alone(x[world.rank :][:1]).square().sum().backward()
        sum_gradients(alone.parameters(), world)
        for parameter, gradient in zip(alone.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
            assert parameter.grad.stride() == parameter.stride()


def test_gradients_are_summed_whichever_process_has_them_and_laid_out_as_the_weights():
    assert together.ended(together.start(together.InTurn((Reached(), Convolution())))) == [0, 0]
