"""Low-rank adapters: closed forms in float64, phases that leave each other alone, names of peft and diffusers."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dualrate as dr
from dualrate.networks.adapters import Adapted, adapter_state, layers_of, merged
from dualrate.networks.blocks import conv3
from dualrate.networks.dit import DiTConfig
from dualrate.texts.transformer import TokensConfig, TokenTransformer

LEVELS = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1))
UVIT = dr.UViTConfig(8, 2, LEVELS, 3, patch=2, embedding=16, head_dim=16)
NETS = {
    "uvit": UVIT.network,
    "dit": DiTConfig(8, 2, 16, 2, 3, head_dim=8).network,
    "tokens": lambda: TokenTransformer(TokensConfig(2, 8, 8, channels=16, blocks=1, num_classes=3, head_dim=16)),
}
PHASES = ("slow", "fast")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision, with no weight that is zero."""
    net = net.double().eval()
    for number, weight in enumerate(net.parameters()):
        weight.data = 0.2 * normal(*weight.shape, seed=1000 * seed + number)
    return net


def inputs(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return normal(rows, 2, 8, 8), torch.linspace(-4, 4, rows, dtype=torch.float64), torch.arange(rows) % 3


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return randomised(NETS[request.param]())


def test_a_new_adapter_changes_no_bit(net: nn.Module) -> None:
    before = net(*inputs())
    adapted = Adapted(net, PHASES, 4)
    assert layers_of(net)
    for phase in (None, *PHASES):
        assert torch.equal(adapted(phase, *inputs()), before)
    assert all(layer.lora_A["slow"].weight.std() > 0.1 for layer in layers_of(net).values())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 7),
        nn.Conv2d(5, 7, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(5, 7, (1, 3), stride=2, padding=(0, 1), dilation=(1, 2)),
        conv3(5, 7, poles=True),
        conv3(5, 7, periodic=(False, True)),
        conv3(5, 7, periodic=(True, False)),
        conv3(5, 7, line=True, periodic=(False, True)),
    ],
    ids=["linear", "circular", "strided", "poles", "across", "down", "line"],
)
def test_an_update_is_s_b_a(layer: nn.Linear | nn.Conv2d) -> None:
    net = nn.Sequential()
    net.add_module("out", copy.deepcopy(layer))
    adapted = Adapted(randomised(net), PHASES, 2, scale=3.0)
    randomised(adapted, 1)
    x = normal(4, 6, 5) if isinstance(layer, nn.Linear) else normal(4, 5, 6, 6)
    found = layers_of(net)["out"]
    for phase in PHASES:
        a, b = (part[phase].weight for part in (found.lora_A, found.lora_B))
        if isinstance(layer, nn.Linear):
            expected = F.linear(x, found.weight + 3 * torch.einsum("or,ri->oi", b, a), found.bias)
        else:
            other = copy.deepcopy(layer).double()
            other.weight.data = found.weight + 3 * torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
            other.bias.data = found.bias
            expected = other(x)
        torch.testing.assert_close(adapted(phase, x), expected)


def test_merged_equals_unmerged(net: nn.Module) -> None:
    adapted = Adapted(net, PHASES, 4)
    randomised(adapted, 1)
    outputs = {phase: adapted(phase, *inputs()) for phase in (None, *PHASES)}
    assert not torch.allclose(outputs["slow"], outputs["fast"])
    for phase, output in outputs.items():
        alone = merged(net, phase)
        assert not layers_of(alone)
        torch.testing.assert_close(alone(*inputs()), output)
        assert torch.equal(adapted(phase, *inputs()), output)
    shared = {id(weight) for weight in net.parameters()}
    new = [name for name, weight in merged(net, "slow").named_parameters() if id(weight) not in shared]
    assert new == [f"{name}.weight" for name in layers_of(net)]


