"""Caches on pipelines of diffusers: exact where nothing is skipped, gone when removed, and the published rules."""

import copy
import io
import pickle
import re
import warnings
from collections import deque
from functools import partial, update_wrapper
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pipelines import tiny_pipelines
from pipelines.models import diffusers, dit, randomised, unet
from pipelines.tiny_pipelines import ROWS, STEPS, UNETS, of_dit, of_flux, of_qwen, of_sana, of_sd3, of_unet
from torch import nn

import dualrate as dr
from dualrate.denoisers.catalogue import DENOISERS, denoiser_named
from dualrate.diffusion.context import Context, Refresh
from dualrate.pipelines.accelerate import CallRecord, _Network
from dualrate.pipelines.caching import Features
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.policies import FirstBlock, Fixed, Policy, SpeCa, Verified
from dualrate.pipelines.schedulers import read_scheduler
from dualrate.sampling.cost import macs_of
from dualrate.sampling.trajectory import trajectory

PAGE = Path(__file__).parents[2] / "docs/accelerate.md"
FIRST = "forecast of first"
NEVER = [FirstBlock(0.0), Verified(0.0), Verified(0.0, FIRST), 1]  # skip
ALWAYS = [3, FirstBlock(1e9), Verified(1e9, FIRST), Verified(1e9)]


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def network(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def calls(handle, sampling=-1) -> list[CallRecord]:
    (samplings,) = handle.samplings.values()
    return samplings[sampling]


def steps(handle, did="full", branch=0):
    return [call.step for call in calls(handle) if call.did == did and call.branch == branch]


def counted(draw):
    """Return the draws, and the multiply-adds of all that runs."""
    drawn = []
    return drawn, macs_of(lambda: drawn.append(draw()))


@pytest.mark.parametrize("name", ROWS)
def test_where_nothing_is_skipped_a_pipeline_draws_what_it_drew_and_then_is_what_it_was(name):
    pipe, draw = ROWS[name]()
    net, policies = network(pipe), slice(None, None, 1 if name == "SD3" else 4)
    (own,), plain = counted(draw)
    before, weights = set(net.__dict__), list(net.state_dict())
    for policy in NEVER[policies]:
        with dr.accelerate(pipe, refresh=policy) as handle:
            same(draw(), own)
            assert list(net.state_dict()) == weights
        assert {call.did for call in calls(handle)} == {"full"}
    assert set(net.__dict__) == before
    for policy in ALWAYS[policies]:
        with dr.accelerate(pipe, "taylor", refresh=policy, order=1) as handle:
            (cheaper,), spent = counted(draw)
        assert cheaper.isfinite().all()
        assert not torch.equal(cheaper, own)
        assert steps(handle) == ([0, 3] if policy == 3 else [0])
        assert spent == sum(call.macs for call in calls(handle)) < plain / 1.2
        assert plain == sum(call.plain for call in calls(handle))
    same(draw(), own)


@pytest.mark.parametrize("made", UNETS.values(), ids=UNETS)
def test_a_unet_is_the_same_where_nothing_is_skipped(made):
    pipe, draw = made()
    (own,), plain = counted(draw)
    for outer in (1, len(pipe.unet.up_blocks[-1].resnets)):
        with dr.accelerate(pipe, "deep-cache", refresh=1, outer=outer):
            same(draw(), own)
        with dr.accelerate(pipe, "deep-cache", refresh=3, outer=outer) as handle:
            (cheaper,), spent = counted(draw)
        assert not torch.equal(cheaper, own)
        assert steps(handle) == [0, 3]
        assert spent == sum(call.macs for call in calls(handle)) < plain == sum(call.plain for call in calls(handle))
    same(draw(), own)


class Still(Policy):
    """Never again."""

    def refresh(self, step, change):
        return False


def alone(net):
    """A pipeline with nothing else, and calls of its network at any time."""
    scheduler = SimpleNamespace(config=diffusers.DDIMScheduler().config)
    return SimpleNamespace(components={"net": net}, scheduler=scheduler)


@pytest.mark.parametrize("outer", [1, 2, 3])
def test_deep_cache_runs_the_last_layers_on_the_input_that_they_had(outer):
    """Where the time does nothing, the same state gives the same output from any layer on."""
    net = randomised(unet(layers_per_block=2)).eval()
    nn.init.zeros_(net.time_embedding.linear_2.weight)
    x, ran = torch.randn(2, 3, 8, 8), []
    for name, part in net.named_modules():
        if name.endswith(("resnets.0", "resnets.1", "resnets.2")):
            part.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad(), dr.accelerate(alone(net), "deep-cache", refresh=Still(), outer=outer):
        own = net(x, 9).sample
        ran.clear()
        torch.testing.assert_close(net(x, 8).sample, own)
        expected = [f"down_blocks.0.resnets.{i}" for i in range(outer - 1)]
        assert ran == expected + [f"up_blocks.1.resnets.{i}" for i in range(3 - outer, 3)]
        assert not torch.allclose(net(x.roll(1, -1), 7).sample, own)


@pytest.mark.parametrize("name", ["fora", "taylor", "polynomial", "toca", "duca"])
def test_the_pipeline_draws_what_our_cache_draws(name):
    """DDIM on the pipeline's grid, and the package's own trajectory and cache on the same."""
    pipe, draw = of_dit(steps=9, num_embeds_ada_norm=5)
    denoiser = dr.from_diffusers(pipe.transformer, pipe.scheduler)
    with dr.accelerate(pipe, name, refresh=3) as handle:
        theirs = draw()
    times = [*((int(k) + 1) / denoiser.process.schedule.steps for k in pipe.scheduler.timesteps), 0.0]
    cache = denoiser_named(name)(denoiser, denoiser.process)
    plan = dr.StepPlan.spread(times, 3)
    plan = plan.renewing(DENOISERS[name].keywords["between"]) if name in ("toca", "duca") else plan
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = trajectory(cache, dr.DDIM(denoiser.process), plan, z, dr.Cond(torch.tensor([1, 2])), lambda *_: z)
        *_, last = states
    torch.testing.assert_close(theirs / theirs.abs().max(), last.z / theirs.abs().max(), rtol=0, atol=1e-5)
    names = {Refresh.FULL: "full", Refresh.PARTIAL: "partial", Refresh.KEEP: "skipped"}
    assert [call.did for call in calls(handle)] == [names[refresh] for refresh in plan.refresh]


def test_first_block_is_the_cache_of_diffusers():
    pipe, draw = of_flux()
    net, ran = pipe.transformer, []
    hook = net.single_transformer_blocks[0].attn.register_forward_hook(lambda *_: ran.append(len(times) - 1))
    times = []
    outside = net.register_forward_pre_hook(lambda *_: times.append(0))
    for threshold in (0.2, 1.0):
        times.clear()
        ran.clear()
        net.enable_cache(diffusers.FirstBlockCacheConfig(threshold=threshold))
        with net.cache_context("cond"):
            theirs = draw(num_inference_steps=8)
        net.disable_cache()
        kept = list(ran)
        with dr.accelerate(pipe, "fora", refresh=FirstBlock(threshold)) as handle:
            torch.testing.assert_close(draw(num_inference_steps=8), theirs)
        assert steps(handle) == kept
    assert 1 < len(kept) < 8
    hook.remove()
    outside.remove()


def test_first_block_is_that_of_cache_dit():
    cache_dit = pytest.importorskip("cache_dit")
    for threshold in (0.05, 0.1):
        pipe, draw = of_dit(guidance=2.0, steps=12)
        with dr.accelerate(pipe, "fora", refresh=FirstBlock(threshold)) as handle:
            ours = draw()
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=0
        )
        cache_dit.enable_cache(pipe, cache_config=config)
        theirs = draw()
        (summary,) = cache_dit.summary(pipe, details=False, logging=False)[:1]
        assert list(summary.cached_steps) == steps(handle, "skipped")
        torch.testing.assert_close(ours, theirs)


