"""The benchmarks' scripts: what they time is what they say, on networks of a few channels."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dualrate as dr
from dualrate.recipes.fashion_mnist import FIT

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import child, ratios, utilisation, workloads  # noqa: E402
from benchmarks.interleave import Seconds, Spread, interleaved, quotient  # noqa: E402

CPU = torch.device("cpu")


def network(channels: int) -> dr.UViTConfig:
    levels = (dr.Level("conv", channels, 1), dr.Level("transformer", channels, 1))
    return dr.UViTConfig(8, 1, levels, num_classes=3, embedding=16, head_dim=8)


HEAVY = dr.OneNetwork(network(16))
DUAL = dr.TwoNetworks(network(16), network(8))


def model(networks: dr.OneNetwork | dr.TwoNetworks) -> dr.Model:
    pair = isinstance(networks, dr.TwoNetworks)
    method = dr.DenoisingConfig(dr.TimeSampler(heavy=(2, 4))) if pair else dr.DenoisingConfig()
    small = dr.Experiment("small", networks, method, replace(FIT, batch_size=4))
    built, denoiser = small.build()
    return dr.Model("small", small, built, denoiser, 0, "")


def test_calls_take_turns_after_a_round_to_warm_up() -> None:
    order: list[str] = []
    rounds = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, CPU, seconds=0, least=3)
    assert order == list("abababab")
    assert {name: len(durations) for name, durations in rounds.items()} == {"a": 3, "b": 3}


def test_quotients_are_taken_within_a_round() -> None:
    slow_machine = [Seconds(10, 1), Seconds(2, 1), Seconds(2, 1)]
    rounds = {"a": slow_machine, "b": [Seconds(2 * each.wall, each.cpu) for each in slow_machine]}
    assert quotient(rounds, "a", "b", 4) == {"wall": Spread(2, 2, 2), "cpu": Spread(4, 4, 4)}


@pytest.mark.parametrize("networks", [HEAVY, DUAL])
def test_the_replayed_calls_are_the_samplers(networks: dr.OneNetwork | dr.TwoNetworks) -> None:
    small, plan = model(networks), dr.StepPlan.uniform(4, 2)
    calls = []
    for net in small.networks.values():
        net.register_forward_hook(lambda net, inputs, output: calls.append((net, output)))
    work = workloads.sampling(small, plan, 3, bfloat16=False)
    replay = workloads.network_calls(small, work, CPU, bfloat16=False)
    made = list(calls)
    calls.clear()
    replay()
    assert len(made) == 4  # dual: 2 heavy calls whose x_hat is used at once, 2 light ones
    assert [net for net, _ in calls] == [net for net, _ in made]
    torch.testing.assert_close([output for _, output in calls], [output for _, output in made], rtol=0, atol=0)


def test_efficiency_is_the_speed_up_over_the_ratio_of_multiply_adds() -> None:
    found = ratios.efficiency(model(HEAVY), model(DUAL), 4, 2, 2, CPU, False, seconds=0)
    assert found["macs_ratio"] > 1
    for clock in ("wall", "cpu"):
        speedup, efficiency = found["speedup"][clock].median, found["efficiency"][clock].median
        assert efficiency == pytest.approx(speedup / found["macs_ratio"])


def test_training_iterations_change_the_networks() -> None:
    small = model(DUAL).experiment
    work = workloads.training(small, CPU, bfloat16=False)
    work()
    assert ratios.training(model(HEAVY).experiment, small, CPU, False, seconds=0)["cpu"].median > 0


def test_a_child_process_tells_its_memory_and_time() -> None:
    found = child.run(
        str(ROOT / "weights/fashion-mnist-light"), "sample", "--steps", "2", "--batch", "2", "--repeats", "1"
    )
    assert 0 < found["start"] < found["peak"] < 2**34
    assert found["user"] > 0


def test_a_failed_child_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: it finds this torch before the one that takes seconds."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"exited with 1:[\s\S]*no torch here"):
        child.run("no-such-run", "sample")


def test_flops_of_training_are_three_times_those_of_its_calls() -> None:
    layer = torch.nn.Linear(8, 8)
    x = torch.ones(4, 8, requires_grad=True)
    assert utilisation.flops_of(lambda: layer(x).sum().backward()) == 3 * 2 * 4 * 8 * 8


def test_a_gpu_s_peak_is_that_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA GeForce RTX 4090": 165e12, "NVIDIA H100 PCIe": None}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert utilisation.known_peak(torch.device("cuda")) == peak
    assert utilisation.known_peak(CPU) is None


def test_beside_a_frozen_encoder_the_light_network_trains_alone() -> None:
    small = model(DUAL).experiment
    method = workloads.beside_frozen_encoder(small).method
    assert isinstance(method, dr.DenoisingConfig)
    assert method.freeze_encoder
    assert replace(method, freeze_encoder=False, encoder_from=None) == small.method


def test_a_heavy_and_a_light_call_are_what_is_timed() -> None:
    small = model(DUAL)
    cost = small.call_cost
    for batch in (1, 3):
        calls = workloads.a_call_each(small, batch, bfloat16=False)
        found = {name: utilisation.flops_of(call) for name, call in calls.items()}
        assert found == {"heavy": 2 * batch * cost.heavy, "light": 2 * batch * cost.light}


def test_the_weights_of_the_ratios_are_released():
    assert all((ROOT / "weights" / f"fashion-mnist-{name}").is_dir() for name in ratios.RELEASED.values())
