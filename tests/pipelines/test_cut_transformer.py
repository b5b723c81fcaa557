"""Caches of transformers of diffusers: their blocks stand aside for a call, and the network is left as it is."""

from dataclasses import replace

import pytest
import torch
from pipelines.models import dit, flux, ovis_image, pixart, prompted, qwen_image, randomised, sana, sd3, unet, unet_text

import dualrate as dr
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.pipelines.cut_transformer import _Row
from dualrate.sampling.cost import call_cost

IN_A_ROW = {"DiT": lambda: dit(num_layers=3), "PixArt": pixart, "Sana": sana}
OTHERS = {
    "UNet2D": unet,
    "UNet of texts": unet_text,
    "SD3": sd3,
    "Flux": flux,
    "Qwen-Image": qwen_image,
    "Ovis-Image": ovis_image,
}


def plain(made):
    denoiser, cond = prompted(randomised(made()))
    return denoiser, cond[:2]


@pytest.mark.parametrize("made", IN_A_ROW.values(), ids=IN_A_ROW)
def test_a_cache_is_the_network_where_it_was_refreshed_and_leaves_it_alone(made):
    denoiser, cond = plain(made)
    shape = (denoiser.network.net.config.in_channels, 8, 8)
    cache = denoiser_named("fora")(denoiser, denoiser.process)
    z, t = torch.randn(2, *shape), torch.tensor([0.5, 0.4]).double()

    def never(*given):
        raise AssertionError("what was compiled holds the blocks")

    with torch.no_grad():
        own = denoiser.denoise(z, t, dr.Context(), cond)
        denoiser.network.forward = never  # as of a compiled network
        context = cache.encode(z, t, cond)
        torch.testing.assert_close(context.x_hat, own, rtol=0, atol=0)
        kept = cache.denoise(z, t, context.aged(), cond)
        torch.testing.assert_close(kept, own)
        assert not torch.equal(cache.denoise(z.roll(1, -1), t * 0.9, context.aged(), cond), kept)
        del denoiser.network.forward
        torch.testing.assert_close(denoiser.denoise(z, t, dr.Context(), cond), own, rtol=0, atol=0)
        with pytest.raises(ValueError, match="input's shape"):
            cache.denoise(z, t, dr.Context((context.features[0][:, :4],), tau=t), cond)
    whole, cost = call_cost(denoiser, shape, 0), call_cost(cache, shape, 0)
    assert 0 < cost.light < cost.heavy / 2
    assert cost.heavy == whole.light


@pytest.mark.parametrize("name", ["toca", "duca"])
@pytest.mark.parametrize("made", [IN_A_ROW["DiT"], IN_A_ROW["PixArt"]], ids=["DiT", "PixArt"])
def test_tokens_are_made_anew_one_by_one(made, name):
    """All of them with fresh attention: the network itself. Some: only what is added to these has changed."""
    denoiser, cond = plain(made)
    cache = denoiser_named(name)(denoiser, denoiser.process)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 0.4]).double()
    with torch.no_grad():
        own = denoiser.denoise(z, t, dr.Context(), cond)
        context = cache.encode(z, t, cond)
        torch.testing.assert_close(context.x_hat, own, rtol=0, atol=0)
        whole = replace(cache, share=1.0).renew(z, t, context.aged(), cond)
        torch.testing.assert_close(whole.x_hat, own)
        some = replace(cache, share=0.25).renew(z.roll(1, -1), t * 0.9, context.aged(), cond)
        torch.testing.assert_close(denoiser.denoise(z, t, dr.Context(), cond), own, rtol=0, atol=0)
    added, _, received, age = context.features
    changed = (some.features[0] != added).any(3)
    assert torch.equal(changed, some.features[3] == 0)
    *shape, size = age.shape
    assert (changed.sum(2) == round(0.25 * size)).all()
    assert not torch.equal(changed[:, 0], changed[:, 1])  # each block has its own
    torch.testing.assert_close(received.sum(2), torch.full(shape, float(size)) * (name == "toca"))
    assert (received - 1).abs().max() > 1e-3  # of all queries, not from all keys


def test_blocks_in_which_tokens_meet_outside_attention_are_refused():
    denoiser, _ = plain(IN_A_ROW["Sana"])
    with pytest.raises(ValueError, match=r"one by one in BasicTransformerBlock, .*, got SanaTransformerBlock"):
        denoiser_named("duca")(denoiser, denoiser.process)


@pytest.mark.parametrize("made", OTHERS.values(), ids=OTHERS)
def test_blocks_that_pass_more_than_tokens_on_are_refused(made):
    denoiser, _ = plain(made)
    with pytest.raises(ValueError, match="do not stand in a row"):
        denoiser_named("taylor")(denoiser, denoiser.process)


def test_deep_cache_wants_levels():
    denoiser, _ = plain(IN_A_ROW["DiT"])
    with pytest.raises(ValueError, match="has one level"):
        denoiser_named("deep-cache")(denoiser, denoiser.process)


def test_blocks_as_one_also_take_their_state_by_name():
    """As some networks of diffusers pass it."""
    x = torch.randn(2, 3, 4)
    assert torch.equal(_Row([torch.nn.Identity()])(hidden_states=x), x)
