"""Early exit: the network itself where nothing leaves, the first block where all do, each row by itself, counted."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import dualrate as dr
from dualrate.denoisers import early_exit
from dualrate.denoisers.denoiser import Plain
from dualrate.denoisers.early_exit import EarlyExit, Exit, ExitUViT
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing import drawer
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitNetwork
from dualrate.networks.uvit import UViT
from dualrate.sampling.cost import macs_of, mean_macs
from dualrate.training.config import FitConfig

PROCESS = dr.GaussianProcess(Cosine())
SHAPE, BLOCKS, CHANNELS, EMBEDDING, TOKENS = (1, 8, 8), 4, 16, 24, 4  # of the innermost level
CONFIG = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", CHANNELS, BLOCKS)), 3, patch=2, embedding=EMBEDDING,
    head_dim=16,
)  # fmt: skip
PLAN, STEP = dr.StepPlan.uniform(4), dr.SDEDPMSolver2M(PROCESS)


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


NETWORK = randomised(ExitUViT(CONFIG))


def model(threshold: float) -> EarlyExit:
    return EarlyExit(NETWORK, PROCESS, threshold)


def states(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor, dr.Cond]:
    draws = Draws(0, torch.arange(rows))
    return draws.normal("z", *SHAPE), torch.linspace(0.05, 0.95, rows, dtype=torch.float64), dr.Cond(draws.row % 3)


def images(denoiser: dr.Denoiser, step: dr.Step = STEP) -> torch.Tensor:
    return torch.cat(list(dr.sample_batches(denoiser, step, PLAN, SHAPE, range(6), [seed % 3 for seed in range(6)])))


def always(block: int) -> EarlyExit:
    """Leaves after this block, whatever comes: the probes before it say 1, it says 0."""
    network = randomised(ExitUViT(CONFIG))
    for i, leave in enumerate(network.exits):
        nn.init.zeros_(leave.probe.linear.weight)
        nn.init.constant_(leave.probe.linear.bias, -100 if i == block else 100)
    return EarlyExit(network, PROCESS, 0.5)


@pytest.mark.parametrize("step", [STEP, dr.DDIM(PROCESS)], ids=str)
def test_without_a_threshold_it_is_the_network_bit_for_bit(step):
    assert torch.equal(images(model(0), step), images(Plain(NETWORK.net, PROCESS), step))
    z, t, cond = states()
    assert (model(0).left(z, t, cond)[1] == BLOCKS - 1).all()
    assert torch.equal(always(BLOCKS).denoise(z, t, dr.Context(), cond), model(0).denoise(z, t, dr.Context(), cond))


def test_at_a_threshold_of_one_all_leave_after_the_first_block():
    z, t, cond = states()
    x_hat, block = model(1).left(z, t, cond)
    assert (block == 0).all()
    log_snr = PROCESS.log_snr(t).float()
    with torch.no_grad():
        outputs, errors = NETWORK(z, log_snr, cond.label)
        assert ((errors > 0) & (errors < 1)).all()
        torch.testing.assert_close(x_hat, PROCESS.x_hat(z, outputs[0], log_snr))


def test_each_row_leaves_after_the_first_block_whose_probe_says_so_whatever_its_batch():
    z, t, cond = states(24)
    log_snr = PROCESS.log_snr(t).float()
    with torch.no_grad():
        outputs, errors = NETWORK(z, log_snr, cond.label)
        threshold = errors.quantile(0.41).item()
        x_hat, block = model(threshold).left(z, t, cond)
        for i in range(len(z)):
            expected = next((k for k in range(BLOCKS - 1) if errors[k, i] <= threshold), BLOCKS - 1)
            row = slice(i, i + 1)
            alone, its = model(threshold).left(z[row], t[row], cond[row])
            assert block[i] == its == expected
            torch.testing.assert_close(x_hat[row], alone)
            torch.testing.assert_close(alone, PROCESS.x_hat(z[row], outputs[expected, row], log_snr[row]))
    assert {0, 1, BLOCKS - 1} <= set(block.tolist())


def test_a_block_more_costs_a_block_and_a_probe():
    """By hand: 12 C^2 n + 2 C n^2 of a transformer block and 4 E C of its norms; C n and 2 E C of a probe."""
    z, t, cond = states(1)

    def macs(denoiser: dr.Denoiser) -> int:
        return macs_of(lambda: denoiser.denoise(z, t, dr.Context(), cond))

    costs = [macs(always(i)) for i in range(BLOCKS + 1)]
    block = 12 * CHANNELS**2 * TOKENS + 2 * CHANNELS * TOKENS**2 + 4 * EMBEDDING * CHANNELS
    probe, head = CHANNELS * TOKENS + 2 * EMBEDDING * CHANNELS, CHANNELS**2 * TOKENS + 2 * EMBEDDING * CHANNELS
    assert [b - a for a, b in pairwise(costs[: BLOCKS - 1])] == [block + probe] * (BLOCKS - 2)
    assert costs[BLOCKS] - costs[BLOCKS - 2] == block - head  # to the end, where no head stands for the rest
    whole = macs(Plain(NETWORK.net, PROCESS))
    assert costs[BLOCKS] == whole + (BLOCKS - 1) * probe
    assert macs(model(0)) == whole


def loaded(threshold: float = 0.5) -> dr.Model:
    of = dr.Experiment("exits", EarlyExitNetwork(CONFIG), EarlyExitConfig(threshold=threshold), FitConfig(1))
    return dr.Model("exits", of, nn.ModuleDict({"exits": NETWORK}), model(threshold), 1, weights_hash="0" * 64)


def test_an_image_costs_the_mean_of_what_is_drawn(monkeypatch):
    monkeypatch.setattr(drawer, "COUNTED", 5)
    with torch.no_grad():
        threshold = NETWORK(*states()[:1], PROCESS.log_snr(states()[1]).float(), None)[1].median().item()
    exits = model(threshold)
    each = [mean_macs(exits, STEP, PLAN, SHAPE, [seed], [seed % 3]) for seed in range(5)]
    assert len(set(each)) > 1
    assert mean_macs(exits, STEP, PLAN, SHAPE, range(5), [0, 1, 2, 0, 1]) == pytest.approx(sum(each) / 5)
    drawn = dr.Drawer(replace(loaded(), denoiser=exits), STEP, PLAN)
    assert drawn.cost.macs == int(sum(each) / 5)
    whole = dr.Drawer(loaded().with_denoiser("dualrate.denoisers.early_exit:whole"), STEP, PLAN)
    assert whole.cost.mean is None
    assert whole.cost.macs == whole.expected_cost.macs == PLAN.num_steps * whole.cost.calls.light
    assert drawn.cost.macs < whole.cost.macs


def test_a_run_is_called_at_another_threshold_by_name():
    other = loaded(0.5).with_denoiser("dualrate.denoisers.early_exit:at_2_percent")
    assert (other.called_by, other.denoiser) == ("dualrate.denoisers.early_exit:at_2_percent", model(0.02))
    assert other.weights_hash != loaded().weights_hash
    of = loaded().experiment
    assert of.build()[1].threshold == 0.5
    with pytest.raises(ValueError, match=r"threshold is"):
        model(2.0)


def test_what_has_no_exits_is_refused():
    with pytest.raises(ValueError, match="expected a run with early exits, got Plain"):
        early_exit.at_1_percent(Plain(UViT(CONFIG), PROCESS), PROCESS)
    for config in (replace(CONFIG, head=False), replace(CONFIG, levels=(dr.Level("transformer", 16, 1),))):
        with pytest.raises(ValueError, match="need a head and two blocks or more"):
            ExitUViT(config)
    with pytest.raises(ValueError, match="of a single-rate network that can be cut"):
        loaded().with_denoiser("shared-encoder")


def test_an_exit_begins_without_an_opinion():
    """Heads add nothing, probes say a half: training starts at the network without its later blocks."""
    leave, h = Exit(CHANNELS, EMBEDDING), torch.randn(2, CHANNELS, 2, 2)
    emb = torch.randn(2, EMBEDDING)
    assert torch.equal(leave.left(h, emb), h)
    assert (leave.error(h, emb) == 0.5).all()
