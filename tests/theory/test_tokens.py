"""Tokens in the one loop: exact marginals, draws by seed, calls counted, and the bound, all against enumeration."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from dualrate.denoisers.denoiser import DualRate, Metered, Plain
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.bound import token_bound, token_divergence
from dualrate.sampling.trajectory import StepNoise, first_state, sample_batches, trajectory
from dualrate.texts.transformer import LightTokens, TokenEncoder, TokensConfig, TokenTransformer
from theory.common import f64
from theory.tokens import MASKED, PROCESSES, UNIFORM, Joint, every, frequencies, table

ROWS = ([0.4, 0.1], [0.15, 0.35])
NET = TokensConfig(4, 6, channels=16, blocks=1, num_classes=2, embedding=16, head_dim=16)
SHAPE = (4, 1, 6)
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def law(denoiser, process, plan: StepPlan, length: int, size: int) -> torch.Tensor:
    """(size^L,): of z at the plan's end, exactly: the product of the kernels' matrices over all states."""
    z, step = every(length, size), Reverse(process)
    p = process.pi(z)[:, 0, 0].to(z)
    p = (z * p[:, None, None]).sum(1).flatten(1).prod(1)
    for t, s in zip(plan.t, plan.t[1:], strict=False):
        kernel = step.kernel(lambda z, t: denoiser.denoise(z, t, Context(), Cond()), z, f64(t), f64(s)).probabilities
        to = (kernel[:, None] * z).sum(2).flatten(2).prod(-1)
        p = p @ to.where(p[:, None] > 0, 0)  # of a state that is nowhere nothing is known
    return p


@every_process
def test_an_exact_denoiser_gives_the_exact_law_as_steps_become_small(process):
    """The error is of the tokens that change in one step: it falls as 1 / N."""
    joint = table(process, *ROWS)
    size = len(joint.table)
    errors = [
        (law(joint, process, StepPlan.uniform(steps), 2, size) - joint.weights).abs().sum().item() / 2
        for steps in (1, 32, 64, 128)
    ]
    assert errors[0] > 0.2
    assert errors[-1] < 0.005
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    assert errors[2] / errors[3] == pytest.approx(2, rel=0.1)


@every_process
def test_what_is_sampled_has_the_law_of_its_plan(process):
    """As many steps as the data need, and few: the loop draws what the kernels say."""
    joint, plan, seeds = table(process, *ROWS), StepPlan.uniform(3), 8000
    size = len(joint.table)
    (z,) = sample_batches(joint, Reverse(process), plan, (size, 1, 2), range(seeds), batch_size=seeds)
    assert z.dtype == torch.float32
    expected = law(joint, process, plan, 2, size).view(size, size)
    torch.testing.assert_close(frequencies(z), expected, rtol=0, atol=4 * 0.5 / seeds**0.5)


def randomised(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return net.eval()


def plain(process) -> Plain:
    return Plain(randomised(TokenTransformer(NET)), process)


def dual(process, head: bool = True) -> DualRate:
    light = replace(NET, channels=8, head_dim=8)
    return DualRate(randomised(TokenEncoder(replace(NET, head=head), light)), randomised(LightTokens(light)), process)


KINDS = {
    "plain": (plain, None),
    "dual": (dual, 2),
    "guided": (lambda process: Guided(dual(process), process, weight=1.7, null=2), 2),
}
every_kind = pytest.mark.parametrize(("make", "heavy"), KINDS.values(), ids=KINDS)


@every_process
@every_kind
def test_a_draw_does_not_depend_on_its_batch(process, make, heavy):
    denoiser, plan = make(process), StepPlan.uniform(5, heavy)
    drawn = [
        torch.cat([*sample_batches(denoiser, Reverse(process), plan, SHAPE, range(6), [0, 1] * 3, batch_size=size)])
        for size in (1, 4, 6)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0].sum(1), torch.ones(6, 1, 6))
    assert len({str(z) for z in drawn[0]}) == 6


@every_process
@pytest.mark.parametrize("head", [True, False])
def test_heavy_and_light_calls_are_counted(process, head):
    meter = Metered(dual(process, head))
    list(sample_batches(meter, Reverse(process), StepPlan.uniform(6, 2), SHAPE, range(3), [0, 1, 0]))
    assert (meter.meter.heavy, meter.meter.light) == (3 * 2, 3 * (4 if head else 6))


@every_process
def test_interleaved_samplings_do_not_meet(process):
    denoiser, plan, step = dual(process), StepPlan.uniform(4, 2), Reverse(process)

    def start(seed: int):
        draws = Draws(0, torch.tensor([seed]))
        z = first_state(process, draws, SHAPE)
        return trajectory(denoiser, step, plan, z, Cond(torch.tensor([1])), StepNoise(process, draws, 4, SHAPE))

    with torch.no_grad():
        together = [*zip(start(0), start(1), strict=True)][-1]
        alone = [[*start(seed)][-1] for seed in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.z, other.z)


def test_guidance_of_weight_one_is_the_label_alone():
    z, t = every(1, 4).float().expand(4, 4, 1, 6), f64(*[0.5] * 4)
    cond, inner = Cond(torch.tensor([0, 1, 1, 0])), plain(UNIFORM)
    with torch.no_grad():
        alone, guided = inner.denoise(z, t, Context(), cond), Guided(inner, UNIFORM, 1.0, 2)
        torch.testing.assert_close(guided.denoise(z, t, Context(), cond), alone)


def test_the_light_network_reads_what_changed_since_tau_and_nothing_of_an_absent_context():
    model = dual(MASKED)
    light, z = model.light, torch.eye(4)[torch.tensor([[3, 0, 3, 1, 2, 3]] * 2)].permute(0, 2, 1)[:, :, None]
    before = z.clone()
    before[:, :, 0, 1], before[:, :, 0, 3] = torch.eye(4)[3], torch.eye(4)[3]  # masked at tau
    snr, feature = torch.tensor([0.3, 0.3]), torch.zeros(2, 8, 1, 6)
    with torch.no_grad():
        seen = []
        light.changed.register_forward_hook(lambda module, given, out: seen.append(given[0]))
        present = torch.tensor([True, False])
        out = light(z, snr, None, (feature, before), snr - 1, present)
        assert seen[0][:, 0, 0].tolist() == [[0, 1, 0, 1, 0, 0], [0] * 6]
        alone = light(z, snr, None)
        torch.testing.assert_close(out[1], alone[1])
        assert not torch.allclose(out[0], alone[0], atol=1e-3)


PATCHES = TokensConfig(3, 4, 4, patch=2, channels=8, blocks=0, embedding=8, head_dim=8, noise=2)


@pytest.mark.parametrize("changed", [range(3), range(3, 5)], ids=["tokens", "noise"])
def test_patches_lie_where_their_tokens_do(changed):
    """Without a block between them a token's logits know its own patch, and no other."""
    net, log_snr = randomised(TokenTransformer(PATCHES)), torch.zeros(2)
    z = torch.zeros(2, 5, 4, 4)
    z[1, changed, 2, 1] = 1
    logits = net(z, log_snr, None)
    assert logits.shape == (2, 3, 4, 4)
    differ = (logits[0] != logits[1]).all(0).nonzero().tolist()
    assert differ == [[2, 0], [2, 1], [3, 0], [3, 1]]


