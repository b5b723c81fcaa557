"""Which cache a call of an accelerated network has: told by its condition, whatever the order of the calls."""

import copy
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pipelines.models import diffusers, dit, randomised, sd3, unet, unet_text
from pipelines.test_accelerate import calls, same, steps
from pipelines.tiny_pipelines import of_dit, of_sd3

import dualrate as dr
from dualrate.pipelines.accelerate import Digests
from dualrate.pipelines.policies import FirstBlock, Verified

TIMES = range(900, 100, -100)
STATES = torch.randn(len(TIMES), 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def alone(net):
    """A pipeline with nothing else."""
    return SimpleNamespace(components={"net": net}, scheduler=diffusers.DDIMScheduler())


def of_class(label):
    return {"class_labels": torch.tensor([label])}


def of_text(seed, tokens=6, width=12):
    generator = torch.Generator().manual_seed(seed)
    return {"encoder_hidden_states": torch.randn(1, tokens, width, generator=generator)}


def of_pooled(seed):
    """Told apart by its pooled embedding alone."""
    generator = torch.Generator().manual_seed(seed)
    return of_text(0) | {"pooled_projections": torch.randn(1, 10, generator=generator)}


def of_sizes(seed):
    """Told apart by a tensor within another argument."""
    generator = torch.Generator().manual_seed(seed)
    return of_text(0) | {
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 10, generator=generator), "time_ids": torch.ones(1, 6)}
    }


def sdxl():
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return unet_text(in_channels=4, **added, projection_class_embeddings_input_dim=10 + 6 * 4)


def drawn(net, method, order, condition, refresh=2):
    """Outputs by branch and step. order: step -> the branches that it calls, one after the other."""
    found = {}
    with torch.no_grad(), dr.accelerate(alone(net), method, refresh=refresh) as handle:
        for i, time in enumerate(TIMES):
            for branch in order(i):
                named = {"timestep": torch.tensor([time]), **condition(ord(branch))}
                found[branch, i] = net(STATES[i], **named, return_dict=False)[0]
    return found, handle