def test_phases_leave_each_other_alone(net: nn.Module) -> None:
    adapted = Adapted(net, PHASES, 4)
    randomised(adapted, 1)
    own = {phase: {id(weight) for weight in adapted.parameters_of(phase)} for phase in PHASES}
    assert not own["slow"] & own["fast"]
    adapted("slow", *inputs()).square().sum().backward()
    touched = {id(weight) for weight in adapted.parameters() if weight.grad is not None}
    assert own["slow"] <= touched
    assert not own["fast"] & touched
    before = adapted("slow", *inputs())
    for weight in adapted.parameters_of("fast"):
        weight.data.fill_(torch.nan)
    assert torch.equal(adapted("slow", *inputs()), before)
    assert adapted("fast", *inputs()).isnan().all()


def test_a_call_that_fails_leaves_no_phase_behind() -> None:
    adapted = Adapted(randomised(UVIT.network()), PHASES, 4)
    randomised(adapted, 1)
    before = adapted(None, *inputs())
    with pytest.raises(RuntimeError):
        adapted("slow", normal(1, 3, 8, 8), *inputs()[1:])
    assert torch.equal(adapted.net(*inputs()), before)


def test_targets_that_name_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer's name ends in to_q; layers are .*: give other targets"):
        Adapted(UVIT.network(), PHASES, 4, targets="to_q")


# Files

HAND_WRITTEN = {  # layer of a small DiT -> (out, in)
    "blocks.0.attn.qkv": (48, 16),
    "blocks.0.attn.proj": (16, 16),
    "blocks.0.mlp.fc2": (16, 64),
    "blocks.0.adaLN_modulation.1": (96, 16),
    "final_layer.adaLN_modulation.1": (32, 16),
}


def small() -> Adapted:
    net = randomised(DiTConfig(8, 2, 16, 1, 3, head_dim=8).network())
    adapted = Adapted(net, PHASES, 4)
    randomised(adapted, 1)
    return adapted


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "transformer."])
def test_a_state_has_the_names_of_peft_and_diffusers(prefix: str) -> None:
    adapted = small()
    state = adapter_state(adapted.net, "fast", prefix)
    expected = {f"{prefix}{name}.lora_A.weight": (4, size) for name, (_, size) in HAND_WRITTEN.items()}
    expected |= {f"{prefix}{name}.lora_B.weight": (out, 4) for name, (out, _) in HAND_WRITTEN.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_peft_reads_the_same() -> None:
    peft = pytest.importorskip("peft")
    adapted = small()
    bare = merged(adapted.net, None)
    how = peft.LoraConfig(r=4, lora_alpha=4, target_modules=list(HAND_WRITTEN))
    theirs = peft.get_peft_model(copy.deepcopy(bare), how)
    state = adapter_state(adapted.net, "fast", "base_model.model.")
    assert state.keys() == peft.get_peft_model_state_dict(theirs).keys()
    peft.set_peft_model_state_dict(theirs, state)
    torch.testing.assert_close(theirs.eval()(*inputs()), adapted("fast", *inputs()))


def test_a_network_of_diffusers_is_adapted_and_read_by_it() -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": 8, "in_channels": 4}
    texts = {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
    net = randomised(diffusers.SD3Transformer2DModel(**sizes, **texts, out_channels=4, pos_embed_max_size=8))
    given = {"timestep": torch.tensor([3, 500]), "pooled_projections": normal(2, 10)}
    given |= {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(2, 6, 12)}
    before, other = net(**given).sample, copy.deepcopy(net)
    adapted = Adapted(net, PHASES, 4)
    assert torch.equal(adapted("slow", **given).sample, before)
    found = {name.removeprefix("transformer_blocks.0.") for name in layers_of(net)}
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    parts = [
        "norm1.linear",
        "norm1_context.linear",
        "ff.net.2",
        "ff_context.net.2",
        *(f"attn.{one}" for one in attention),
    ]
    assert found >= set(parts)
    for number, weight in enumerate(adapted.parameters_of("fast")):
        weight.data = 0.2 * normal(*weight.shape, seed=number)
    pytest.importorskip("peft")
    other.load_lora_adapter(adapter_state(net, "fast", "transformer."))
    torch.testing.assert_close(other(**given).sample, adapted("fast", **given).sample)
