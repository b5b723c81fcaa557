"""Light networks under one encoder: candidates of equal cost, their blocks, and the page of made-up rows."""

import numpy as np
import pytest
import torch

import dualrate as dr
from benchmarks import peers
from dualrate.diffusion.schedule import Cosine
from dualrate.networks.uvit import Level, UViTConfig
from studies import light_bodies as module

LIGHT = UViTConfig(8, 1, (Level("conv", 48, 1), Level("transformer", 96, 2)), 3, embedding=32, head_dim=32)


def test_light_networks_of_all_kinds_cost_as_much_as_the_first_and_fit_its_encoder() -> None:
    found = dict(module.candidates(LIGHT))
    assert list(found) == ["transformer x 2", *(f"{kind} x 1" for kind in module.KINDS)]
    z, log_snr, label = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 3])
    for name, light in found.items():
        assert module.macs(light) / module.macs(LIGHT) == pytest.approx(1, abs=0.2), name
        networks, _ = dr.TwoNetworks(LIGHT, light).build(dr.GaussianProcess(Cosine()))
        features, _ = networks["encoder"](z, log_snr, label)
        networks["light"](z, log_snr, label, features, log_snr).sum().backward()
        assert next(networks["light"].net.head.parameters()).grad is not None, name


@pytest.mark.parametrize("kind", module.OTHERS)
def test_a_block_is_the_identity_at_first_and_learns_of_its_embedding(kind: str) -> None:
    torch.manual_seed(0)
    block = module.OTHERS[kind](32, 8)
    h, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 8)
    torch.testing.assert_close(block(h, emb), h)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    out = block(h, emb)
    assert out.shape == h.shape
    assert not torch.allclose(out[0], block(h, emb.roll(1, 0))[0])
    torch.testing.assert_close(out[1:], block(h[1:], emb[1:]))  # rows are apart


def test_the_page_has_errors_over_those_of_the_first_and_their_loss(tmp_path) -> None:
    rng, times = np.random.default_rng(0), module.TIMES
    first = rng.uniform(0.1, 0.2, (times, 20))
    row = {"what": "row", "seconds": 6, "images": 20, "floor": [1.0, 2.0], "sampler": "recommended", "ms": 3.0}
    row |= {"seen": 100, "training_seconds": 5.0, "macs": 2e6, "lines": 0, "scores": [[10, 9, 11], [20, 18, 22]]}
    for name, seed, scale in (("transformer x 2", 0, 1.0), ("conv x 1", 0, 0.7), ("conv x 1", 1, 0.9)):
        np.save(module.errors_of(tmp_path, one := row | {"name": name, "seed": seed}), scale * first)
        peers.add(tmp_path, one)
    timed = {
        "what": "times",
        "light": "transformer x 2",
        "width": 96,
        "million multiply-adds": 29.0,
        "milliseconds": 4.96,
    }
    for compiled in (False, True):
        peers.add(tmp_path, timed | {"batch": 8, "compiled": compiled, "efficiency": f"0.{6 + compiled} [0.6, 0.9]"})
    scores, errors, milliseconds = (part.splitlines() for part in module.page(tmp_path).split("\n\n|"))
    assert len(scores) == 6
    assert errors[2] == f"| 5.4 | {first[0].mean():.4f} | 0.800 [0.800, 0.800] |"
    angle = np.pi * (np.arange(times) + 0.5) / times  # pi t; the cosine schedule that is used ends early
    loss = (np.pi * np.cos(angle / 2) ** 2 / np.sin(angle) * first.mean(1)).mean()
    _, scale, of_first, of_other, _ = errors[-1].split("|")
    assert (scale, of_other) == (" loss ", " 0.800 [0.800, 0.800] ")
    assert float(of_first) == pytest.approx(loss, rel=0.01)
    assert len(errors) == 2 + times + 1
    assert milliseconds[-1] == "| transformer x 2 | 96 | 29.0 | 4.96, 0.6 [0.6, 0.9] | 4.96, 0.7 [0.6, 0.9] |"