def test_the_light_network_reads_what_changed_patch_by_patch():
    encoder, light = randomised(TokenEncoder(PATCHES, PATCHES)), randomised(LightTokens(PATCHES))
    z, log_snr = torch.zeros(2, 5, 4, 4), torch.zeros(2)
    z[:, 0] = 1
    features, _ = encoder(z, log_snr, None)
    z[1, :3, 0, 3] = torch.tensor([0.0, 1.0, 0.0])
    same = torch.cat((z[:1], z[:1]))
    differ = light(z, log_snr, None, features, log_snr) != light(same, log_snr, None, features, log_snr)
    assert differ[1].all(0).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    with torch.no_grad():
        light.net.stem.weight.zero_()
        light.changed.weight.zero_()
    assert torch.equal(*light(z, log_snr, None, features, log_snr))


def test_networks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 1, 6\) and \(5, 1, 6\)"):
        TokenEncoder(NET, replace(NET, vocabulary=5))
    with pytest.raises(ValueError, match="patch 1 and 2"):
        TokenEncoder(NET, replace(NET, patch=2, width=6, height=2))
    with pytest.raises(ValueError, match="1 x 6 tokens do not divide into patches of 2"):
        replace(NET, patch=2)
    with pytest.raises(ValueError, match="without a head"):
        TokenTransformer(replace(NET, head=False))(torch.zeros(1, *SHAPE), torch.zeros(1), None)