def log_snr_of(pipe, time):
    schedule = read_scheduler({**pipe.scheduler.config, "_class_name": "DDIMScheduler"})[0]
    return schedule.log_snr((time.double() + 1) / schedule.steps)


@pytest.mark.parametrize("name", ROWS)
def test_forecasts_know_how_noisy_each_step_of_the_scheduler_is(name, monkeypatch):
    pipe, draw = ROWS[name]()
    seen, call = [], Features.call

    def noted(method, run, cache, schedule, t):
        seen.append(schedule.log_snr(t))
        return call(method, run, cache, schedule, t)

    monkeypatch.setattr(Features, "call", noted)
    with dr.accelerate(pipe, "polynomial", refresh=2):
        draw()
    if "Flow" in type(pipe.scheduler).__name__:
        noise = pipe.scheduler.sigmas[1:-1].double()  # the first is noise alone
        expected = 2 * torch.log((1 - noise) / noise)
    else:
        signal = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[1:]].double()
        expected = torch.log(signal / (1 - signal))
    found = torch.stack(seen)[:: len(seen) // STEPS]
    torch.testing.assert_close(found[1:].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", [of_flux, of_qwen])
def test_forecasts_know_the_times_of_the_scheduler_where_networks_are_given_rounded_ones(made, monkeypatch):
    embeddings, seen, clock = tiny_pipelines._embeddings, [], _Network.clock
    monkeypatch.setattr(tiny_pipelines, "_embeddings", lambda *of: embeddings(*of).to(torch.bfloat16))
    monkeypatch.setattr(_Network, "clock", lambda network, time: seen.append(time) or clock(network, time))
    pipe, draw = made()
    pipe.transformer.to(torch.bfloat16)
    with dr.accelerate(pipe, refresh=2):
        draw(num_inference_steps=40)
    assert sorted(set(seen), reverse=True) == pipe.scheduler.timesteps.tolist()


class Polynomial(nn.Module):
    """A block that adds a polynomial of the log-SNR."""

    def __init__(self, pipe, block, degree):
        super().__init__()
        self.pipe, self.norm1, self.degree = pipe, block.norm1, degree
        self.factors = torch.randn(degree + 1, 16, generator=torch.Generator().manual_seed(5))

    def forward(self, hidden_states, timestep=None, **kwargs):
        u = (log_snr_of(self.pipe, timestep) / 8).float()[:, None, None]
        return hidden_states + sum(factor * u**power for power, factor in enumerate(self.factors))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_polynomials_in_log_snr_are_forecast_exactly(degree):
    """From the refresh on that is one more than the degree."""
    pipe, _ = of_dit(num_embeds_ada_norm=5)
    net = pipe.transformer
    net.transformer_blocks = nn.ModuleList([Polynomial(pipe, net.transformer_blocks[0], degree)])
    times, x, label = [900, 830, 700, 650, 400, 380, 300, 250, 120, 90, 30], torch.randn(1, 4, 8, 8), torch.tensor([1])
    with torch.no_grad():
        own = [net(x, torch.tensor([time]), label).sample for time in times]
        for order in (degree, max(degree - 1, 0)):
            with dr.accelerate(pipe, "polynomial", refresh=2, order=order):
                ours = [net(x, torch.tensor([time]), label).sample for time in times]
            off = [(one - other).abs().max() / other.abs().max() for one, other in zip(ours, own, strict=True)]
            assert max(off[2 * degree :]) < 1e-4 if order == degree else max(off[2 * degree :]) > 1e-3


@pytest.mark.parametrize("block", ["first", "last"])
def test_every_kept_step_has_the_error_that_was_allowed(block):
    """Counted here in float64 from what the block does, and from the features of the refreshes before."""
    pipe, draw = of_dit(steps=12)
    with dr.accelerate(pipe, "polynomial", refresh=Verified(0.0, f"forecast of {block}"), order=1) as handle:
        draw()
    bound, kept = sorted(call.change for call in calls(handle))[2 if block == "first" else 7], []

    def note(module, given, named, out):
        kept.append((out - named["hidden_states"]).double())

    seen = pipe.transformer.transformer_blocks[0 if block == "first" else -1]
    hook = seen.register_forward_hook(note, with_kwargs=True)
    with dr.accelerate(pipe, "polynomial", refresh=Verified(bound, f"forecast of {block}"), order=1) as handle:
        draw()
    hook.remove()
    u = [float(log_snr_of(pipe, time)) for time in pipe.scheduler.timesteps]
    held, runs, skipped = deque(maxlen=2), iter(kept), 0
    for call in calls(handle):
        real = next(runs)
        if call.step:
            guess = sum(
                feature * torch.tensor([(u[call.step] - v) / (w - v) for v, _ in held if v != w]).prod()
                for w, feature in held
            )
            error = ((guess - real).flatten(1).norm(dim=1) / real.flatten(1).norm(dim=1)).max()
            torch.testing.assert_close(error, torch.tensor(call.change).double(), rtol=1e-3, atol=1e-5)
            assert (error < bound) == (call.did == "skipped")
            skipped += call.did == "skipped"
            if call.did == "full" and block == "last":
                real = next(runs)
        if call.did == "full":
            held.appendleft((u[call.step], real))
    assert 0 < skipped < 11
    worst = max(call.change for call in calls(handle) if call.did == "skipped")
    assert f"11 verified, kept up to an error of {worst:.2g}" in str(handle)


def test_two_calls_of_a_step_have_caches_of_their_own():
    pipe, draw = of_qwen()
    with dr.accelerate(pipe, "taylor", refresh=FirstBlock(0.2)) as handle:
        draw()
    assert [call.branch for call in calls(handle)] == [0, 1] * STEPS
    net = randomised(dit()).eval()
    x = torch.randn(5, 2, 4, 8, 8)
    one, other = torch.tensor([1, 2]), torch.tensor([3, 4])

    def called(*labels):
        with dr.accelerate(alone(net), "fora", refresh=FirstBlock(0.3)) as handle, torch.no_grad():
            outputs = [[net(z, torch.full((2,), 900 - 100 * i), y).sample for y in labels] for i, z in enumerate(x)]
        return outputs, handle

    (together, handle), (first, _), (second, _) = called(one, other), called(one), called(other)
    for both, *each in zip(together, first, second, strict=True):
        same(both[0], each[0][0])
        same(both[1], each[1][0])
    assert len(handle.samplings["net"]) == 1


def test_a_sampling_begins_anew_whatever_became_of_the_one_before():
    pipe, draw = of_sd3()
    handle = dr.accelerate(pipe, "fora", refresh=Still())
    own = draw()

    def stop(pipe, step, time, given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(seed=1, callback_on_step_end=stop)
    same(draw(), own)
    block = pipe.transformer.transformer_blocks[-1]

    def fail(*_):
        raise RuntimeError("out of memory")

    failing = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(seed=1)
    failing.remove()
    same(draw(), own)
    draw(num_inference_steps=1)
    same(draw(), own)
    assert [len(sampling) for sampling in handle.samplings["transformer"]] == [STEPS, 1, STEPS, 0, STEPS, 1, STEPS]
    with torch.no_grad():  # the last images of a batch are fewer
        net, x = pipe.transformer, torch.randn(3, 4, 8, 8)
        given = {"encoder_hidden_states": torch.randn(3, 6, 12), "pooled_projections": torch.randn(3, 10)}
        for rows in (3, 1):
            some = {name: one[:rows] for name, one in given.items()}
            net(hidden_states=x[:rows], timestep=torch.full((rows,), 0.5), **some)
    assert [call.did for call in calls(handle)][-2:] == ["full", "full"]


def test_what_enters_between_the_blocks_is_not_skipped():
    pipe, draw = of_sd3()
    guided = {"skip_guidance_layers": [1], "guidance_scale": 3.0, "skip_layer_guidance_stop": 0.6}
    own = draw(**guided)
    with (
        dr.accelerate(pipe, refresh=1) as handle,
        pytest.warns(UserWarning, match="transformer runs whole where skip_layers enters between its blocks"),
    ):
        same(draw(**guided), own)
    assert len(calls(handle)) == STEPS


class CountedPolicy(Policy):
    """The first two steps, and then every third."""

    def refresh(self, step, change):
        return step < 2 or step % 3 == 0


def test_a_policy_is_one_class():
    pipe, draw = of_flux()
    with dr.accelerate(pipe, "fora", refresh=CountedPolicy()) as handle:
        draw()
    assert steps(handle) == [0, 1, 3]


def test_a_scale_that_is_set_on_parts_of_the_network_reaches_the_blocks():
    """As that of a LoRA is, on the network that is called."""
    pipe, _ = of_flux()
    method = Features(pipe.transformer, KINDS["FluxTransformer2DModel"], FirstBlock(0.1), "fora", 0)
    parts = {id(part) for part in method.copied(method.blocks, lambda named: named).modules()}
    assert {id(part) for block in method.blocks for part in block.modules()} < parts


def test_compiled_blocks_are_taken_and_a_compiled_network_is_not():
    pipe, draw = of_dit()
    net = pipe.transformer
    own = draw()
    pipe.transformer = torch.compile(net, backend="eager")
    with pytest.raises(ValueError, match=r"transformer is compiled as a whole.*_orig_mod.*compile_repeated_blocks"):
        dr.accelerate(pipe)
    pipe.transformer = net
    for block in net.transformer_blocks:
        block.compile(backend="eager")
    with dr.accelerate(pipe, refresh=1):
        torch.testing.assert_close(draw(), own)
    with pytest.raises(ValueError, match="neither compiled nor offloaded"):
        dr.accelerate(pipe, "toca")


@pytest.mark.parametrize(
    ("made", "method", "place"),
    [
        (of_sd3, "toca", "transformer_blocks.1"),
        (of_sd3, "duca", "transformer_blocks.0"),
        (of_unet, "deep-cache", "up_blocks.1"),
    ],
)
def test_hooks_on_what_runs_in_part_are_refused_before_and_as_it_draws(made, method, place):
    """They would see some of the tokens or layers, or act twice."""
    pipe, draw = made()
    block, own = network(pipe).get_submodule(place), draw()

    def replaced():
        block.forward = partial(block.forward)  # as those who offload do
        return SimpleNamespace(remove=lambda: delattr(block, "forward"))

    for hook in (
        lambda: block.register_forward_hook(lambda module, inputs, output: None),
        lambda: block.register_forward_pre_hook(lambda module, inputs: None),
        replaced,
    ):
        with dr.accelerate(pipe, method, refresh=1):
            later = hook()
            with pytest.raises(ValueError, match=r"runs in part.*nor hooked: take that off, hook or offload"):
                draw()
            later.remove()
            draw()
        later = hook()
        with pytest.raises(ValueError, match=r"runs in part.*nor hooked|has another forward"):
            dr.accelerate(pipe, method, refresh=1)
        later.remove()
    same(draw(), own)


@pytest.mark.parametrize(("made", "method"), [(of_sd3, "toca"), (of_unet, "deep-cache")])
def test_blocks_whose_hooks_were_removed_may_run_in_part(made, method):
    """Diffusers, as accelerate, then leaves a block its class's forward as an attribute."""
    pipe, draw = made()
    net, hooks = network(pipe), diffusers.hooks.hooks
    for block in net.transformer_blocks if method == "toca" else net.up_blocks:
        registry = hooks.HookRegistry.check_if_exists_or_initialize(block)
        registry.register_hook(hooks.ModelHook(), "of another cache")
        registry.remove_hook("of another cache")
        assert "forward" in vars(block)
    own = draw()
    with dr.accelerate(pipe, method, refresh=1):
        same(draw(), own)


def test_hooks_on_whole_blocks_see_all_of_what_full_calls_make():
    pipe, draw = of_sd3()
    block, seen = pipe.transformer.transformer_blocks[0], []
    block.register_forward_hook(lambda module, inputs, output: seen.append((module, output[1].shape)))
    draw()
    whole = seen[0]
    seen.clear()
    with dr.accelerate(pipe, refresh=2):
        draw()
    assert seen == [whole] * (STEPS // 2)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_network_that_is_compiled_later_is_refused_as_it_draws(in_place):
    pipe, draw = of_dit()
    net = pipe.transformer
    with dr.accelerate(pipe, "toca", refresh=2):
        if in_place:
            net.compile(backend="eager")
        else:
            pipe.transformer = torch.compile(net, backend="eager")
        with pytest.raises(ValueError, match="transformer is compiled as a whole"):
            draw()


def test_a_network_is_called_though_its_pipeline_lets_go_of_it():
    pipe, _ = of_dit()
    net = pipe.transformer
    with dr.accelerate(pipe, "fora", refresh=2) as handle, torch.no_grad():
        pipe.transformer = None
        net(torch.randn(1, 4, 8, 8), torch.tensor([900]), torch.tensor([1]))
        assert [len(calls) for calls in handle.samplings["transformer"]] == [1]


def test_compiled_blocks_are_compiled_though_their_first_calls_are_counted():
    pipe, draw = of_dit()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with dr.accelerate(pipe, "fora", refresh=2):
        for block in pipe.transformer.transformer_blocks:
            block.compile(backend=backend)
        draw()
    assert graphs


def test_gradients_go_through_calls_that_are_counted_too():
    """As where a loop guides by the gradient of what the network makes."""
    pipe, _ = of_dit()
    with dr.accelerate(pipe.transformer, "fora", refresh=2):
        for time in (900, 800, 700):
            state = torch.randn(1, 4, 8, 8, requires_grad=True)
            pipe.transformer(state, torch.tensor([time]), torch.tensor([1])).sample.sum().backward()
            assert state.grad is not None


def test_a_network_with_a_cache_is_not_pickled_and_its_copies_are_without_one():
    pipe, draw = of_dit()
    own, net, way = draw(), pipe.transformer, "transformer is accelerated: call remove"
    plain = dr.from_diffusers(pipe)
    with dr.accelerate(pipe, "fora", refresh=Still()) as handle:
        for dump in (pickle.dumps, lambda net: torch.save(net, io.BytesIO())):
            with pytest.raises(TypeError, match=way):
                dump(net)
        pipe.transformer = copy.deepcopy(net)
        same(draw(), own)
        assert not handle.samplings["transformer"]
        for other in (pipe.transformer, copy.copy(net)):  # which have no handle to remove
            before = list(net.state_dict())
            with dr.accelerate(other, "fora", refresh=2):
                assert list(other.state_dict()) == before
        denoiser = dr.from_diffusers(net, pipe.scheduler)
        for z, t in zip(torch.randn(2, 1, 4, 8, 8), torch.tensor([[0.9], [0.5]]), strict=True):
            same(*(each.denoise(z, t, Context(), dr.Cond(torch.tensor([1]))) for each in (denoiser, plain)))
    pickle.loads(pickle.dumps(pipe.transformer))


def test_a_network_is_pickled_once_its_cache_is_off_though_others_were_put_around_it():
    pipe, draw = of_dit()
    own, net = draw(), pipe.transformer
    handle = dr.accelerate(pipe, "fora", refresh=2)
    net.forward = update_wrapper(partial(net.forward), net.forward)
    with pytest.raises(TypeError, match="transformer is accelerated: call remove"):
        pickle.dumps(net)
    handle.remove()
    pipe.transformer = pickle.loads(pickle.dumps(net))
    same(draw(), own)


def test_a_condition_that_comes_late_leaves_nothing_in_memory_and_its_policy_knows_the_steps():
    net, scheduler, told = randomised(dit(num_embeds_ada_norm=1000)).eval(), diffusers.DDIMScheduler(), []

    class Told(Still):
        def refresh(self, step, change):
            told.append(self.steps)
            return False

    scheduler.set_timesteps(10)
    with torch.no_grad(), dr.accelerate(net, "fora", refresh=Told(), scheduler=scheduler) as handle:
        for place, time in enumerate(scheduler.timesteps):
            for label in (1, 2)[: 1 + (place >= 6)]:
                net(torch.randn(1, 4, 8, 8), time[None], torch.tensor([label]))
        (cached,) = handle._networks
        assert not any(cache.past for cache in cached.caches.values())
    assert set(told) == {10, 4}


def test_a_handle_is_removed_though_its_warning_is_an_error():
    net = randomised(dit(num_embeds_ada_norm=1000)).eval()
    handle = dr.accelerate(net, "fora", refresh=1)
    for time in range(900, 0, -100):  # as of a sampling that was given up
        net(torch.randn(1, 4, 8, 8), torch.tensor([time]), torch.tensor([1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no call was skipped"):
            handle.remove()
    assert "forward" not in vars(net)
    assert not handle._networks[0].caches


def test_a_copy_of_a_pipeline_has_a_network_of_its_own():
    pipe, _ = of_dit()
    with dr.accelerate(pipe, "fora", refresh=Still()):
        other = copy.deepcopy(pipe)
        with torch.no_grad():
            for parameter in other.transformer.parameters():
                parameter.zero_()
        x, time, label = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.tensor([0])
        with torch.no_grad():
            assert not other.transformer(x, time, label).sample.any()
            assert pipe.transformer(x, time, label).sample.any()


def test_offloaded_networks_keep_their_hooks():
    hooks = pytest.importorskip("accelerate.hooks")

    class Counting(hooks.ModelHook):
        count = 0

        def pre_forward(self, module, *given, **named):
            self.count += 1
            return given, named

    for hooked_before in (True, False):
        pipe, draw = of_dit()
        net, counting = pipe.transformer, Counting()
        own = draw()
        if hooked_before:
            hooks.add_hook_to_module(net, counting)
        handle = dr.accelerate(pipe, "fora", refresh=2)
        if not hooked_before:
            hooks.add_hook_to_module(net, counting)
        assert not torch.equal(draw(), own)
        assert counting.count == STEPS
        handle.remove()
        same(draw(), own)
        assert counting.count == 2 * STEPS
        hooks.remove_hook_from_module(net)
        same(draw(), own)


@pytest.mark.parametrize("method", ["fora", "taylor", "polynomial"])
def test_a_network_that_is_offloaded_layer_by_layer_draws_what_it_drew(method):
    accelerate = pytest.importorskip("accelerate")
    pipe, draw = of_sd3()
    with dr.accelerate(pipe, method, refresh=2) as handle:
        own = draw()
    kept = steps(handle, "skipped")
    accelerate.cpu_offload(pipe.transformer, "cpu")
    assert all(weight.is_meta for weight in pipe.transformer.parameters())
    with dr.accelerate(pipe, method, refresh=2) as handle:
        same(draw(), own)
    assert steps(handle, "skipped") == kept == [1, 3]


NOTHING = SimpleNamespace(components={"text_encoder": nn.Linear(1, 1)}, scheduler=None)


@pytest.mark.parametrize(
    ("made", "method", "refresh", "message"),
    [
        (of_dit, "tailor", 4, "method is one of fora, taylor, .*, got 'tailor'"),
        (of_dit, "taylor", 0, "every is a whole number from 1"),
        (of_dit, "taylor", "4", "or a Policy, got '4'$"),
        (of_dit, None, 0.1, r"or a Policy, got 0.1: for a threshold, FirstBlock\(0.1\)"),
        (of_dit, "deep-cache", 4, "has one level.*take 'taylor'"),
        (of_unet, "taylor", 4, "no row of blocks: take 'deep-cache'"),
        (of_unet, "toca", 4, "no row of blocks: take 'deep-cache'"),
        (of_unet, "deep-cache", FirstBlock(0.1), "take refresh=N, got FirstBlock"),
        (of_sana, "toca", 4, "got SanaTransformerBlock"),
        (of_dit, "duca", FirstBlock(0.1), "refresh=N is expected, got FirstBlock"),
        (lambda: (NOTHING, None), "fora", 4, "FluxTransformer2DModel.* is expected, got SimpleNamespace with Linear"),
        (lambda: (nn.Linear(1, 1), None), "fora", 4, "FluxTransformer2DModel.* is expected, got Linear"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(made, method, refresh, message):
    pipe, _ = made()
    with pytest.raises(ValueError, match=message):
        dr.accelerate(pipe, method, refresh=refresh)


def test_settings_that_do_not_fit_and_other_caches_are_refused():
    pipe, draw = of_flux()
    own, net = draw(), pipe.transformer
    for changed, message in (
        (lambda: dr.accelerate(pipe), "transformer is accelerated already: call remove"),
        (lambda: net.enable_cache(diffusers.FirstBlockCacheConfig()), r"has the hooks fbc.*disable_cache\(\)"),
        (
            lambda: setattr(net, "forward", partial(net.forward)),
            "FluxTransformer2DModel in transformer has another forward",
        ),
    ):
        handle = changed()
        with pytest.raises(ValueError, match=message):
            dr.accelerate(pipe)
        if handle is not None:
            handle.remove()
        elif net.is_cache_enabled:
            net.disable_cache()
        else:
            del net.forward
    for method, option in (("fora", {"order": 1}), ("toca", {"order": 1}), ("taylor", {"outer": 2})):
        with pytest.raises(ValueError, match=f"order is of taylor and .*: drop it for {method}"):
            dr.accelerate(pipe, method, **option)
    with dr.accelerate(pipe, refresh=np.int64(3)) as handle:
        assert "Fixed(every=3, " in str(handle)
    for order in (-1, 1.5):
        with pytest.raises(ValueError, match=f"order is a whole number, 0 or more, got {order}"):
            dr.accelerate(pipe, order=order)
    pipe.scheduler = diffusers.IPNDMScheduler()
    with pytest.raises(ValueError, match=r"for IPNDMScheduler: take one that .* by 'taylor' or 'fora' need none"):
        dr.accelerate(pipe)
    pipe.scheduler = diffusers.LCMScheduler()
    with pytest.raises(ValueError, match="LCMScheduler samples a distilled model"):
        dr.accelerate(pipe)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    same(draw(), own)
    other, _ = of_unet()
    for outer in (3, 0, 1.5):
        with pytest.raises(ValueError, match=f"outer: 1 to 2 of the last layers run at every step, got {outer}"):
            dr.accelerate(other, "deep-cache", outer=outer)


@pytest.mark.parametrize("method", ["fora", "taylor", "polynomial", "toca", "duca"])
def test_a_sampling_spends_what_its_calls_say(method):
    pipe, draw = of_dit()
    with dr.accelerate(pipe, method, refresh=2) as handle:
        draw()  # whose costs are counted by calls of their own
        _, spent = counted(draw)
    assert sum(call.macs for call in calls(handle)) == spent


@pytest.mark.parametrize("policy", [Verified(0.0), Verified(0.0, FIRST), FirstBlock(0.0)])
def test_a_forecast_that_is_refused_has_its_price(policy):
    """The last block ran for it, and runs again; the first one's run is of use."""
    pipe, draw = of_dit()
    _, plain = counted(draw)
    block = pipe.transformer.transformer_blocks[-1]
    passes = []
    hook = block.register_forward_hook(lambda *_: passes.append(1))
    with dr.accelerate(pipe, "taylor", refresh=policy) as handle:
        draw()
        passes.clear()
        _, spent = counted(draw)
    hook.remove()
    more = (len(passes) - STEPS) * macs_of_block(pipe, block)
    assert len(passes) == STEPS + (STEPS - 1) * (policy == Verified(0.0))
    assert sum(call.macs for call in calls(handle)) == spent == plain + more
    assert sum(call.plain for call in calls(handle)) == plain


def macs_of_block(pipe, block):
    """Count the multiply-adds of a run of a block, in a plain call of its network."""
    given = []
    hook = block.register_forward_pre_hook(lambda module, *call: given.append(call), with_kwargs=True)
    with torch.no_grad():
        pipe.transformer(torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), torch.tensor([0, 1]))
        hook.remove()
        ((positional, named),) = given
        return macs_of(lambda: block(*positional, **named))


def test_a_time_that_a_scheduler_repeats_is_a_step_of_the_same_cache():
    pipe, draw = of_dit(steps=6)
    pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    with dr.accelerate(pipe, "fora", refresh=3) as handle:
        draw()
    assert [(call.branch, call.step) for call in calls(handle)] == [(0, step) for step in range(7)]
    assert steps(handle) == [0, 3, 6]


def test_a_handle_tells_what_was_spent():
    pipe, draw = of_dit()
    with dr.accelerate(pipe, "taylor", refresh=3) as handle:
        assert str(handle) == "transformer (DiTTransformer2DModel): taylor, Fixed(every=3, first=1)"
        for _ in range(17):
            draw()
    spent, plain = (sum(getattr(call, name) for call in calls(handle)) for name in ("macs", "plain"))
    lines = str(handle).splitlines()
    cost = f"{spent / 1e9:.4g} of {plain / 1e9:.4g} GMACs, {spent / plain:.2f} of the plain transformer's multiply-adds"
    assert lines[-1] == f"  sampling 17: 2 full, 2 skipped calls; {cost}"
    assert len(lines) == 17


class Line(nn.Module):
    """A block that adds a straight line, or a parabola, of the number of its call."""

    def __init__(self, block, degree):
        super().__init__()
        self.norm1, self.degree, self.step = block.norm1, degree, 0
        self.factor = torch.randn(16, generator=torch.Generator().manual_seed(5))

    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.factor * (0.3 * self.step) ** self.degree


@pytest.mark.parametrize("degree", [1, 2])
def test_taylor_counts_steps_whatever_their_times(degree):
    """A straight line in steps is forecast exactly once two refreshes are kept; a parabola is not."""
    pipe, _ = of_dit(num_embeds_ada_norm=5)
    net = pipe.transformer
    block = Line(net.transformer_blocks[0], degree)
    net.transformer_blocks = nn.ModuleList([block])
    times, x, label = [900, 830, 700, 650, 400, 380, 300, 250, 120, 90, 30], torch.randn(1, 4, 8, 8), torch.tensor([1])

    def called():
        outputs = []
        for block.step, time in enumerate(times):
            outputs.append(net(x, torch.tensor([time]), label).sample)
        return outputs

    with torch.no_grad():
        own = called()
        with dr.accelerate(net, "taylor", refresh=3) as handle:
            ours = called()
    off = [float((one - other).abs().max() / other.abs().max()) for one, other in zip(ours, own, strict=True)]
    assert steps(handle) == [0, 3, 6, 9]
    assert max(off[3:]) < 1e-5 if degree == 1 else max(off[3:]) > 1e-3


def test_a_network_is_taken_beside_a_scheduler_or_alone_where_none_is_asked():
    """Calls of a loop of one's own are those of the pipeline's."""
    pipe, draw = of_dit(steps=12)
    net = pipe.transformer
    for method in ("polynomial", "taylor", "duca"):
        with dr.accelerate(pipe, method, refresh=2) as handle:
            theirs, did = draw(), [call.did for call in calls(handle)]
        with dr.accelerate(net, method, refresh=2, scheduler=pipe.scheduler) as handle:
            same(draw(), theirs)
        assert [call.did for call in calls(handle)] == did
    with dr.accelerate(net, "fora", refresh=2) as handle:
        draw()
        draw()
    assert [len(sampling) for sampling in handle.samplings["transformer"]] == [12, 12]
    for method in ("polynomial", "duca"):
        with pytest.raises(ValueError, match=r"how noisy each time .*: pass scheduler=, or take method 'taylor'"):
            dr.accelerate(net, method)
    with pytest.raises(ValueError, match="DiTPipeline has a scheduler, which counts"):
        dr.accelerate(pipe, scheduler=pipe.scheduler)
    other, _ = of_unet()
    with dr.accelerate(other.unet, "deep-cache") as handle:
        assert list(handle.samplings) == ["unet"]


@pytest.mark.parametrize("first", [1, 3])
def test_fixed_runs_the_first_steps_whole(first):
    pipe, draw = of_dit(steps=12)
    with dr.accelerate(pipe, "taylor", refresh=Fixed(4, first)) as handle:
        draw()
    assert steps(handle) == ([0, 4, 8] if first == 1 else [0, 1, 2, 6, 10])


@pytest.mark.parametrize(
    ("every", "first", "did"), [(3, 1, "FKPFKPFKPFKP"), (3, 3, "FFFKPFKPFKPF"), (4, 2, "FFPKPFPKPFPK")]
)
def test_the_step_before_the_next_full_one_is_partial_whatever_the_first_ones(every, first, did):
    pipe, draw = of_dit(steps=12)
    with dr.accelerate(pipe, "duca", refresh=Fixed(every, first)) as handle:
        draw()
    letters = {"full": "F", "partial": "P", "skipped": "K"}
    assert "".join(letters[call.did] for call in calls(handle)) == did


def speca(errors, threshold, decay, least, most, first):
    """Whole steps by the published rule, of errors that a forecast at each step would have."""
    whole, forecasts, error = [], 0, 0.0
    for step, now in enumerate(errors):
        limit = max(threshold * decay ** (step / len(errors)), 0.01)
        if step < first or forecasts == most or (forecasts >= least and error > limit):
            whole.append(step)
            forecasts, error = 0, 0.0
        else:
            forecasts, error = forecasts + 1, now
    return whole


@pytest.mark.parametrize(("least", "most", "first"), [(1, 3, 1), (1, 5, 3), (2, 5, 2), (3, 3, 1)])
@pytest.mark.parametrize("decay", [1.0, 0.1, 0.0])
def test_speca_is_the_published_rule(least, most, first, decay):
    errors = torch.rand(40, generator=torch.Generator().manual_seed(least + most)).mul(0.2).tolist()
    policy, whole = SpeCa(0.1, decay, least, most, first), [0]
    policy.steps = len(errors)
    for step, error in list(enumerate(errors))[1:]:
        if policy.due(step):
            whole.append(step)
        else:
            assert not policy.refresh(step, error)
    assert whole == speca(errors, 0.1, decay, least, most, first)
    assert len(whole) > 8


@pytest.mark.parametrize("block", ["first", "last"])
def test_speca_runs_the_step_after_a_rejection_whole_and_spends_nothing_on_a_forecast_there(block):
    pipe, draw = of_dit(steps=12)
    _, plain = counted(draw)
    kept = {"first": 1e9, "last": 1e9}[block]
    with dr.accelerate(pipe, "taylor", refresh=SpeCa(kept, 1.0, most=4, sees=f"forecast of {block}")) as handle:
        draw()
    assert steps(handle) == [0, 1, 2, 7]
    with dr.accelerate(pipe, "taylor", refresh=SpeCa(0.0, 1.0, first=1, sees=f"forecast of {block}")) as handle:
        draw()
        _, spent = counted(draw)
    record = {call.step: call.change for call in calls(handle)}
    assert all((step == 0 or record[step - 1] > 0.01) for step in steps(handle))
    assert len(steps(handle)) > 2
    assert spent == sum(call.macs for call in calls(handle)) < plain
    with dr.accelerate(pipe.transformer, "taylor", refresh=SpeCa(0.1)), pytest.raises(ValueError, match="pass sched"):
        draw()


def test_changes_are_printed_by_quantiles_so_that_a_threshold_can_be_chosen():
    pipe, draw = of_dit(steps=21)
    with dr.accelerate(pipe, "fora", refresh=FirstBlock(0.0)) as handle:
        draw()
    changes = sorted(call.change for call in calls(handle) if call.step)
    middle, most = changes[(len(changes) - 1) // 2] / 2 + changes[len(changes) // 2] / 2, changes[-1]
    assert f", changes 10% {changes[1] * 0.1 + changes[2] * 0.9:.2g}, 50% {middle:.2g}, " in repr(handle)
    assert f"100% {most:.2g};" in repr(handle)
    assert repr(handle) == str(handle)
    with dr.accelerate(pipe, "fora", refresh=FirstBlock(middle)) as handle:
        draw()
    assert 1 < len(steps(handle)) < 21
    with dr.accelerate(pipe, "fora") as handle:
        draw()
    assert "changes" not in repr(handle)


@pytest.fixture
def warned():
    """The messages with a text among all warnings of a test."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield lambda text: [str(caught.message) for caught in record if text in str(caught.message)]


@pytest.mark.parametrize(
    ("scheduler", "settings", "stochastic"),
    [
        (diffusers.DDPMScheduler, {}, True),
        (diffusers.EulerAncestralDiscreteScheduler, {}, True),
        (diffusers.KDPM2AncestralDiscreteScheduler, {}, True),
        (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, True),
        (diffusers.DPMSolverMultistepScheduler, {}, False),
        (diffusers.FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}, True),
        (diffusers.FlowMatchEulerDiscreteScheduler, {}, False),
        (diffusers.LCMScheduler, {}, True),
        (diffusers.TCDScheduler, {}, True),
        (diffusers.DDIMScheduler, {}, False),
        (diffusers.EulerDiscreteScheduler, {}, False),
    ],
)
def test_a_scheduler_that_draws_noise_is_warned_of(scheduler, settings, stochastic, warned):
    pipe, _ = of_dit()
    pipe.scheduler = scheduler(**settings)
    dr.accelerate(pipe, "fora").remove()
    dr.accelerate(pipe.transformer, "fora", scheduler=pipe.scheduler).remove()
    assert len(warned(f"{scheduler.__name__} draws noise at every step")) == 2 * stochastic


def test_a_scheduler_that_is_swapped_is_looked_at_as_it_draws(warned):
    pipe, draw = of_dit(steps=9)
    with dr.accelerate(pipe, "fora"):
        pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
        assert not warned("draws noise")
        draw()
        draw()
    assert len(warned("DDPMScheduler draws noise")) == 1


@pytest.mark.parametrize("count", [4, 8, 9])
def test_few_steps_are_warned_of(count, warned):
    _, draw = made = of_dit(steps=count)
    with dr.accelerate(made[0], "fora"):
        draw()
    assert len(warned(f"{count} steps are few")) == (count <= 8)


class Counted(Policy):
    """Notes where it is asked, and the calls of the sampling that it is told."""

    asked: list[tuple[int, int]] = []  # noqa: RUF012  # of all copies

    def refresh(self, step, change):
        self.asked.append((step, self.steps))
        return False


@pytest.mark.parametrize("left_out", [0, 6])
@pytest.mark.parametrize("scheduler", [diffusers.HeunDiscreteScheduler, diffusers.DDIMScheduler])
def test_a_policy_is_told_the_calls_of_its_sampling(scheduler, left_out, warned):
    """Count them of a solver that calls twice a step, and of one that begins later, as from an image."""
    net, scheduler = randomised(dit()).eval(), scheduler()
    scheduler.set_timesteps(12)
    times = scheduler.timesteps[left_out:]
    Counted.asked.clear()
    with torch.no_grad(), dr.accelerate(net, "fora", refresh=Counted(), scheduler=scheduler):
        for time in times:
            scheduler._step_index = (getattr(scheduler, "_step_index", None) or 0) + 1
            net(torch.randn(1, 4, 8, 8), time.to(torch.bfloat16).expand(1), torch.tensor([0]))
    assert Counted.asked == [(step, len(times)) for step in range(1, len(times))]
    assert len(warned("steps are few")) == (len(times.unique()) <= 8)


@pytest.mark.parametrize("made", [of_flux, of_sd3])
def test_a_sampling_that_skips_nothing_is_warned_of_as_it_ends_whatever_the_unit_of_time(made, warned):
    pipe, draw = made()
    handle = dr.accelerate(pipe, "fora", refresh=1)
    draw(num_inference_steps=12)
    assert len(warned("no call was skipped")) == 1
    handle.remove()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_a_sampling_that_costs_more_than_a_plain_one_is_warned_of(threshold, alone, warned):
    pipe, draw = of_dit(steps=9)
    with dr.accelerate(pipe.transformer if alone else pipe, "taylor", refresh=Verified(threshold)) as handle:
        draw()
        cost = sum(call.macs for call in calls(handle)) / sum(call.plain for call in calls(handle))
        assert not alone or not warned("transformer cost")
    found = warned(f"transformer cost {cost:.2f} of the plain transformer's multiply-adds, as no call was skipped")
    assert len(found) == (threshold == 0)


class Tick(Policy):
    """Whole at every step."""

    def refresh(self, step, change):
        return True


@pytest.mark.parametrize("policy", [FirstBlock(1e-9), Verified(1e-9), Verified(1e-9, FIRST), Fixed(1), Tick()])
def test_a_policy_that_skips_no_call_is_warned_of_once_a_sampling_with_the_smallest_change(policy, warned):
    pipe, draw = of_dit(steps=12)
    with dr.accelerate(pipe, "fora", refresh=policy) as handle:
        draw()
        (message,) = warned("no call was skipped")
        draw()
    assert len(warned("no call was skipped")) == 2
    changes = [call.change for call in calls(handle) if call.change]
    smallest = f"the smallest change was {min(changes, default=0):.2g}, so raise the threshold"
    assert (smallest if changes else "or the condition is new at every step: change either; or") in message


def test_a_policy_that_skips_a_call_or_had_few_calls_is_not_warned_of(warned):
    pipe, draw = of_dit(steps=12)
    with dr.accelerate(pipe, "fora", refresh=Fixed(2)):
        draw()
    pipe.scheduler.step = lambda *given, **named: 1 / 0
    with dr.accelerate(pipe, "fora", refresh=1), pytest.raises(ZeroDivisionError):
        draw()
    assert not warned("was skipped")


def test_without_a_method_each_class_has_its_usual_one():
    for made, method in ((of_dit, "polynomial"), (of_unet, "deep-cache")):
        pipe, draw = made()
        with dr.accelerate(pipe, refresh=2) as usual:
            drawn = draw()
        with dr.accelerate(pipe, method, refresh=2) as named:
            same(draw(), drawn)
        assert str(usual) == str(named)
        assert f": {method}, Fixed" in str(usual)
        with dr.accelerate(network(pipe), scheduler=pipe.scheduler) as alone:
            assert f": {method}, Fixed" in str(alone)


def test_a_summary_counts_the_samplings_that_are_remembered():
    pipe, draw = of_dit()
    with dr.accelerate(pipe, "duca", refresh=3) as handle:
        nothing = {"samplings": 0, "full": 0, "partial": 0, "skipped": 0, "macs": 0, "plain": 0}
        assert handle.summary() == {"transformer": nothing}
        for _ in range(18):
            draw()
    did = [call.did for sampling in handle.samplings["transformer"] for call in sampling]
    assert len(did) == 16 * STEPS
    counts = {name: did.count(name) for name in ("full", "partial", "skipped")}
    totals = {name: 16 * sum(getattr(call, name) for call in calls(handle)) for name in ("macs", "plain")}
    assert handle.summary() == {"transformer": {"samplings": 16, **counts, **totals}}


def test_the_page_runs():
    """In turn, on a pipeline that stands for the reader's."""
    pipe, _ = of_dit()
    session = {"pipe": pipe}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), session)
    assert len(session["images"]) == 2
    assert "29 verified" in str(session["handle"])