ORDERS = {
    "unconditional first": lambda i: "uc",
    "from a step on, before the other": lambda i: "uc" if i >= 3 else "c",
    "from a step on, after the other": lambda i: "cu" if i >= 3 else "c",
    "within an interval": lambda i: "uc" if 2 <= i < 5 else "c",
    "in turn first and last": lambda i: "uc" if i % 2 else "cu",
    "three, one of them from a step on": lambda i: "nuc" if i >= 3 else "cu",
}
NETS = {
    "labels": (dit, of_class, "fora"),
    "pooled": (sd3, of_pooled, "taylor"),
    "tokens": (lambda: dit(num_embeds_ada_norm=200), lambda branch: of_class(branch), "toca"),
    "nested": (sdxl, of_sizes, "deep-cache"),
    "classes": (
        lambda: unet(in_channels=4, out_channels=4, num_class_embeds=200), of_class, "deep-cache",
    ),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(("made", "condition", "method"), NETS.values(), ids=NETS)
def test_a_branch_draws_what_it_draws_alone_whatever_is_called_beside_it(made, condition, method, order):
    net = randomised(made() if made is not dit else dit(num_embeds_ada_norm=200)).eval()
    together, handle = drawn(net, method, order, condition)
    for branch in {branch for branch, _ in together}:
        by_itself, _ = drawn(net, method, lambda i, branch=branch: branch if branch in order(i) else "", condition)
        for place, one in by_itself.items():
            same(together[place], one)
    assert {call.did for call in calls(handle)} > {"full"}  # something was skipped
    assert len({call.branch for call in calls(handle)}) == len({branch for branch, _ in together})


def test_conditions_in_one_buffer_that_is_written_anew_are_told_apart():
    net, buffer = randomised(dit(num_embeds_ada_norm=200)).eval(), torch.tensor([0])

    def written(label):
        buffer.fill_(label)
        return {"class_labels": buffer}

    expected, _ = drawn(net, "fora", lambda i: "uc", of_class)
    for order in (ORDERS["unconditional first"], ORDERS["in turn first and last"]):
        found, _ = drawn(net, "fora", order, written)
        for place, one in expected.items():
            same(found[place], one)


def test_calls_of_one_condition_are_told_apart_by_their_order():
    """As those with a perturbed attention, which nothing that they are given tells from the others."""
    net = randomised(dit(num_embeds_ada_norm=200)).eval()
    alone_first, _ = drawn(net, "fora", lambda i: "c", of_class)
    scale, found = torch.ones(()), {}
    hook = net.transformer_blocks[0].attn1.register_forward_hook(lambda module, given, out: out * scale)
    with torch.no_grad(), dr.accelerate(alone(net), "fora", refresh=2) as handle:
        for i, time in enumerate(TIMES):
            for branch in "cpc":  # the last is a repetition
                scale.fill_(branch == "c")
                found[branch, i] = net(STATES[i], torch.tensor([time]), **of_class(ord("c"))).sample
    hook.remove()
    for place, one in alone_first.items():
        same(found[place], one)
        assert not torch.allclose(found["p", place[1]], one)
    assert [call.branch for call in calls(handle)] == [0, 1, 2] * len(TIMES)


def test_a_branch_that_a_step_left_out_and_one_of_another_condition_begin_with_a_full_call():
    net = randomised(dit(num_embeds_ada_norm=200)).eval()
    _, handle = drawn(net, "fora", lambda i: "uc" if i in (0, 1, 4, 5) else "c", of_class, refresh=100)
    assert [(call.branch, call.step) for call in calls(handle) if call.did == "full"] == [(0, 0), (1, 0), (0, 0)]
    _, handle = drawn(net, "fora", lambda i: "a" if i < 4 else "b", of_class, refresh=100)
    assert [call.did == "full" for call in calls(handle)] == [True, False, False, False] * 2
    (network,) = handle._networks
    assert not network.caches  # and nothing is kept once it is removed
    assert not network.earlier


def test_rounded_times_that_the_scheduler_does_not_have_are_steps_all_the_same():
    """Loops of one's own have them, while the scheduler has the two of a sampling before."""
    net = randomised(dit(num_embeds_ada_norm=200)).eval()
    pipe = alone(net)
    pipe.scheduler.set_timesteps(2)
    with torch.no_grad(), dr.accelerate(pipe, "fora", refresh=2) as handle:
        for i, time in enumerate(TIMES):
            net(STATES[i], torch.tensor([time], dtype=torch.bfloat16), **of_class(0))
    assert steps(handle) == [*range(0, len(TIMES), 2)]
    assert {call.branch for call in calls(handle)} == {0}


def test_no_more_caches_are_held_than_two_steps_have():
    """Where a condition changes at every step every call is full, and what it kept goes."""
    net = randomised(dit(num_embeds_ada_norm=200)).eval()
    handle = dr.accelerate(alone(net), "fora", refresh=2)
    with torch.no_grad():
        for i, time in enumerate(TIMES):
            net(STATES[i], torch.tensor([time]), torch.tensor([i]))
    (network,) = handle._networks
    assert {call.did for call in calls(handle)} == {"full"}
    assert len(network.caches) == len(network.earlier) == 1


@pytest.mark.parametrize(
    ("method", "refresh"), [("polynomial", 3), ("polynomial", FirstBlock(0.1)), ("toca", 3), ("duca", 3)]
)
def test_nothing_is_held_after_the_last_step(method, refresh, monkeypatch):
    held, pipe, draw = [], *of_sd3()
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: held.extend(features(handle)))
    with dr.accelerate(pipe, method, refresh=refresh) as handle:
        own = draw()
        assert held == [0]
        assert torch.equal(draw(), own)


def features(handle):
    """Return for each cache how many contexts and changes it holds."""
    caches = [cache for network in handle._networks for cache in network.caches.values()]
    return [len(cache.past) + (cache.seen is not None) for cache in caches]


