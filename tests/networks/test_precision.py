"""Weights held in bfloat16: the bits of autocast, which then casts none of them at a call."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import dualrate as dr
from dualrate.diffusion.context import Cond
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import NetworksConfig, OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.blocks import InFloat32, cast_layers, copied, modulated
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 2)), 3, embedding=16, head_dim=16)
DUAL = TwoNetworks(NET, NET)


def model(networks: NetworksConfig) -> Model:
    experiment = Experiment("tiny", networks, DenoisingConfig(times=dr.TimeSampler()), FitConfig(iterations=1))
    built, denoiser = experiment.build()
    for i, weight in enumerate(built.parameters()):
        nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(i))
    return Model("tiny", experiment, built.eval().requires_grad_(False), denoiser, 0, "")


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def called(denoiser: dr.Denoiser) -> tuple[list[torch.Tensor], Counter[str]]:
    """Return what a heavy and a light call give under autocast, and how often each operator ran."""
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, cond = torch.full((2,), 0.5, dtype=torch.float64), Cond(torch.tensor([0, 2]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Counting() as counting:
        context = denoiser.encode(z, t, cond)
        x_hat = denoiser.denoise(z, t - 0.1, context.aged(), cond)
    return [*context.features, x_hat], counting.calls


@pytest.mark.parametrize("denoiser", ["plain", "shared-encoder", "dual-rate"])
def test_the_bits_of_autocast_without_its_casts_of_weights(denoiser):
    found = model(DUAL if denoiser == "dual-rate" else OneNetwork(NET))
    found = found.with_denoiser(denoiser) if denoiser == "shared-encoder" else found
    (cast, before), (held, after) = (called(one.denoiser) for one in (found, found.ready(bfloat16=True)))
    assert [one.dtype for one in cast] == [one.dtype for one in held]
    assert all(map(torch.equal, cast, held))
    layers = after["addmm"] + after["convolution"]  # each has a weight, most have a bias
    assert before["_to_copy"] - after["_to_copy"] > layers > 20


def test_only_what_autocast_casts_is_held_and_all_else_is_shared():
    found = model(DUAL)
    held = found.ready(bfloat16=True)
    assert held is found.ready(bfloat16=True)
    assert found.ready(bfloat16=False) is found
    cast = {f"{name}.{own}" for name, layer in named_cast(found.networks) for own, _ in layer.named_parameters()}
    assert not {name for name in cast if "head" in name or "gate" in name}
    pairs = zip(found.networks.named_parameters(), held.networks.parameters(), strict=True)
    for (name, old), new in pairs:
        assert (new is old) == (name not in cast)
        assert new.dtype == (torch.bfloat16 if name in cast else torch.float32)
    assert all(weight.dtype == torch.float32 for weight in found.networks.parameters())


def named_cast(networks: nn.Module) -> list[tuple[str, nn.Module]]:
    layers = set(cast_layers(networks))
    return [(name, part) for name, part in networks.named_modules() if part in layers]


@dataclass(frozen=True)
class Strange(OneNetwork):
    """Networks that say nothing of what runs under autocast."""

    bfloat16_weights = False


def test_weights_stay_where_networks_do_not_say_or_where_they_train():
    strange = model(Strange(NET))
    assert strange.ready(bfloat16=True) is strange
    trained = model(DUAL)
    trained.networks.requires_grad_(True)
    assert trained.ready(bfloat16=True) is trained


def test_a_part_in_float32_takes_what_it_gets():
    class Last(InFloat32, nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(4, 4), Last(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert copied(network, network, bfloat16=True)(torch.ones(1, 4)).dtype == torch.float32


def test_a_drawer_draws_the_same_images():
    found = model(DUAL)
    drawer = dr.Drawer(found, dr.Ancestral(found.process), dr.StepPlan.uniform(4, 2), precision="bfloat16")
    recast = replace(found, experiment=replace(found.experiment, networks=Strange(NET)))
    images, again = (one.draw(range(3)).images for one in (drawer, replace(drawer, model=recast)))
    assert (images == again).all()


@pytest.mark.parametrize("how", ["bfloat16", "compiled"])
@pytest.mark.parametrize("change", ["assigned", "in place", "copied", "put in their place"])
def test_weights_that_change_are_those_that_are_called(how, change, monkeypatch):
    monkeypatch.setattr("dualrate.experiment.model.package_calls", lambda net, cache: None)
    found, bfloat16 = replace(model(DUAL), compiled=how == "compiled"), how == "bfloat16"
    first, _ = called(found.ready(bfloat16=bfloat16).denoiser)
    for factor in (1.5, 2.0):
        now = {name: factor * weight for name, weight in found.networks.state_dict().items()}
        if change == "in place":
            with torch.no_grad():
                _ = [weight.mul_(factor) for weight in found.networks.parameters()]
        elif change == "put in their place":  # as by .to(device)
            for weight in found.networks.parameters():
                weight.data = factor * weight
        else:
            found.networks.load_state_dict(now, assign=change == "assigned")
            found.networks.requires_grad_(False)
        expected, _ = called(found.denoiser)
        again, _ = called(found.ready(bfloat16=bfloat16).denoiser)
        assert all(map(torch.equal, again, expected))
        assert not all(map(torch.equal, again, first))
        assert found.ready(bfloat16=bfloat16) is found.ready(bfloat16=bfloat16)


def test_a_compiled_model_is_called_by_way_of_the_compiler_and_says_so(monkeypatch):
    compiled = []
    monkeypatch.setattr("dualrate.experiment.model.package_calls", lambda net, cache: compiled.append(net))
    found = replace(model(DUAL), compiled=True)
    drawer = dr.Drawer(found, dr.Ancestral(found.process), dr.StepPlan.uniform(2, 1), precision="float32")
    drawer.draw(range(2))
    ready = found.ready(bfloat16=False)
    assert compiled == list(ready.networks.values())
    assert not set(compiled) & set(found.networks.values())  # whose own calls are not compiled
    shared = zip(found.networks.parameters(), ready.networks.parameters(), strict=True)
    assert all(one is other for one, other in shared)
    assert drawer.origin("").precision == "float32, compiled"
    assert replace(drawer, model=model(DUAL)).origin("").precision == "float32"


def test_so_is_one_whose_calls_are_recorded(monkeypatch):
    done: list[tuple[str, nn.Module]] = []
    place = "dualrate.experiment.model"
    monkeypatch.setattr(f"{place}.graph_calls", lambda net: done.append(("recorded", net)))
    monkeypatch.setattr(f"{place}.package_calls", lambda net, cache: done.append(("compiled", net)))
    found = replace(model(DUAL), graphs=True)
    assert done == [("recorded", net) for net in found.ready(bfloat16=False).networks.values()]
    assert found.arithmetic(bfloat16=True) == "bfloat16, CUDA graphs"
    done.clear()
    both = replace(found, compiled=True)
    ready = both.ready(bfloat16=False)
    assert done == [(what, net) for net in ready.networks.values() for what in ("compiled", "recorded")]
    assert both.arithmetic(bfloat16=False) == "float32, compiled, CUDA graphs"
    assert ready.ready(bfloat16=False) is ready  # what is ready is not made so again


@pytest.mark.parametrize("shape", [(2, 5, 24), (2, 3, 4, 40), (0, 4, 8)])
def test_a_modulated_norm_is_rounded_once(shape: tuple[int, ...]) -> None:
    noise = torch.Generator().manual_seed(0)
    h = torch.randn(shape, generator=noise).bfloat16()
    film = torch.randn(2, shape[0], shape[-1], generator=noise).bfloat16()
    made = modulated(h, (film[0], film[1]))
    scale, shift = film.double().view(2, shape[0], *[1] * (len(shape) - 2), shape[-1])
    exact = functional.layer_norm(h.double(), shape[-1:]) * scale + shift
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), exact, rtol=1.01 * 2**-8, atol=2e-6)  # half a unit of the last place
