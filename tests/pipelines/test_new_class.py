"""A class that is added: caches and a retrofit follow from what it declares, and say what is missing."""

import pytest
import torch
from pipelines.models import diffusers, randomised

import dualrate as dr
from dualrate.pipelines.accelerate import METHODS
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.classes.kind import HIDDEN, TEXT, NetworkSpec, PromptPart, Rows, by_text
from dualrate.pipelines.policies import FirstBlock
from dualrate.pipelines.retrofitted import taps_of

NAME = "AuraFlowTransformer2DModel"
SHAPE = (4, 8, 8)
RIGHT = Rows(("joint_transformer_blocks",), (TEXT, HIDDEN))


def aura() -> torch.nn.Module:
    """Return a network of no known class: blocks of two streams, then blocks of one, of tokens of text and image."""
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 16}
    blocks = {"num_mmdit_layers": 3, "num_single_dit_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    net = diffusers.AuraFlowTransformer2DModel(**sizes | blocks, joint_attention_dim=12, caption_projection_dim=16)
    return randomised(net).eval()


def declared(monkeypatch, rows: Rows | None, net: torch.nn.Module) -> dr.Denoiser:
    spec = NetworkSpec(
        by_text,
        prompt=lambda config, tokens, shape: (PromptPart(TEXT, (tokens, config["joint_attention_dim"])),),
        tokens=6,
        rows=rows,
        units=lambda net: 1000.0,
    )
    monkeypatch.setitem(KINDS, NAME, spec)
    return dr.from_diffusers(
        net, diffusers.FlowMatchEulerDiscreteScheduler(), negative={TEXT: torch.zeros(1, 6, 12)}, tokens=6
    )


def called(net: torch.nn.Module) -> list[torch.Tensor]:
    x, text, times = torch.randn(1, *SHAPE), torch.randn(1, 6, 12), (0.9, 0.8, 0.7, 0.6)
    with torch.no_grad():
        return [net(x, encoder_hidden_states=text, timestep=torch.tensor([time])).sample for time in times]


@pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
def test_a_class_that_says_its_rows_is_cached_and_retrofitted(monkeypatch):
    net = aura()
    denoiser = declared(monkeypatch, RIGHT, net)
    assert [(tap.block, tap.channels, tap.side) for tap in taps_of(denoiser.network, SHAPE)] == [
        (0, 16, 4), (1, 16, 4), (2, 16, 4)
    ]  # fmt: skip
    for method, refresh in (("fora", 2), ("taylor", 2), ("fora", FirstBlock(1e9))):
        with dr.accelerate(net, method, refresh=refresh) as handle:
            outputs = called(net)
        (sampling,) = handle.samplings["transformer"]
        assert [call.did for call in sampling][1] == "skipped"
        assert all(output.isfinite().all() for output in outputs)


@pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"has no blocks in transformer_blocks: .* rows=Rows\(names=\.\.\.\)"),
        (Rows(("blocks",)), r"has no blocks in blocks: .* rows=Rows\(names=\.\.\.\)"),
        (
            Rows(("joint_transformer_blocks", "single_transformer_blocks"), (TEXT, HIDDEN)),
            r"AuraFlowSingleTransformerBlock of .* takes no encoder_hidden_states: .* streams=",
        ),
        (Rows(("joint_transformer_blocks",), (HIDDEN, TEXT)), r"14 tokens, which are not those of a square image"),
        (Rows(("single_transformer_blocks",)), r"30 tokens, which are not those of a square image"),
    ],
    ids=["none", "another-name", "mixed", "order", "joined"],
)
def test_what_is_missing_is_said(rows, message, monkeypatch):
    net = aura()
    denoiser = declared(monkeypatch, rows, net)
    with pytest.raises(ValueError, match=message + r".*pipelines/README\.md"):
        taps_of(denoiser.network, SHAPE)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"rows=Rows\(names"),
        (Rows(("joint_transformer_blocks",)), r"returns 2 tensors, expected hidden_states: .*streams="),
    ],
    ids=["none", "streams"],
)
def test_a_cache_says_it_too(rows, message, monkeypatch):
    net = aura()
    declared(monkeypatch, rows, net)
    with pytest.raises(ValueError, match=message), dr.accelerate(net, "fora", refresh=2):
        called(net)


@pytest.mark.parametrize("method", METHODS)
def test_without_rows_no_method_fails_in_its_own_words(method, monkeypatch):
    net = aura()
    declared(monkeypatch, None, net)
    with pytest.raises(ValueError, match=r"README|one level"):
        dr.accelerate(net, method, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
