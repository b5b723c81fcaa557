"""The gradient moment against closed forms: language models that are tables of logits, and laws by enumeration."""

import itertools

import pytest
import torch
from torch import nn

from dualrate.texts.language_model import block_gradients, gradient_moment, nll, number_of_blocks

CLOSE = {"rel": 1e-12, "abs": 1e-15}


class Unigram(nn.Module):
    """Every character of one law, whatever those before."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, pieces):
        return self.logits.expand(*pieces.shape, -1)


class Bigram(nn.Module):
    """A row of logits for each character before; the last row for the first character."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(logits)

    def forward(self, pieces):
        before = nn.functional.pad(pieces[:, :-1], (1, 0), value=self.table.shape[1])
        return self.table[before]


def moment(module, generated, data, blocks):
    return gradient_moment(*(block_gradients(module, pieces, blocks) for pieces in (generated, data)))


def test_of_one_table_of_logits_it_is_the_squared_distance_of_the_characters_shares():
    module = Unigram([0.3, -1.0, 0.5])
    generated, data = torch.tensor([[0, 1, 2, 2]] * 5), torch.tensor([[0, 0, 1, 0]] * 4)
    found = moment(module, generated, data, 4)
    assert found.value == pytest.approx((0.25 - 0.75) ** 2 + 0 + 0.5**2, **CLOSE)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert moment(module, data, data, 4).value == pytest.approx(0, abs=1e-15)


def test_of_a_table_for_each_character_before_it_is_that_of_the_pairs_shares():
    generator = torch.Generator().manual_seed(0)
    module = Bigram(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    generated, data = torch.tensor([[0, 1, 1, 2]] * 3), torch.tensor([[2, 0, 1, 0]] * 3)

    def pull(piece):
        """-d log p / d table: p(a) softmax(row a) - p(a, b), of the pairs of this piece."""
        pairs = torch.zeros(4, 3, dtype=torch.float64)
        for before, character in zip([3, *piece[:-1]], piece, strict=True):
            pairs[before, character] += 1 / len(piece)
        return pairs.sum(1, keepdim=True) * module.table.detach().softmax(1) - pairs

    expected = (pull([0, 1, 1, 2]) - pull([2, 0, 1, 0])).square().sum()
    assert moment(module, generated, data, 3).value == pytest.approx(expected.item(), **CLOSE)


@pytest.mark.parametrize("q", [0.2, 0.7])
def test_it_is_unbiased_by_enumeration_of_all_sets_of_pieces(q):
    """Also 0 in the mean where the laws are one, which the square of the mean gradient is not."""
    module, p, expected, squared = Unigram([0.1, -0.4]), 0.7, 0.0, 0.0
    for both in itertools.product((0, 1), repeat=6):
        pieces = torch.tensor(both)[:, None]
        chance = (p ** pieces[:3] * (1 - p) ** (1 - pieces[:3])).prod() * (
            q ** pieces[3:] * (1 - q) ** (1 - pieces[3:])
        ).prod()
        gradients = [block_gradients(module, side, 3) for side in (pieces[:3], pieces[3:])]
        expected += chance.item() * gradient_moment(*gradients).value
        squared += chance.item() * (gradients[0] - gradients[1]).mean(0).square().sum().item()
    assert expected == pytest.approx(2 * (p - q) ** 2, rel=1e-6, abs=1e-7)
    assert squared > 2 * (p - q) ** 2 + 0.1


def test_it_is_the_mean_over_all_ways_to_make_halves_of_the_blocks():
    generator = torch.Generator().manual_seed(1)
    generated, data = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    difference, products = generated - data, []
    for half in itertools.combinations(range(6), 3):
        other = [k for k in range(6) if k not in half]
        products.append(difference[list(half)].mean(0) @ difference[other].mean(0))
    assert gradient_moment(generated, data).value == pytest.approx(torch.stack(products).mean().item(), **CLOSE)


@pytest.mark.parametrize(("apart", "factor"), [(2.0, 1.0), (0.0, 2**0.5)])
def test_the_standard_error_is_right_where_laws_differ_and_on_the_safe_side_where_they_do_not(apart, factor):
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(2, 1000, 20, 8, generator=generator, dtype=torch.float64)
    found = [gradient_moment(apart + x, y) for x, y in zip(*noise, strict=True)]
    values, errors = torch.tensor([(one.value, one.error**2) for one in found], dtype=torch.float64).T
    assert values.mean().item() == pytest.approx(8 * apart**2, abs=4 * values.std().item() / 1000**0.5)
    assert errors.mean().sqrt().item() == pytest.approx(factor * values.std().item(), rel=0.1)


def test_nll_is_a_mean_over_the_characters_of_a_piece():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()[None]
    assert nll(logits, torch.tensor([[0, 2]])).item() == pytest.approx(-(torch.tensor([0.5, 0.8]).log().mean()).item())


def test_what_gives_no_value_is_refused():
    gradients = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="expected \\(K, P\\)"):
        gradient_moment(gradients, gradients[:3])
    with pytest.raises(ValueError, match="K >= 3"):
        gradient_moment(gradients[:2], gradients[:2])
    with pytest.raises(ValueError, match="not finite"):
        gradient_moment(gradients, gradients / 0)
    with pytest.raises(ValueError, match="2 pieces of text for 3 blocks"):
        block_gradients(Unigram([0.0, 0.0]), torch.zeros(2, 1, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="at least 3 pieces"):
        number_of_blocks(2)
    assert (number_of_blocks(7), number_of_blocks(500)) == (7, 20)
