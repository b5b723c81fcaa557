"""ToCa and DuCa of blocks of two streams: which tokens are made anew, with what, and the attention that says so."""

from functools import partial

import pytest
import torch
from pipelines.models import diffusers, flux, ovis_image, qwen_image, randomised, sd3, texts
from torch import nn
from torch.nn import functional as F

import dualrate as dr
from dualrate.pipelines import caching
from dualrate.pipelines.classes.catalogue import kind_of
from dualrate.pipelines.cut_transformer import _Received


def sd35():
    """Return a network with a second attention, of the image alone."""
    sizes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": 8, "in_channels": 4}
    wide = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
    more = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    return diffusers.SD3Transformer2DModel(**sizes, **wide, **more, out_channels=4, pos_embed_max_size=8)


MADE = {
    "SD3": sd3,
    "SD3.5": sd35,
    "Flux": partial(flux, num_layers=2, num_single_layers=2),
    "Qwen-Image": qwen_image,
    "Ovis-Image": ovis_image,
}
every = pytest.mark.parametrize("made", MADE.values(), ids=MADE)
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def network(made):
    """Return a network for which all times are the same, and calls of it at a step."""
    net = randomised(made()).eval()
    for part in net.modules():
        if type(part).__name__ == "TimestepEmbedding":
            nn.init.zeros_(part.linear_1.weight)
    kind, inputs = kind_of(type(net).__name__, net.config), texts(net, 2)

    def call(x, step):
        return kind.call(net, x, torch.full((2,), (900.0 - step) / kind.units(net)), None, inputs)

    return net, call


def changed(one, other):
    """Return where tokens, of 2 x 2 positions, differ: (B, n)."""
    return F.max_pool2d((one - other).abs().amax(1), 2).flatten(1) > 1e-6


@pytest.fixture
def chosen(monkeypatch):
    """Note what `choose` was asked, and what it answered."""
    seen, choose = [], caching.choose

    def noted(*of):
        seen.append((of[0], choose(*of)))
        return seen[-1][1]

    monkeypatch.setattr(caching, "choose", noted)
    return seen


@every
@pytest.mark.parametrize("method", ["toca", "duca"])
def test_a_partial_call_makes_the_chosen_tokens_of_the_image_anew_with_the_attention_that_was(made, method, chosen):
    net, call = network(made)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with torch.no_grad():
        own = call(X, 0)
        moved = X + 0.5 * X.roll(1, -1)
        with dr.accelerate(net, "fora", refresh=2):
            call(X, 0)
            kept = call(moved, 1)
        with dr.accelerate(net, method, refresh=2, scheduler=scheduler) as handle:
            torch.testing.assert_close(call(X, 0), own)
            some = call(moved, 1)
            torch.testing.assert_close(call(X, 2), own)
            torch.testing.assert_close(call(X, 3), own)
        torch.testing.assert_close(call(X, 4), own, rtol=0, atol=0)
    (_, tokens), *_ = chosen
    blocks = len([part for part in net.modules() if hasattr(part, "attn")])
    assert torch.equal(changed(some, kept), torch.zeros(2, 16).scatter(1, tokens.flatten(1), 1) > 0)
    assert tokens.shape[1:] == (blocks, round(16 * {"toca": 0.175, "duca": 0.125}[method]))
    full, partly = next(iter(handle.samplings.values()))[0][:2]
    assert (full.did, partly.did) == ("full", "partial")
    assert partly.macs < full.plain <= full.macs


@every
def test_scores_are_what_tokens_receive_of_all_queries(made, chosen, monkeypatch):
    """Read from values: 1 for one token of the image and 0 for all else, they mix to the weights of that token."""
    net, call = network(made)
    attend, place, outputs = F.scaled_dot_product_attention, 5, []
    with torch.no_grad(), dr.accelerate(net, "toca", refresh=2):
        call(X, 0)
        call(X, 1)
    parts = {name: part for name, part in net.named_modules() if hasattr(part, "to_v")}

    def of_image(module, args, out):
        weight = torch.zeros_like(out)
        weight[:, place - 16] = 1  # a row of both has the image last
        return weight

    def spied(*args, **named):
        outputs.append(attend(*args, **named))
        return outputs[-1]

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    received: dict[str, torch.Tensor] = {}
    for index, (name, part) in enumerate(parts.items()):
        values = [part.to_v, *([part.add_v_proj] if getattr(part, "add_v_proj", None) is not None else [])]
        hooks = [values[0].register_forward_hook(of_image)]
        hooks += [value.register_forward_hook(lambda module, args, out: torch.zeros_like(out)) for value in values[1:]]
        outputs.clear()
        with torch.no_grad():
            call(X, 0)
        block = name.rpartition(".")[0]
        received[block] = received.get(block, 0) + outputs[index].mean((1, 3)).sum(1)
        for hook in hooks:
            hook.remove()
    scores, _ = chosen[0]
    torch.testing.assert_close(scores[..., place], torch.stack([*received.values()], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["none", "bool", "added"])
def test_a_mask_takes_part_in_what_keys_receive(form):
    q, k = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(2))
    there = torch.tensor([1, 1, 0, 1, 1], dtype=torch.bool)
    logits = q @ k.mT / 2
    mask = {"none": None, "bool": there[None, None, None], "added": torch.where(there, 0.3, -1e9).double()[None]}[form]
    if form != "none":
        logits = logits.masked_fill(~there, -torch.inf)
    with _Received() as seen:
        F.scaled_dot_product_attention(q, k, q, attn_mask=mask)
    torch.testing.assert_close(seen.received, logits.softmax(-1).mean(1).sum(1))


def test_attention_of_three_streams_or_of_another_kernel_is_refused():
    class Three(nn.Module):
        def forward(self, hidden_states, **named):
            return hidden_states, named["encoder_hidden_states"], hidden_states

    class Silent(Three):
        def forward(self, hidden_states, **named):
            return hidden_states, named["encoder_hidden_states"]

    net, call = network(MADE["Flux"])
    for other in (Three, Silent):
        net.transformer_blocks[0].attn = other()
        with (
            dr.accelerate(net, "toca", refresh=2),
            pytest.raises(ValueError, match=f"{other.__name__} returns.*'fora'"),
        ):
            call(X, 0)


def test_attention_that_is_perturbed_in_some_rows_has_no_scores_and_is_renewed_at_random():
    net, call = network(MADE["SD3"])
    perturbed = diffusers.models.attention_processor.PAGJointAttnProcessor2_0()  # in the second row
    net.transformer_blocks[0].attn.set_processor(perturbed)
    with dr.accelerate(net, "toca", refresh=2), pytest.raises(ValueError, match=r"the perturbed guidance.*'fora'"):
        call(X, 0)
    own = call(X, 0)
    with dr.accelerate(net, "duca", scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), refresh=2):
        torch.testing.assert_close(call(X, 0), own)
        call(X, 1)
