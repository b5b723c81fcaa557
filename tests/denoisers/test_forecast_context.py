"""Forecast contexts: exact along straight lines in log-SNR at any spacing, the context itself where there is one."""

from dataclasses import dataclass, field, replace

import pytest
import torch

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate, Metered, Plain
from dualrate.denoisers.forecast_context import ForecastContext
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Refresh
from dualrate.networks.dual import ContextEncoder, LightUViT
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.sampling.cost import call_cost
from dualrate.sampling.trajectory import rollout

PROCESS = dr.GaussianProcess(Cosine())
TIMES = (1.0, 0.9, 0.83, 0.6, 0.5, 0.37, 0.2, 0.1, 0.0)
NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
NONE, KEEP, FULL = Refresh.NONE, Refresh.KEEP, Refresh.FULL


@dataclass(frozen=True)
class Straight:
    """A dual-rate stand-in: features on a line in u, one of each row, that the light network notes with its times."""

    noted: list = field(default_factory=list)
    reuse: dr.Reuse = dr.Reuse.MARKOV

    def feature(self, t, rows):
        return (2 + 3 * PROCESS.log_snr(t)) * torch.arange(1, rows + 1, dtype=torch.float64)[:, None]

    def encode(self, z, t, cond):
        return dr.Context((self.feature(t, len(z)),), tau=t)

    def denoise(self, z, t, context, cond):
        tau = None if context.tau is None else context.tau[0].item()
        self.noted.append((t[0].item(), tau, *context.features))
        return 0.9 * z


def noted(denoiser, straight: Straight, *refresh: Refresh) -> list:
    z = torch.ones(2, 3, dtype=torch.float64)
    plan = dr.StepPlan(TIMES, refresh)
    rollout(denoiser, dr.Ancestral(PROCESS), plan, z, dr.Cond(torch.tensor([0, 1])), lambda i, k: torch.zeros_like(z))
    return straight.noted


def test_features_go_on_along_the_last_two_and_are_dated_now():
    straight = Straight()
    seen = noted(ForecastContext(straight, PROCESS), straight, FULL, KEEP, FULL, KEEP, KEEP, FULL, KEEP, KEEP)
    for i, (t, tau, feature) in enumerate(seen):
        assert t == TIMES[i]
        assert tau == (TIMES[0] if i == 1 else t)  # of a single context nothing is known but what it was
        torch.testing.assert_close(feature, straight.feature(torch.tensor(tau, dtype=torch.float64), 2))


def test_a_context_that_was_dropped_is_no_base_of_a_forecast():
    straight = Straight()
    seen = noted(ForecastContext(straight, PROCESS), straight, FULL, KEEP, NONE, FULL, KEEP, KEEP, FULL, KEEP)
    assert [tau for _, tau, *_ in seen] == [1.0, 1.0, None, 0.6, 0.6, 0.6, 0.2, 0.1]


def test_branches_of_guidance_have_contexts_of_their_own_and_calls_are_counted():
    straight = Straight()
    meter = Metered(ForecastContext(straight, PROCESS))
    guided = Guided(meter, PROCESS, weight=2.0, null=2)
    for t, _, feature in noted(guided, straight, *([FULL, KEEP] * 4))[2:]:
        torch.testing.assert_close(feature, straight.feature(torch.tensor(t, dtype=torch.float64), 4))
    assert (meter.meter.heavy, meter.meter.light) == (4 * 4, 8 * 4)


@pytest.mark.parametrize("head", [True, False])
def test_with_a_heavy_call_at_every_step_it_is_the_model_itself_bit_for_bit(head):
    """At its cost; with fewer a forecast costs no multiply-adds either."""
    torch.manual_seed(0)
    encoder, light = ContextEncoder(replace(NET, head=head), NET), LightUViT(NET)
    for parameter in (*encoder.parameters(), *light.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    model, z = DualRate(encoder, light, PROCESS), torch.randn(2, *NET.shape)
    forecasts = ForecastContext(model, PROCESS)
    noise, cond = torch.randn(8, *z.shape), dr.Cond(torch.tensor([0, 1]))
    steps = (dr.Ancestral(PROCESS), dr.StepPlan(TIMES, (FULL,) * 8))
    with torch.no_grad():
        own, its = (rollout(one, *steps, z, cond, lambda i, k: noise[i]) for one in (model, forecasts))
        assert torch.equal(own, its)
        few = (dr.Ancestral(PROCESS), dr.StepPlan(TIMES, (FULL, KEEP, FULL, KEEP, KEEP, FULL, KEEP, KEEP)))
        differ = [rollout(one, *few, z, cond, lambda i, k: noise[i]) for one in (model, forecasts)]
    assert not torch.equal(*differ)
    assert call_cost(model, NET.shape, 0) == call_cost(forecasts, NET.shape, 0)


def test_contexts_are_forecast_of_a_dual_rate_model_alone():
    with pytest.raises(ValueError, match="of a dual-rate model, got Plain"):
        ForecastContext(Plain(torch.nn.Identity(), PROCESS), PROCESS)
