"""Contexts of part of a batch, and of a later step."""

from dataclasses import replace

import torch

from dualrate.diffusion.context import Context
from theory.common import f64, normals

CONTEXT = Context((normals(0, 3, 4, 2, 2), normals(1, 3, 8)), tau=f64(0.9, 0.5, 0.7))


def assert_same(one: Context, other: Context) -> None:
    for mine, theirs in zip((*one.features, one.tau), (*other.features, other.tau), strict=True):
        assert torch.equal(mine, theirs)


def test_scattered_rows_are_found_again_and_the_others_are_absent():
    rows = torch.tensor([4, 0, 3])
    whole = CONTEXT.scattered(rows, 6)
    assert_same(whole.rows(rows), CONTEXT)
    assert whole.present.tolist() == [True, False, False, True, True, False]
    for part in (*whole.features, whole.tau):
        assert len(part) == 6
        assert (part[~whole.present] == 0).all()
    assert Context().scattered(rows, 6) == Context()


def test_rows_that_were_absent_stay_absent():
    present = torch.tensor([True, False, True])
    whole = replace(CONTEXT, present=present).scattered(torch.tensor([1, 2, 3]), 4)
    assert whole.present.tolist() == [False, True, False, True]


def test_scattering_carries_gradient():
    feature = normals(2, 2, 3).requires_grad_()
    Context((feature,), tau=f64(0.1, 0.2)).scattered(torch.tensor([2, 0]), 3).features[0].sum().backward()
    assert torch.equal(feature.grad, torch.ones_like(feature))


def test_an_output_of_the_encoder_is_not_passed_on_to_later_steps():
    fresh = replace(CONTEXT, x_hat=normals(3, 3, 2))
    assert fresh.aged().x_hat is None
    assert_same(fresh.aged(), CONTEXT)