@dataclass(frozen=True)
class Late:
    """E[x | z_t] where the heavy call sees z_tau and the light one z_t, which a Markovian path makes the same facts."""

    joint: Joint
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z, t, cond):
        return Context((z,), tau=t)

    def denoise(self, z, t, context, cond):
        """Denoise what z_tau or z_t shows: where z_tau is of another path they contradict, and nothing is possible."""
        joint = self.joint.likelihood(z, t + torch.zeros(len(z))) * self.joint.weights
        joint = joint * (self.joint.likelihood(context.features[0], t + torch.zeros(len(z))) > 0)
        return torch.einsum("bk,kvhl->bvhl", joint / joint.sum(1, keepdim=True), self.joint.x)


def test_a_context_of_a_masked_path_holds_nothing_that_the_state_lacks():
    joint = table(MASKED, *ROWS)
    x = joint.x[joint.weights > 0].repeat(50, 1, 1, 1)
    draws, step = Draws(0, torch.arange(len(x))), Reverse(MASKED)
    each = [token_bound(one, step, StepPlan.uniform(6, 2), x, Cond(), draws) for one in (joint, Late(joint))]
    assert torch.equal(each[0].total, each[1].total)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_bound_of_one_token_is_its_likelihood_at_every_number_of_steps(steps):
    joint = Joint(f64(0.2, 0.5, 0.3, 0), MASKED)
    x = joint.x[:3].repeat_interleave(4000, 0)
    bound = token_bound(joint, Reverse(MASKED), StepPlan.uniform(steps), x, Cond(), Draws(0, torch.arange(len(x))))
    total = bound.total.view(3, -1)
    error = 4 * total.std(1) / 4000**0.5 + 1e-9
    assert ((total.mean(1) + joint.weights[:3].log()).abs() < error).all()
    assert bound.dimensions == 1


def test_the_masked_bound_reaches_the_likelihood_of_every_x():
    joint, n = table(MASKED, *ROWS), 1500
    alive = joint.weights > 0
    x, exact = joint.x[alive].repeat_interleave(n, 0), -joint.weights[alive].log()
    bounds = {}
    for steps in (2, 64):
        plan = StepPlan.uniform(steps)
        bound = token_bound(joint, Reverse(MASKED), plan, x, Cond(), Draws(0, torch.arange(len(x))))
        total = bound.total.view(4, n)
        bounds[steps] = total.mean(1), 4 * total.std(1) / n**0.5
        of_plan = -law(joint, MASKED, plan, 2, 3)[alive].log()  # what these steps draw x with
        assert (bounds[steps][0] > of_plan - bounds[steps][1]).all()
    mean, error = bounds[64]
    assert ((mean - exact).abs() < error + 0.01).all()
    assert (bounds[2][0] - exact).max() > 0.05  # two tokens at once are not exact
    weights = joint.weights[alive]
    assert (weights @ bounds[2][0] - weights @ exact) > 0.01


def test_the_uniform_bound_is_above_the_likelihood_of_its_steps():
    joint, n, plan = table(UNIFORM, *ROWS), 1500, StepPlan.uniform(32)
    x = joint.x.repeat_interleave(n, 0)
    bound = token_bound(joint, Reverse(UNIFORM), plan, x, Cond(), Draws(0, torch.arange(len(x)))).total.view(4, n)
    below = -law(joint, UNIFORM, plan, 2, 2).log()
    assert (bound.mean(1) > below - 4 * bound.std(1) / n**0.5).all()
    assert joint.weights @ (bound.mean(1) - below) < 0.1


def test_divergence_is_infinite_where_the_model_rules_out_what_is():
    p = replace(MASKED.marginal(every(1, 3)[:1], f64(0.5)), probabilities=f64(0.5, 0, 0.5).view(1, 3, 1, 1))
    q = replace(p, probabilities=f64(0.5, 0.5, 0).view(1, 3, 1, 1))
    assert token_divergence(p, p).item() == 0
    assert token_divergence(q, p).item() == math.inf
    uniform = replace(p, probabilities=f64(1, 1, 1).view(1, 3, 1, 1) / 3)
    assert token_divergence(q, uniform).item() == pytest.approx(math.log(1.5))


def test_tokens_are_bounded_from_all_noise_to_none():
    joint = table(MASKED, *ROWS)
    with pytest.raises(ValueError, match=r"from 1 to 0\.5|from 1\.0 to 0\.5"):
        token_bound(joint, Reverse(MASKED), StepPlan.at([1, 0.5], [0]), joint.x, Cond(), Draws(0, torch.arange(9)))
