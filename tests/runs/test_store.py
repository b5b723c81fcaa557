"""Runs: loading, saying what is loaded, starting an encoder, what was logged."""

from copy import copy
from dataclasses import replace

import pytest
import torch
from runs.made import NET, ONE, TWO, saved
from torch import nn
from trouble import unreadable

from dualrate.diffusion.context import Cond, Context
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.experiment.teaching import fill, start_from
from dualrate.runs.release import export
from dualrate.runs.store import load, note_start, read_logged, write_experiment
from dualrate.system.files import read_records


def test_loads_the_averaged_weights(tmp_path):
    model = load(saved(ONE, tmp_path / "run", ema=0.25))
    assert all((p == 0.25).all() for p in model.networks.parameters())
    assert model.iteration == 7
    assert not any(p.requires_grad for p in model.networks.parameters())


def test_a_model_of_another_denoiser_is_taken_for_no_other(tmp_path):
    """Its hash names what was drawn, in samples and scores that are kept."""
    model = load(saved(ONE, tmp_path / "run"))
    called = [model, *(replace(model, denoiser=copy(model.denoiser)) for _ in range(2))]
    assert len({each.identity for each in called}) == 3
    assert replace(called[1], iteration=8).identity == called[1].identity
    same = (
        replace(model, denoiser=model.denoiser),
        model.ready(bfloat16=True),
        model.with_experiment(model.experiment),
    )
    anew = model.with_experiment(replace(ONE, networks=OneNetwork(NET.with_dropout(0.1))))
    assert {each.identity for each in (*same, anew)} == {model.identity}
    assert model.with_denoiser("fora").identity == model.with_denoiser("fora").identity != model.identity


def test_weights_of_another_network_are_refused(tmp_path):
    run = saved(ONE, tmp_path / "run")
    write_experiment(run, replace(ONE, networks=OneNetwork(replace(NET, embedding=32))))
    with pytest.raises(ValueError, match=r"do not fit its experiment.json: .*size mismatch"):
        load(run)


def test_how_weights_differ_is_said_with_the_first_of_each():
    own = nn.Linear(2, 3).state_dict()
    with pytest.raises(ValueError, match=r"^RUN: .*size mismatch for weight: .*\[3, 5\].*\[3, 2\]"):
        fill(nn.Linear(2, 3), nn.Linear(5, 3).state_dict(), "RUN")
    with pytest.raises(ValueError, match=r'^RUN: .*Missing .*"bias".*Unexpected .*"more"'):
        fill(nn.Linear(2, 3), {"weight": own["weight"], "more": own["bias"]}, "RUN")
    filled = nn.Linear(2, 3)
    fill(filled, own, "RUN")
    assert torch.equal(filled.weight, own["weight"])


def test_no_run_and_no_checkpoint_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"is no run: it has no experiment\.json"):
        load(tmp_path)
    with pytest.raises(ValueError, match="nowhere is no run: there is no /"):
        load("nowhere")
    write_experiment(tmp_path, ONE)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        load(tmp_path)


def started(networks, note=None, **runs):
    return start_from(TWO.networks, networks, {role: load(run, note=note) for role, run in runs.items()})


def test_an_encoder_starts_from_a_single_rate_run(tmp_path):
    run = saved(ONE, tmp_path / "run")
    networks, _ = TWO.build()
    started(networks, encoder=run)
    for name, tensor in load(run).networks["model"].state_dict().items():
        torch.testing.assert_close(networks["encoder"].get_submodule("net").state_dict()[name], tensor)
    with pytest.raises(ValueError, match="takes a single-rate one"):
        started(networks, encoder=saved(TWO, tmp_path / "two"))
    with pytest.raises(ValueError, match="is no run"):
        started(networks, encoder=tmp_path / "nowhere")
    other = replace(TWO, networks=TwoNetworks(replace(NET, embedding=32), NET))
    with pytest.raises(ValueError, match="is not this experiment's encoder"):
        started(other.build()[0], encoder=run)


def test_a_start_whose_network_has_other_edges_is_refused_though_its_weights_fit(tmp_path):
    run = saved(replace(ONE, networks=OneNetwork(replace(NET, periodic=True))), tmp_path / "run")
    networks, _ = TWO.build()
    networks["encoder"].get_submodule("net").load_state_dict(load(run).networks["model"].state_dict())  # they do
    with pytest.raises(ValueError, match="periodic is True, not False"):
        started(networks, encoder=run)


def test_a_light_network_starts_from_a_single_rate_run_with_the_context_of_no_effect(tmp_path):
    run = saved(ONE, tmp_path / "run")
    networks, model = TWO.build()
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    told = started(networks, light=run)
    assert told.keys() == {"light"}
    assert str(run) in told["light"]
    alone = load(run).denoiser
    z, t, cond = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7]), Cond(torch.tensor([0, 1]))
    with torch.no_grad():
        context = model.encode(torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.9]), cond).aged()
        torch.testing.assert_close(model.denoise(z, t, context, cond), alone.denoise(z, t, Context(), cond))
    last = list(networks["encoder"].get_submodule("projections").parameters())
    gradients = torch.autograd.grad(model.denoise(z, t, model.encode(z, t, cond).aged(), cond).sum(), last)
    assert all(gradient.abs().max() > 0 for gradient in gradients)  # it can learn to use it


