"""Does a student of tokens beat its teacher? A law of four tokens as a table, so that every distance is exact.

    python -m studies.token_students OUT.json        # two minutes of a core

The law: 81 states, p proportional to exp(n), n standard normal. Teachers are made of its exact conditionals p:

    exact       p
    flat        p^(1 / 1.5), renormalised: as of a network that learned too little; `--temperature` 2/3 makes it exact
    rough       p exp(0.5 n), n normal, fixed for each state of the tokens: errors of a network, which agree on no law

Students are those of `examples/discrete_moment_matching.py`. Distances are total variation from the table, of the
law that follows from many draws of steps; the floor is as many draws of the table itself.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from examples import discrete_moment_matching as dmmd

VOCABULARY, LENGTH, DRAWS, MANY = 3, 4, 200_000, 64
KINDS = {"exact": (1.0, 0.0), "flat": (1 / 1.5, 0.0), "rough": (1.0, 0.5)}  # power of p, size of its errors


def set_law(seed: int) -> None:
    """Give the example a law of four tokens."""
    generator = torch.Generator().manual_seed(seed)
    dmmd.V = dmmd.MASK = VOCABULARY
    dmmd.LENGTH, dmmd.STATES = LENGTH, torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    dmmd.LAW = torch.randn(len(dmmd.STATES), generator=generator).softmax(0)


def teacher_of(power: float, size: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Its probabilities, (n, L, V), of tokens (n, L), from a table of all states of tokens and masks."""
    inputs = torch.tensor(list(itertools.product(range(VOCABULARY + 1), repeat=LENGTH)))
    logits = power * exact(inputs).log()
    logits = logits + size * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    certain = (inputs != dmmd.MASK)[..., None]
    table = torch.where(certain, exact(inputs), logits.softmax(2)).clamp(min=1e-30)
    places = (VOCABULARY + 1) ** torch.arange(LENGTH - 1, -1, -1)
    return lambda z: table[(z * places).sum(1)]


def exact(z: Tensor) -> Tensor:
    """p(x_i | z), (n, L, V)."""
    agrees = ((z[:, None] == dmmd.MASK) | (z[:, None] == dmmd.STATES)).all(2)
    weights = agrees * dmmd.LAW
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("nk,klv->nlv", weights, one_hot(dmmd.STATES, VOCABULARY).to(weights)).clamp(min=1e-30)


def distance(network: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> float:
    """Total variation from the table."""
    return dmmd.total_variation(torch.cat([dmmd.sample(network, DRAWS // 10, steps) for _ in range(10)]))


def main(out: Path, steps: int = 4, iterations: int = 3000) -> None:
    rows = []
    for seed, (kind, (power, size)) in itertools.product((0, 1), KINDS.items()):
        set_law(seed)
        torch.manual_seed(seed)
        dmmd.teacher = teacher_of(power, size, seed)
        student = dmmd.train(steps, iterations)

        def taught(z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            return dmmd.teacher(z)

        row = {"law": seed, "teacher": kind, "steps": steps, "student": distance(student, steps)}
        row |= {"teacher in as many": distance(taught, steps), f"teacher in {MANY}": distance(taught, MANY)}
        rows.append(row | {"floor": dmmd.total_variation(dmmd.draw_data(DRAWS))})
        print(rows[-1], flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
