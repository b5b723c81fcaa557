"""The other shape of a forecast's light network."""

import dualrate as dr
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import TwoConditional
from studies.light_shapes import coarse


def test_it_begins_at_the_second_level_as_wide_as_the_heavy_network() -> None:
    heavy, light = (
        dr.UViTConfig(8, 3, (dr.Level("conv", fine, 1), dr.Level("conv", wide, blocks)), embedding=16, periodic=True)
        for fine, wide, blocks in ((8, 16, 3), (8, 8, 1))
    )
    pair = coarse(TwoConditional(heavy, light, (1, 4, 4)))
    assert pair.light.levels == (dr.Level("conv", 16, 1),)
    assert pair.light.sides(0) == heavy.sides(1)
    assert pair.build(GaussianProcess(Cosine()))