def test_an_encoder_without_a_head_starts_from_a_run_with_one(tmp_path):
    run = saved(ONE, tmp_path / "run")
    networks, _ = replace(TWO, networks=TwoNetworks(replace(NET, head=False), NET)).build()
    started(networks, encoder=run)
    stem = load(run).networks.get_submodule("model.stem").state_dict()
    torch.testing.assert_close(networks.get_submodule("encoder.net.stem").state_dict(), stem)


def test_networks_are_drawn_from_the_seed_alone():
    torch.manual_seed(1)
    first = ONE.build()[0].state_dict()
    torch.manual_seed(2)
    second = ONE.build()[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


# Which weights are read


def told(path) -> list[str]:
    """Return what a command says that reads these weights."""
    notes: list[str] = []
    load(path, note=notes.append)
    return notes


def damage(run, iteration: int, name: str = "model.safetensors"):
    file = run / "checkpoints" / f"step-{iteration:08d}" / name
    file.write_bytes(file.read_bytes()[:-1])
    return file


def test_a_reader_says_which_iteration_it_reads(tmp_path):
    run = saved(ONE, tmp_path / "run", 3, 7)
    export(run, tmp_path / "out")
    assert told(run) == [f"reading {run} at iteration 7"]
    assert told(tmp_path / "out") == [f"reading {tmp_path / 'out'} at iteration 7"]
    longer = replace(ONE, fit=replace(ONE.fit, iterations=12_000))
    early = saved(longer, tmp_path / "early", 65)
    assert told(early) == [f"this run stopped at iteration 65 of 12,000; reading {early} at iteration 65"]


def test_a_reader_that_falls_back_says_so_first_and_why(tmp_path):
    run = saved(ONE, tmp_path / "run", 3, 7, 9)
    files = [damage(run, 9), damage(run, 7, "state.json")]
    why = "its content is not what the manifest says; iteration 3 is read, the newest that is intact"
    assert told(run) == [*(f"warning: {file}: {why}" for file in files), f"reading {run} at iteration 3"]
    with pytest.warns(UserWarning, match="iteration 3 is read") as caught:
        assert load(run).iteration == 3
    assert [one.filename for one in caught] == [__file__] * 2
    notes: list[str] = []
    started(TWO.build()[0], note=notes.append, encoder=run, light=run)
    assert notes == 2 * told(run)


def test_without_trouble_the_library_is_silent(tmp_path, recwarn):
    run = saved(ONE, tmp_path / "run", 3, 7)
    export(run, tmp_path / "out")
    load(run)
    load(tmp_path / "out")
    assert not [str(one.message) for one in recwarn if one.category is UserWarning]


def test_if_no_checkpoint_is_intact_the_newest_s_damage_is_named(tmp_path):
    run = saved(ONE, tmp_path / "run", 3, 7)
    damage(run, 3)
    file = damage(run, 7)
    with pytest.raises(OSError, match=rf"none is intact; restore one.* \({file}: its content"):
        load(run)


def test_a_checkpoint_that_cannot_be_read_is_not_passed_over(tmp_path):
    run = saved(ONE, tmp_path / "run", 3, 7)
    file = run / "checkpoints" / "step-00000007" / "model.safetensors"
    with unreadable(file, tmp_path), pytest.raises(PermissionError, match=str(file)):
        load(run, note=lambda text: pytest.fail(text))


# What a run has logged


def test_a_log_that_a_kill_cut_off_is_read_to_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"images": 8, "model/loss": 0.5}\n{"images": 16, "model/lo')
    assert read_logged(tmp_path, "/loss") == [(8, 0.5)]
    assert read_logged(tmp_path / "nowhere", "/loss") == []


@pytest.mark.parametrize(
    "line",
    [
        "garbage", "[1]", "{}", '{"model/loss": 0.5}', '{"images": "8", "model/loss": 0.5}', "\0\0",
        '{"images": 8, "model/loss": "0.5"}', '{"images": null, "model/loss": 1}', '{"images": true, "model/loss": 1}',
        f'{{"images": 1{400 * "0"}, "model/loss": 1}}', f'{{"images": 1, "model/loss": 1{400 * "0"}}}', "[" * 100_000,
        '{"images": 1e400, "model/loss": 1}',
    ],
)  # fmt: skip
def test_any_other_line_that_is_none_is_named(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"images": 8, "model/loss": 0.5}\n' + line + '\n{"images": 16, "model/loss": 0.4}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 .*; remove that line"):
        read_logged(tmp_path, "/loss")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400"])
def test_values_that_are_not_finite_are_left_out(tmp_path, value):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"images": 8, "model/loss": {value}}}\n{{"images": 16, "lr": 1}}\n')
    assert read_logged(tmp_path, "/loss") == []


def test_a_start_after_a_kill_is_on_a_line_of_its_own(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"command": "first"}\n{"comm')
    note_start(tmp_path, "second")
    assert [start["command"] for _, start in read_records(tmp_path / "history.jsonl")] == ["first", "second"]
