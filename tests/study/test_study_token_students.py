"""Teachers of the study of students of tokens, against the table of the law."""

import itertools

import pytest
import torch

from examples import discrete_moment_matching as dmmd
from studies import token_students


@pytest.fixture(autouse=True)
def law(monkeypatch) -> None:
    for name in ("V", "MASK", "LENGTH", "STATES", "LAW", "teacher"):
        monkeypatch.setattr(dmmd, name, getattr(dmmd, name))
    token_students.set_law(0)


def test_an_exact_teacher_has_the_conditionals_of_the_table_and_a_flat_one_has_them_at_two_thirds() -> None:
    z = torch.tensor(list(itertools.product(range(dmmd.V + 1), repeat=dmmd.LENGTH)))
    hidden = z == dmmd.MASK
    exact = token_students.teacher_of(1.0, 0.0, 0)(z)
    for row, masked, found in zip(z.tolist(), hidden.tolist(), exact, strict=True):
        agree = [all(m or a == b for a, b, m in zip(row, state, masked, strict=True)) for state in dmmd.STATES.tolist()]
        law = dmmd.LAW * torch.tensor(agree)
        for place, probabilities in enumerate(found):
            counts = torch.zeros(dmmd.V).index_add(0, dmmd.STATES[:, place], law)
            torch.testing.assert_close(probabilities, counts / law.sum())
    flat = token_students.teacher_of(1 / 1.5, 0.0, 0)(z)
    torch.testing.assert_close((flat.log() * 1.5).softmax(2)[hidden], exact[hidden])


def test_one_token_at_a_time_draws_the_law_of_the_table() -> None:
    torch.manual_seed(0)
    exact = token_students.teacher_of(1.0, 0.0, 0)
    drawn = dmmd.sample(lambda z, t, noise: exact(z), 50_000, 64)
    assert dmmd.total_variation(drawn) < 0.025
