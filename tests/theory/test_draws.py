"""The random numbers: known answers of the generator, the law of the draws, independence of the batch."""

import math
from zlib import crc32

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from dualrate.diffusion.random import Draws, philox, philox_on_host
from dualrate.sampling import trajectory as noise
from theory.common import PROCESS

# Philox4x32-10 from the reference implementation's list of known answers (Random123, kat_vectors).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    k0, k1 = (int(word, 16) for word in key.split())
    given = [int(word, 16) for word in counter.split()]
    for words in (
        philox([torch.tensor([word]) for word in given], (k0, k1)),
        philox_on_host([np.array([word], dtype=np.uint64) for word in given], (k0, k1)),
    ):
        assert " ".join(f"{word.item():08x}" for word in words) == expected


def test_numpy_and_tensors_give_the_same_words():
    counter = torch.randint(0, 2**32, (4, 50), generator=torch.Generator().manual_seed(0))
    own = counter.numpy().astype(np.uint64)
    of_numpy, of_tensors = philox_on_host(own, (3, 2**32 - 1)), philox(counter, (3, 2**32 - 1))
    assert all((torch.from_numpy(a.astype(np.int64)) == b).all() for a, b in zip(of_numpy, of_tensors, strict=True))
    assert (own == counter.numpy()).all()  # what is done in place is not done to the counters


def test_normals_have_the_bits_of_box_muller():
    # every picture of a seed depends on them: word, stream and row in their places, in float32, operation by operation
    seed, rows, blocks, streams = 2**40 + 9, [5, 2**40 + 3], 3, ["a", "b"]
    made = Draws(seed, torch.tensor(rows)).normals(streams, 4 * blocks - 1)
    for s, stream in enumerate(streams):
        for r, row in enumerate(rows):
            counter = [
                torch.arange(blocks),
                *(torch.tensor([c]) for c in (row % 2**32, row >> 32, crc32(stream.encode()))),
            ]
            w0, w1, w2, w3 = (((w >> 8).float() + 0.5) / 2**24 for w in philox(counter, (seed % 2**32, seed >> 32)))
            pairs = [((-2 * u.log()).sqrt(), 2 * math.pi * v) for u, v in ((w0, w1), (w2, w3))]
            expected = [part for radius, angle in pairs for part in (angle.cos() * radius, angle.sin() * radius)]
            assert torch.equal(made[s, r], torch.stack(expected, dim=-1).flatten()[:-1])


def test_laws():
    draws = Draws(1, torch.arange(2000))
    normal, uniform = draws.normal("a", 25).double(), draws.uniform("b", 25)
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 0.01
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > 0.01
    assert ((uniform > 0) & (uniform < 1)).all()
    assert (torch.corrcoef(normal.T) - torch.eye(25)).abs().max() < 5 / 2000**0.5
    counts = draws.integer("c", 7, 25).flatten().bincount()
    assert len(counts) == 7
    assert (counts - 50_000 / 7).abs().max() < 5 * (50_000 / 7) ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 5, 5), (2, 8)])
def test_shapes_and_types(shape):
    draws = Draws(1, torch.arange(4))
    assert draws.normal("a", *shape).shape == draws.uniform("a", *shape).shape == (4, *shape)
    assert draws.integer("a", 3, *shape).shape == (4, *shape)
    assert draws.normal("a", *shape).dtype == torch.float32
    assert draws.uniform("a", *shape).dtype == torch.float64
    assert draws.integer("a", 3, *shape).dtype == torch.int64


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_row_is_the_same_in_every_batch(kind):
    rows = torch.tensor([5, 0, 2**40, 7])
    together = getattr(Draws(9, rows), kind)("a", 3, 3)
    for i, row in enumerate(rows):
        assert torch.equal(together[i], getattr(Draws(9, row[None]), kind)("a", 3, 3)[0])


@pytest.mark.parametrize("law", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_several_streams_at_once_are_each_alone(shape, law):
    draws, streams = Draws(9, torch.tensor([5, 2**40])), ["a", "b", "c"]
    together, alone = getattr(draws, f"{law}s")(streams, *shape), getattr(draws, law)
    assert together.shape == (3, 2, *shape)
    assert all(torch.equal(one, alone(name, *shape)) for one, name in zip(together, streams, strict=True))


@pytest.mark.parametrize("ahead", [1, 30, 10_000])
def test_a_step_s_noise_is_the_same_however_many_are_made_at_once(ahead, monkeypatch):
    monkeypatch.setitem(noise.AHEAD, "cpu", ahead)
    draws = Draws(0, torch.tensor([3, 4]))
    made = noise.StepNoise(PROCESS, draws, 5, (3,))
    for step, draw in ((0, 0), (0, 1), (1, 0), (3, 0), (3, 1), (4, 0)):
        assert torch.equal(made(step, draw), draws.normal(f"step {step} draw {draw}", 3))


def test_a_last_step_that_draws_nothing_costs_no_numbers(monkeypatch):
    streams, normals = [], Draws.normals

    def counted(draws, names, *shape):
        streams.extend(names)
        return normals(draws, names, *shape)

    monkeypatch.setattr(Draws, "normals", counted)
    made = noise.StepNoise(PROCESS, Draws(0, torch.tensor([3, 4])), 3, (3,))
    for step in range(2):
        made(step, 0)
    assert streams == ["step 0 draw 0", "step 1 draw 0"]


def test_rows_seeds_and_streams_are_unrelated():
    n = 20_000
    row = torch.arange(4)
    samples = [Draws(1, row).normal("a", n), Draws(2, row).normal("a", n), Draws(2**32 + 1, row).normal("a", n)]
    samples += [Draws(1, row).normal("b", n), Draws(1, row + 2**32).normal("a", n)]
    correlation = torch.corrcoef(torch.cat(samples).double())
    assert (correlation - torch.eye(20)).abs().max() < 5 / n**0.5
