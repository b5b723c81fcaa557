"""ToCa and DuCa: which tokens a partial step makes anew, what becomes of the others, and what it costs."""

from dataclasses import replace

import pytest
import torch
from denoisers.test_feature_cache import NET, PLAIN, PROCESS, SHAPE, at, last, named, network, start
from theory.common import plan_cost
from torch.nn import functional as F

import dualrate as dr
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.denoisers.denoiser import Metered, Plain
from dualrate.denoisers.feature_cache import TokenCache, choose, order
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Refresh
from dualrate.networks.blocks import modulated
from dualrate.networks.uvit import UViT
from dualrate.sampling.cost import CallCost, expected_costs, macs_of, mean_macs

KEEP, PARTIAL, FULL = Refresh.KEEP, Refresh.PARTIAL, Refresh.FULL


def cache(share: float, **more) -> TokenCache:
    return TokenCache(NET.token_cut(scores=True), PROCESS, share, **more)


@pytest.mark.parametrize("name", ["toca", "duca"])
def test_with_every_token_chosen_where_attention_is_fresh_it_is_the_whole_network(name):
    one, (z, cond), t = replace(named(name), share=1.0), start(), at(0.6)
    with torch.no_grad():
        context = one.encode(z, t, cond)
        again = one.renew(z, t, context.aged(), cond)
    torch.testing.assert_close(again.x_hat, context.x_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again.features[0], context.features[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_partial_steps_are_each_block_s_attention_and_the_others_mlps_as_they_were(share):
    """Against every block on its own: attention kept for all tokens, the MLP's output for those that are not chosen."""
    one, (z, cond) = cache(share), start(3)
    blocks, middle, count = list(NET.middle.blocks), NET.middle, max(1, round(share * 4))

    def into_middle(z, emb):
        return NET.descend(NET.patches(z), emb)

    with torch.no_grad():
        context = one.encode(z, at(0.8), cond)
        emb = NET.embedding(PROCESS.log_snr(at(0.8)), cond.label)
        tokens = (into_middle(z, emb)[0] + middle.position).flatten(2).transpose(1, 2)
        attention, mlp = [], []
        for block in blocks:
            attention.append(block.attention(modulated(tokens, block.film1(emb))))
            mlp.append(block.mlp(tokens + attention[-1], emb))
            tokens = tokens + attention[-1] + mlp[-1]
        ages = torch.zeros(2, len(blocks), 4, dtype=torch.float64)
        for t in (0.6, 0.5):
            *_, received, age = context.features
            places = choose(received, age, at(t), share, one.by)
            chosen = torch.zeros(ages.shape, dtype=torch.bool).scatter(2, places, True)
            z = start(int(10 * t))[0]
            emb = NET.embedding(PROCESS.log_snr(at(t)), cond.label)
            h, skips = into_middle(z, emb)
            tokens = (h + middle.position).flatten(2).transpose(1, 2)
            for i, block in enumerate(blocks):
                mlp[i] = torch.where(chosen[:, i, :, None], block.mlp(tokens + attention[i], emb), mlp[i])
                tokens = tokens + attention[i] + mlp[i]
            v = NET.predict(NET.ascend(tokens.transpose(1, 2).unflatten(2, (2, 2)), skips, emb)[0])
            log_snr = PROCESS.log_snr(at(t))[:, None, None, None]
            expected = log_snr.sigmoid().sqrt() * z - (-log_snr).sigmoid().sqrt() * v
            context = one.renew(z, at(t), context.aged(), cond)
            assert (chosen.sum(2) == count).all()
            torch.testing.assert_close(context.x_hat, expected, rtol=1e-10, atol=1e-10)
            ages = torch.where(chosen, 0, ages + 1)
            torch.testing.assert_close(context.features[3].double(), ages)
        kept = one.denoise(z, at(t), context.aged(), cond)
    torch.testing.assert_close(kept, expected, rtol=1e-10, atol=1e-10)  # a kept step here: what was added, as it is


@pytest.mark.parametrize(("share", "tokens"), [(0.05, 1), (0.3, 1), (0.4, 2), (0.6, 2), (0.7, 3), (0.9, 4)])
def test_a_share_of_the_tokens_is_the_nearest_whole_number_of_them(share, tokens):
    """Shares of 4: 1.2 and 2.4 go down, 1.6 and 2.8 up; one at least."""
    one, (z, cond) = cache(share), start()
    with torch.no_grad():
        context = one.renew(z, at(0.5), one.encode(z, at(0.6), cond).aged(), cond)
    assert (context.features[3] == 0).sum(2).tolist() == [[tokens] * 2] * len(z)


@pytest.mark.parametrize("name", ["toca", "duca"])
def test_in_bfloat16_too_it_is_the_network_where_it_runs_whole(name):
    net = network().float()
    one, (z, cond), t = denoiser_named(name)(Plain(net, PROCESS), PROCESS), start(), at(0.6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = Plain(net, PROCESS).denoise(z.float(), t, dr.Context(), cond)
        context = one.encode(z.float(), t, cond)
        assert torch.equal(context.x_hat, own)
        assert one.renew(z.float(), t, context.aged(), cond).features[0].dtype == context.features[0].dtype


def test_a_step_that_keeps_is_fora_s_with_the_levels_above_outside():
    plan = dr.StepPlan.uniform(6, 2)
    flat = dr.UViTConfig(8, 1, (dr.Level("transformer", 16, 2),), 3, patch=2, embedding=16, head_dim=8)
    net = network(flat)
    one = TokenCache(net.token_cut(scores=False), PROCESS, 0.5)
    torch.testing.assert_close(last(one, plan), last(denoiser_named("fora")(Plain(net, PROCESS), PROCESS), plan))


def test_at_random_every_time_has_tokens_of_its_own_and_every_token_its_turn():
    """The mean count of a token over 400 times is that of chance, 400 * 7 / 49, within four standard deviations."""
    t = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    none = torch.zeros(400, 2, 49)
    chosen = choose(none, none, t, 1 / 7, "random")
    assert all(len(set(row)) == 7 for row in chosen.flatten(0, 1).tolist())
    for block in range(2):
        counts = torch.bincount(chosen[:, block].flatten(), minlength=49)
        assert (counts - 400 / 7).abs().max() < 4 * (400 * 6 / 49) ** 0.5
    alike = (chosen[:, 0, :, None] == chosen[:, 1, None]).sum((1, 2)).double()  # tokens of both blocks: one, by chance
    assert abs(alike.mean() - 1) < 0.2
    again = choose(none[:2], none[:2] + 1, t[[7, 7]], 1 / 7, "random")
    assert torch.equal(again, chosen[[7, 7]])  # neither of the image nor of the batch


@pytest.mark.parametrize("steps", [12, 16, 50, 250])
def test_at_random_steps_of_usual_plans_have_tokens_of_their_own(steps):
    """Times that are few binary digits, as i / 16, too."""
    t = torch.tensor(dr.StepPlan.uniform(steps).t[:-1], dtype=torch.float64)
    chosen = choose(torch.zeros(steps, 1, 256), torch.zeros(steps, 1, 256), t, 1 / 8, "random")
    assert len({tuple(sorted(row)) for (row,) in chosen.tolist()}) == steps


def test_by_attention_the_score_is_what_was_received_and_what_has_waited():
    received = torch.tensor([[[3.0, 0.0, 4.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.5]]])  # of norm 5 and 1.1, no squares
    assert choose(received, torch.zeros(1, 2, 5), at(0.5), 0.4, "attention").tolist() == [[[2, 0], [1, 4]]]
    waited = torch.tensor([[[0.0, 0.0, 0.0, 0.81 * 16, 0.79 * 16], [0.0] * 5]])  # steps, 1/16 each
    assert choose(received, waited, at(0.5), 0.6, "attention")[:, 0].tolist() == [[3, 2, 4]]


def test_by_attention_the_greatest_of_four_neighbours_goes_first():
    """On 4 x 4 tokens: 0.5 is the greatest of its square, so that it goes before 0.6 beside 0.7."""
    score = torch.full((4, 4), 0.01)
    score[0, 0], score[0, 1], score[3, 3] = 0.7, 0.6, 0.5
    chosen = choose(score.view(1, 1, 16), torch.zeros(1, 1, 16), at(0.5), 3 / 16, "attention")
    assert chosen.tolist() == [[[0, 15, 1]]]


@pytest.mark.parametrize(("other", "first"), [(0.89, 15), (0.91, 1)])
def test_going_first_is_eight_tenths_more_than_the_score(other, first):
    """The score of 0.5 becomes 0.9."""
    score = torch.full((4, 4), 0.01)
    score[0, 0], score[0, 1], score[3, 3] = 1.0, other, 0.5
    chosen = choose(score.view(1, 1, 16), torch.zeros(1, 1, 16), at(0.5), 1 / 8, "attention")
    assert chosen.tolist() == [[[0, first]]]


def test_the_shares_of_tokens_are_as_published():
    """7 and 5 percent, times the 2.5 that some layers have more."""
    assert named("toca").share == pytest.approx(0.175)
    assert named("duca").share == pytest.approx(0.125)


def test_received_is_the_mean_share_of_all_attention():
    (z, cond), t = start(), at(0.4)
    with torch.no_grad():
        received = named("toca").encode(z, t, cond).features[2]
        assert torch.equal(named("duca").encode(z, t, cond).features[2], torch.zeros(2, 2, 4).double())
    torch.testing.assert_close(received.sum(2), torch.full((2, 2), 4.0).double())
    seen = []
    with torch.no_grad():
        for block in NET.middle.blocks:
            block.register_forward_pre_hook(lambda block, args: seen.append(args))
        NET(z, PROCESS.log_snr(t), cond.label)
        by_hand = []
        for block, (h, emb) in zip(NET.middle.blocks, seen, strict=True):
            block._forward_pre_hooks.clear()
            q, k, _ = block.heads_of(modulated(h.flatten(2).transpose(1, 2), block.film1(emb)))
            by_hand.append(F.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) / 8**0.5, dim=-1).sum(2).mean(1))
    torch.testing.assert_close(received, torch.stack(by_hand, 1))


def test_the_steps_between_full_ones_are_the_method_s():
    plan = dr.StepPlan.uniform(8, 2)
    assert plan.renewing(named("toca").between).refresh == (FULL, PARTIAL, PARTIAL, PARTIAL) * 2
    assert plan.renewing(named("duca").between).refresh == (FULL, PARTIAL, KEEP, PARTIAL) * 2
    assert dr.StepPlan.uniform(6, 2).renewing(named("duca").between).refresh == (FULL, KEEP, PARTIAL) * 2
    assert dr.StepPlan.uniform(4, 2).renewing(named("duca").between).refresh == (FULL, PARTIAL) * 2
    late = dr.StepPlan.late(7, 2, 2).renewing((PARTIAL,))
    assert late.refresh == (Refresh.NONE, Refresh.NONE, FULL, PARTIAL, FULL, PARTIAL, PARTIAL)
    assert dr.StepPlan.from_json(late.to_json()) == late
    with pytest.raises(ValueError, match="step 0 reuses a context"):
        dr.StepPlan((1.0, 0.0), (PARTIAL,))
    with pytest.raises(ValueError, match="got nothing to do"):
        plan.renewing(())


def test_a_plan_says_whose_context_a_step_has_where_that_is_one_step_s():
    assert dr.StepPlan.late(6, 2, 1).context_steps == (None, 1, 1, 3, 3, 3)
    assert dr.StepPlan((1.0, 0.6, 0.3, 0.0), (FULL, Refresh.NONE, FULL)).context_steps == (0, None, 2)
    with pytest.raises(ValueError, match="of no one time: leave partial steps to toca and duca"):
        _ = dr.StepPlan.uniform(4, 2).renewing((PARTIAL,)).context_steps


def test_a_partial_step_wants_a_denoiser_that_has_one():
    plan = dr.StepPlan.uniform(4, 2).renewing((PARTIAL,))
    for denoiser in (named("fora"), Metered(named("fora")), Guided(PLAIN, PROCESS, 2.0, 3)):
        with pytest.raises(ValueError, match=r"has no partial steps: use toca or duca"):
            last(denoiser, plan)


def test_guidance_branches_renew_tokens_of_their_own():
    one, (z, cond), t = cache(0.5, by="attention"), start(9), at(0.5)
    guided, null = Guided(one, PROCESS, weight=1.5, null=3), dr.Cond(torch.full((2,), 3))
    with torch.no_grad():
        both = guided.renew(z, t, guided.encode(start(1)[0], at(0.7), cond).aged(), cond)
        label, other = (one.renew(z, t, one.encode(start(1)[0], at(0.7), of).aged(), of).x_hat for of in (cond, null))
        torch.testing.assert_close(guided.denoise(z, t, both, cond), other + 1.5 * (label - other))
    assert (label - other).abs().max() > 1e-3


def test_calls_and_multiply_adds_are_the_schedule_s():
    """A partial call: what lies outside, and of a token's 12 C^2 + 2 C n in each block the MLP's 8 C^2."""
    net, channels, blocks = network().float(), 16, 2
    one = TokenCache(net.token_cut(scores=False), PROCESS, 0.5)
    z, cond, t = torch.zeros(1, *SHAPE), dr.Cond(torch.tensor([0])), torch.full((1,), 0.5)
    with torch.no_grad():
        context = one.encode(z, t, cond)
    kept = macs_of(lambda: one.denoise(z, t, context.aged(), cond))
    part = macs_of(lambda: one.renew(z, t, context.aged(), cond))
    films = blocks * 2 * 16 * channels  # of the second half of a block
    assert part == kept + blocks * (2 * 8 * channels**2) + films
    plan = dr.StepPlan.uniform(6, 2).renewing(named("duca").between)
    meter = Metered(one)
    list(dr.sample_batches(meter, dr.DDIM(PROCESS), plan, SHAPE, [0], [0]))
    assert (meter.meter.heavy, meter.meter.light, meter.meter.partial) == (2, 4, 2)
    full = macs_of(lambda: one.encode(z, t, cond))
    counted = plan_cost(one, dr.DDIM(PROCESS), plan, SHAPE, label=0)
    assert counted.macs == 2 * full + 2 * kept + 2 * part
    assert counted.total(CallCost(100, 10, decode=0.5, partial=1)) == 2 * 100 + 2 * 10 + 2 * 1 + 0.5
    assert counted.macs == mean_macs(one, dr.DDIM(PROCESS), plan, SHAPE, [0], [0])
    expected = expected_costs(counted.calls, one.reuse, dr.DDIM(PROCESS), plan, SHAPE, label=0)
    assert [cost.macs for cost in expected] == [
        full, full + kept, full + kept + part, 2 * full + kept + part, 2 * full + 2 * kept + part, counted.macs
    ]  # fmt: skip
    assert full == macs_of(lambda: net(z, PROCESS.log_snr(t), cond.label))


def test_random_orders_of_many_plans_do_not_fill_the_memory():
    for i in range(100):
        order(1, 4, i / 100, torch.device("cpu"))
    assert order.cache_info().currsize <= 64


def test_what_has_no_tokens_is_refused():
    convolutions = UViT(dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1),), 3, embedding=16))
    with pytest.raises(ValueError, match="this U-ViT has none there"):
        denoiser_named("toca")(Plain(convolutions, PROCESS), PROCESS)
    empty = UViT(dr.UViTConfig(8, 1, (dr.Level("transformer", 8, 0),), 3, embedding=16, head_dim=8))
    with pytest.raises(ValueError, match="this U-ViT has none there"):
        denoiser_named("duca")(Plain(empty, PROCESS), PROCESS)
    with pytest.raises(ValueError, match=r"tokens are cached of a single-rate network.*got Guided"):
        denoiser_named("duca")(Guided(PLAIN, PROCESS, 2.0, 3), PROCESS)
    (z, cond), t = start(), at(0.4)
    with pytest.raises(ValueError, match="4 features, of all rows, got 1"):
        named("toca").renew(z, t, dr.Context((z,), tau=t), cond)