def test_conditions_are_equal_by_content():
    digests, x = Digests(), torch.randn(2, 5, 4)
    key = digests.of({"text": x, "more": {"size": [1, 2.0], "none": None}})
    assert (
        key
        == digests.of({"text": x.clone(), "more": {"size": (1, 2), "none": None}})
        == digests.of({"text": x.transpose(1, 2).contiguous().transpose(1, 2), "more": {"size": [1, 2]}})
    )
    hash(key)
    others = [
        x.flip(0), x.flip(2), x.view(2, 4, 5), x.double(), x[:1], x.half(), x + 1e-6, -x, x.roll(1, 1),
        torch.zeros_like(x), torch.randn(2, 5, 4, dtype=torch.complex64), x > 0, x.long(), (x * 9).to(torch.uint8),
        torch.randn(2, 5, 4, dtype=torch.complex128), x.to(torch.bfloat16), torch.tensor(1.0), torch.empty(0),
    ]  # fmt: skip
    assert len({digests.of(other) for other in [x, *others]}) == len(others) + 1
    assert digests.of(x.requires_grad_()) == digests.of(x.detach())


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_to_a_condition_is_seen_and_no_condition_is_kept(inference):
    digests = Digests()
    with torch.inference_mode(inference):
        x = torch.randn(3, 4)
        before, row = digests.of(x), x[1].clone()
        x[1] += 1
        assert digests.of(x) != before
        x[1] = row
        assert digests.of(x) == before
        gone = weakref.ref(x)
        del x
        gc.collect()
    assert gone() is None
    assert not len(digests.seen)


def test_a_condition_that_is_passed_again_is_read_once(monkeypatch):
    from dualrate.pipelines import accelerate

    read, digest = [], accelerate._digest
    monkeypatch.setattr(accelerate, "_digest", lambda x: read.append(x.shape) or digest(x))
    for pipe, draw in (of_sd3(), of_dit(guidance=2.0)):
        read.clear()
        with dr.accelerate(pipe, "fora", refresh=2) as handle:
            draw()
        assert len(calls(handle)) == 4
        assert len(read) == (2 if hasattr(pipe, "tokenizer_2") else 1)
        copy.deepcopy(pipe)


def test_a_batch_that_is_halved_begins_anew_and_counts_as_another_branch():
    """As where guidance ends, of a pipeline that calls with both conditions in a batch."""
    net = randomised(dit(num_embeds_ada_norm=200)).eval()
    both = torch.tensor([1, 2])
    with torch.no_grad(), dr.accelerate(alone(net), "fora", refresh=100) as handle:
        for i, time in enumerate(TIMES):
            rows = both if i < 4 else both[1:]
            out = net(STATES[i].expand(len(rows), -1, -1, -1), torch.tensor([time]).expand(len(rows)), rows).sample
            assert out.shape[0] == len(rows)
    assert steps(handle) == [0]
    assert [call.step for call in calls(handle) if call.branch == 1 and call.did == "full"] == [0]


@pytest.mark.parametrize("policy", [FirstBlock(0.1), Verified(0.1)])
def test_a_handle_says_that_a_policy_decides_for_a_batch(policy):
    pipe, _ = of_dit()
    with dr.accelerate(pipe, "taylor", refresh=policy) as handle:
        assert "decides for a batch as one, so an image depends on the others in it" in str(handle)
    with dr.accelerate(pipe, "taylor", refresh=3) as handle:
        assert "batch" not in str(handle)


def test_a_sampling_that_a_callback_ended_leaves_nothing_to_the_next():
    """As diffusers has it: `_interrupt` ends the steps."""
    pipe, draw = of_sd3()
    assert isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)

    def stop(pipe, step, time, given):
        pipe._interrupt = step == 1
        return {}

    with dr.accelerate(pipe, "taylor", refresh=3) as handle:
        first = draw()
        draw(seed=1, callback_on_step_end=stop)
        same(draw(), first)
    assert [len(sampling) for sampling in handle.samplings["transformer"]] == [4, 2, 4]


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(
    ("place", "way"),
    [
        ("model", r"pass diffusers\.DiffusionPipeline\.from_pretrained\('.*model'\)"),
        ("some/name-on-a-hub", r"pass diffusers\.DiffusionPipeline\.from_pretrained\('.*some/name-on-a-hub'\)"),
        ("model/unet", r"pass the network in it, diffusers\.AutoModel\.from_pretrained\('.*unet'\), and scheduler="),
        ("pipeline", r"dualrate exported this; DualRatePipeline\.from_pretrained\('.*pipeline'\) of \S+ draws from it"),
        ("single", r"a model of dualrate, which dr\.sample\(dr\.load\('.*single'\), 16\) draws from"),
    ],
)
def test_a_name_in_place_of_a_pipeline_is_refused_with_the_way_to_load_it(place, way, kind):
    folder = kind(Path(__file__).parents[1] / "golden" / place)
    with pytest.raises(TypeError, match=f"^pipe is a pipeline of diffusers, got '.*': .*{way}$"):
        dr.accelerate(folder)
