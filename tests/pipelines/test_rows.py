"""What whoever adds a network class is told where its rows of blocks are not described."""

from dataclasses import replace

import pytest
import torch
from pipelines.models import diffusers, dit, randomised
from torch import nn

import dualrate as dr
from dualrate.pipelines.caching import Features, Fixed, Levels
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.classes.kind import Rows
from dualrate.pipelines.retrofitted import as_map, taps_of

DIT = KINDS["DiTTransformer2DModel"]


@pytest.mark.parametrize("rows", [{"names": ()}, {"streams": ()}, {"streams": ("encoder_hidden_states",)}])
def test_rows_without_names_or_without_the_image_are_refused(rows):
    with pytest.raises(ValueError, match="name the network's lists of blocks, and what a block takes"):
        Rows(**rows)


def test_rows_of_a_wrong_name_say_which_lists_there_are():
    with pytest.raises(ValueError, match=r"no blocks in layers.*its lists are transformer_blocks"):
        Rows(names=("layers",)).blocks(dit())
    with pytest.raises(ValueError, match="its lists are none"):
        Rows().blocks(nn.Linear(1, 1))


def test_a_class_that_says_nothing_of_its_rows_is_told_how(monkeypatch):
    net, silent = nn.Linear(1, 1), replace(DIT, rows=None)
    for cache in (Features, Levels):
        with pytest.raises(ValueError, match=r"give that rows=Rows\(names=\.\.\.\)"):
            cache(net, silent, Fixed(2), 1)
    network = dr.from_diffusers(randomised(dit()), diffusers.DDPMScheduler()).network
    monkeypatch.setattr(network, "kind", silent)
    monkeypatch.setattr(network, "net", net)
    with pytest.raises(ValueError, match=r"Linear has no blocks to tap.*rows=Rows\(names"):
        taps_of(network, (4, 8, 8), [0])


@pytest.mark.parametrize("tokens", [15, 3, 20])
def test_tokens_on_no_square_are_refused(tokens):
    assert as_map(torch.zeros(2, 16, 3)).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match=rf"got {tokens} tokens: let hidden_states in Rows.streams be"):
        as_map(torch.zeros(2, tokens, 3))
