"""Accelerated networks and threads: a cache is of one sampling, so two of them never share one unseen."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pipelines.models import diffusers
from pipelines.tiny_pipelines import Pixels, of_dit, of_sd3

import dualrate as dr


def drawing(net, pause=lambda: None, steps=12):
    """Return a pipeline of its own around a network, and what draws by it, with a pause after every step."""
    vae = Pixels()
    pipe = diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    step = pipe.scheduler.step

    def paused(*given, **named):
        pause()
        return step(*given, **named)

    pipe.scheduler.step = paused

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        pipe([1, 2], 1.0, generator=generator, num_inference_steps=steps, output_type="pt")
        return vae.latents

    return pipe, draw


def test_threads_with_copies_of_a_network_draw_what_they_draw_one_after_another():
    net = of_dit()[0].transformer
    meeting = threading.Barrier(2, timeout=60)
    (one, first), (other, second) = (drawing(copy.copy(net), lambda: meeting.wait()) for _ in range(2))
    assert one.transformer.proj_out_2.weight is other.transformer.proj_out_2.weight
    with dr.accelerate(one, refresh=3), dr.accelerate(other, refresh=2), ThreadPoolExecutor(2) as pool:
        together = [future.result() for future in (pool.submit(first, 0), pool.submit(second, 1))]
    for seed, refresh in ((0, 3), (1, 2)):
        pipe, draw = drawing(net)
        with dr.accelerate(pipe, refresh=refresh):
            torch.testing.assert_close(together[seed], draw(seed), rtol=0, atol=0)


def pausing(call, reached, going_on):
    """Return what says that so many calls were made before, and then waits."""
    count = iter(range(100))

    def pause():
        if next(count) == call:
            reached.set()
            assert going_on.wait(60)

    return pause


def test_a_sampling_that_another_thread_interrupts_ends_in_an_error_and_the_other_is_right():
    pipe, draw = drawing(of_dit()[0].transformer)
    with dr.accelerate(pipe, refresh=3):
        right = draw(1)
    here, there = threading.Event(), threading.Event()
    _, interrupted = drawing(pipe.transformer, pausing(4, here, there))
    with dr.accelerate(pipe, refresh=3) as handle, ThreadPoolExecutor(1) as pool:
        future = pool.submit(interrupted, 0)
        assert here.wait(60)
        torch.testing.assert_close(draw(1), right, rtol=0, atol=0)
        there.set()
        with pytest.raises(RuntimeError, match=r"another thread began a sampling with this transformer.*copy.copy"):
            future.result()
        torch.testing.assert_close(pool.submit(draw, 1).result(), right, rtol=0, atol=0)  # the same thread, anew
        torch.testing.assert_close(draw(1), right, rtol=0, atol=0)
    assert [len(calls) for calls in handle.samplings["transformer"]] == [5, 12, 12, 12]


def test_a_sampling_is_interrupted_by_one_that_fails_too():
    reached, going_on = threading.Event(), threading.Event()
    pipe, interrupted = drawing(of_dit()[0].transformer, pausing(4, reached, going_on))
    _, failing = drawing(pipe.transformer)
    block = pipe.transformer.transformer_blocks[-1]
    with dr.accelerate(pipe, refresh=3), ThreadPoolExecutor(1) as pool:
        future = pool.submit(interrupted, 0)
        assert reached.wait(60)
        hook = block.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            failing(1)
        hook.remove()
        going_on.set()
        with pytest.raises(RuntimeError, match="another thread began"):
            future.result()


def test_a_sampling_that_was_given_up_is_no_obstacle_to_the_next_of_its_thread():
    """Draw as a server, where a callback ends what a client left, and another thread draws before the next."""
    pipe, draw = of_sd3()

    def stop(pipe, step, time, given):
        pipe._interrupt = step == 0
        return {}

    later = {"num_inference_steps": 3, "sigmas": [0.7, 0.4, 0.2]}
    with dr.accelerate(pipe, "fora", refresh=2), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        right = draw(**later)
        one.submit(draw, callback_on_step_end=stop).result()
        other.submit(draw).result()
        torch.testing.assert_close(one.submit(draw, **later).result(), right, rtol=0, atol=0)


def test_an_error_in_a_thread_leaves_the_sampling_of_another_alone():
    pipe, draw = drawing(of_dit()[0].transformer)
    with dr.accelerate(pipe, refresh=3):
        right = draw(1)
    started, ended = threading.Event(), threading.Event()
    other, drawn = drawing(pipe.transformer, pausing(4, started, ended))
    first, going_on = threading.Event(), threading.Event()
    _, interrupted = drawing(pipe.transformer, pausing(0, first, going_on))
    with dr.accelerate(other, refresh=3), ThreadPoolExecutor(2) as pool:
        failing = pool.submit(interrupted, 0)
        assert first.wait(60)
        future = pool.submit(drawn, 1)
        assert started.wait(60)
        going_on.set()
        with pytest.raises(RuntimeError, match="another thread began"):
            failing.result()
        ended.set()
        torch.testing.assert_close(future.result(), right, rtol=0, atol=0)
