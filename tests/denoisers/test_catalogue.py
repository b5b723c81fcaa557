"""Denoisers by name: ours, those of another package, and what is neither."""

import pytest

import dualrate as dr
from dualrate.denoisers.catalogue import DENOISERS, denoiser_named
from dualrate.denoisers.denoiser import Metered, Plain
from dualrate.denoisers.feature_cache import FeatureCache
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.uvit import UViT, UViTCut

PROCESS = dr.GaussianProcess(Cosine())


def plain(blocks: int) -> Plain:
    levels = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, blocks))
    return Plain(UViT(dr.UViTConfig(8, 1, levels, 3, patch=2, embedding=16, head_dim=16)), PROCESS)


@pytest.mark.parametrize(("blocks", "split"), [(1, 1), (2, 1), (3, 2), (6, 5), (12, 10)])
def test_five_in_six_of_the_middle_blocks_are_shared_and_one_at_least(blocks, split):
    model = plain(blocks)
    assert denoiser_named("shared-encoder")(model, PROCESS) == FeatureCache(UViTCut(model.network, 1, split), PROCESS)


def test_an_encoder_is_shared_of_a_single_u_vit_alone():
    network = plain(1).network
    for denoiser in (Guided(plain(1), PROCESS, 2.0, 3), Plain(network.float, PROCESS)):
        with pytest.raises(ValueError, match=f"a single-rate network that can be cut.*got {type(denoiser).__name__}"):
            denoiser_named("shared-encoder")(denoiser, PROCESS)


def test_a_name_of_another_package_is_found_once_it_is_imported():
    assert denoiser_named("dualrate.denoisers.denoiser:Metered") is Metered


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", f"no denoiser 'nonsense'; there are {', '.join(DENOISERS)}, and pack"),
        ("math:pi", "math:pi is no denoiser: expected what takes a denoiser and its process, got 3.14"),
        ("math:gone", "has no 'gone'"),
        ("math:", "written package.module:name"),
    ],
)
def test_a_name_that_is_none_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        denoiser_named(name)
