"""The contest of forecasts: a search that goes on where it was, and trainings by its choice, for equal time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dualrate as dr
from dualrate.forecasts import recipe as forecast
from dualrate.forecasts.metadata import Coordinate, Description, Metadata
from dualrate.forecasts.simulations import KuramotoSivashinsky
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.uvit import UViTConfig
from dualrate.sampling.cost import macs_of
from dualrate.system.device import peak_memory
from studies import contest, systems
from studies.common import RESULTS, kept_in
from studies.contest import Contest, Setting

SIMULATION = KuramotoSivashinsky(points=16, burn_in=1.0)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contest:
    tier = replace(forecast.TIERS["tiny"], channels=(8, 8), blocks=(1, 1), embedding=8)
    monkeypatch.setitem(forecast.TIERS, "tiny", tier)
    ks = systems.SYSTEMS["kuramoto-sivashinsky"]
    system = replace(ks, simulation=SIMULATION, trajectories=10, frames=16, starts=4, members=2)
    monkeypatch.setitem(systems.SYSTEMS, "tiny", system)
    values = {"BATCHES": (4, 2), "RATES": (2e-3, 1e-3), "STARTS": 2, "UPDATES": 1, "ROUNDS": 2, "CHOSEN_BY": 2}
    for name, value in values.items():
        monkeypatch.setattr(contest, name, value)
    for method in contest.BY_STEPS:
        monkeypatch.setitem(contest.STEPS, method, (1, 2))
    system.simulate(tmp_path)
    return Contest("tiny", tmp_path)


def test_a_search_takes_the_best_of_each_choice_and_goes_on_where_it_was(tiny: Contest) -> None:
    tiny.search("dual", "diffusion", seconds=0.02)
    rows = tiny.rows_with(kind="search")
    cells = {(row["batch"], row["rate"]) for row in rows}
    assert len(cells) == len(rows)
    chosen = min(rows, key=contest.mean)
    setting = tiny.best("dual", "diffusion")
    assert setting == Setting(chosen["batch"], chosen["rate"], 10_000)
    assert {
        (other.batch, other.rate) for other in contest.neighbours(setting, contest.BATCHES)
    } <= cells  # none of them is better
    assert {(4, 2e-3), (2, 2e-3)} < cells
    with pytest.raises(ValueError, match="search them first"):
        tiny.best("single", "crps")
    before = (tiny.out / "rows.jsonl").read_text()
    tiny.search("dual", "diffusion", seconds=0.02)
    assert (tiny.out / "rows.jsonl").read_text() == before


def test_equal_time_is_updates_of_the_speed_that_was_measured(tiny: Contest) -> None:
    for network, ms in {"single": 1.0, "broad": 0.5}.items():
        contest.add_rows(tiny.out, [{"kind": "speed", "network": network, "method": "diffusion", "batch": 4, "ms": ms}])
        tiny.train("final", network, "diffusion", Setting(4), 0.003, 0)
    rows = {network: tiny.rows_with(kind="final", network=network) for network in ("single", "broad")}
    assert {network: [(row["updates"], row["steps"]) for row in of] for network, of in rows.items()} == {
        "single": [(3, 1), (3, 2)], "broad": [(6, 1), (6, 2)],
    }  # fmt: skip
    assert len(rows["single"][0]["crps"]) == 4  # starts
    one, two = rows["single"]
    assert two["macs"]["16"] == pytest.approx(2 * one["macs"]["16"])
    assert "| final | broad | diffusion | 4 |" in tiny.table()


@pytest.mark.parametrize("name", ["kuramoto-sivashinsky", "kolmogorov"])
def test_networks_are_those_of_the_kept_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are of the networks that the study would train today, whatever the recipe's defaults have become."""
    system = replace(systems.SYSTEMS[name], trajectories=10, frames=16)
    monkeypatch.setitem(systems.SYSTEMS, name, system)
    system.simulate(tmp_path)
    whole = Contest(name, tmp_path)
    rows = kept_in(RESULTS / f"contest-{name}.json.xz")
    for network in ("single", "dual"):
        dr.train(whole.experiment(network, "diffusion", Setting(1), 1, 0), tmp_path / network)
        drawer = dr.Choice(steps=4).drawer(dr.load(str(tmp_path / network)), members=1, precision="float32")
        (cost,) = {
            row["macs"]["1"]
            for row in rows
            if (row["kind"], row["network"], row.get("method"), row.get("steps")) == ("final", network, "diffusion", 4)
        }
        assert drawer.expected_cost.macs / 1e6 == pytest.approx(cost, rel=0.01)


def test_broad_is_about_half_of_the_large_network() -> None:
    large = forecast.heavy_network((3, 1, 64), forecast.TIERS["tiny"], periodic=True)

    def macs(config: UViTConfig) -> int:
        network = config.network()
        return macs_of(lambda: network(torch.zeros(1, *config.shape), torch.zeros(1), None))

    assert 0.4 < macs(contest.broad(large)) / macs(large) < 0.6


def test_single_networks_score_together_by_ml_em(tiny: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SAMPLERS": ("ancestral",), "CALLS": (2, 3), "SHARES": (1.0, 0.5)}.items():
        monkeypatch.setattr(contest, name, value)
    for network in ("medium", "single"):
        tiny.train("final", network, "diffusion", Setting(4), 0.01, 0)
    tiny.multilevel(0.01, 0)
    rows = tiny.rows_with(kind="levels")
    searched, final = ([row for row in rows if row["between"] == between] for between in (2, 0))
    assert len(searched) == 4
    assert [len(row["crps"]) for row in (searched[0], final[0])] == [2, 4]
    assert {tuple(row["probabilities"]) for row in final} <= {(1.0,), (0.5,)}
    medium, single = (
        tiny.rows_with(kind="final", network=network, steps=1)[0]["macs"]["1"] for network in contest.LEVELS[0]
    )
    whole = next(row for row in searched if (row["steps"], row["probabilities"]) == (2, [1.0]))
    assert whole["macs"]["1"] == pytest.approx(2 * (medium + single), rel=1e-6)
    before = (tiny.out / "rows.jsonl").read_text()
    tiny.multilevel(0.01, 0)
    assert (tiny.out / "rows.jsonl").read_text() == before
    for network in ("medium", "single"):
        tiny.train("final", network, "diffusion", Setting(4), 0.01, 1)
    tiny.multilevel(0.01, 1)
    second = tiny.rows_with(kind="levels", seed=1)
    assert [row["probabilities"] for row in second] == [row["probabilities"] for row in final]
    assert {row["between"] for row in second} == {0}


def test_rows_without_a_score_of_today_are_scored_again(tiny: Contest) -> None:
    tiny.train("final", "single", "diffusion", Setting(4), 0.01, 0)
    rows = tiny.rows
    old = [{key: value for key, value in row.items() if key != "energy"} for row in rows]
    contest.write_rows(tiny.out, old)
    tiny.rescore()
    assert [row.get("energy") for row in tiny.rows] == [row.get("energy") for row in rows]


@pytest.mark.parametrize(("method", "steps"), [("consistency-2", 2), ("consistency-1", 1), ("moments-2", 2)])
def test_students_of_a_final_training_have_the_steps_of_their_name(tiny: Contest, method, steps) -> None:
    with pytest.raises(ValueError, match="train single:diffusion, seed 0, first"):
        tiny.train("final", "single", method, Setting(4), 0.01, 0)
    tiny.train("final", "single", "diffusion", Setting(4), 0.01, 0)
    tiny.train("final", "single", method, Setting(4), 0.01, 0)
    (row,) = tiny.rows_with(kind="final", method=method)
    assert row["steps"] == steps


def test_a_score_of_four_draws_trains_with_four(tiny: Contest) -> None:
    experiments = {method: tiny.experiment("single", method, Setting(4), 2, 0) for method in contest.DRAWS}
    assert {method: experiment.method.draws for method, experiment in experiments.items()} == contest.DRAWS


def test_every_plan_of_a_training_is_timed(tiny: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIMED", "ROUNDS_TIMED"):
        monkeypatch.setattr(contest, name, 1)
    monkeypatch.setattr(contest, "memory_of", lambda folder, steps, members: 100 * members)
    monkeypatch.setitem(systems.SYSTEMS, "tiny", replace(tiny.system, shared=(1, 3)))
    for method in ("diffusion", "crps"):
        tiny.train("final", "dual", method, Setting(4), 0.01, 0)
    tiny.train("final", "single", "diffusion", Setting(4), 0.01, 0)
    contest.add_rows(
        tiny.out, [row | {"method": "consistency-1"} for row in tiny.rows_with(kind="final", network="single")[:1]]
    )
    with pytest.raises(ValueError, match="run times first"):
        tiny.memory()
    (tiny.out / "stand-ins" / "single-diffusion").mkdir(parents=True)  # of a training that was killed
    tiny.times()
    stand_ins = {folder.name for folder in (tiny.out / "stand-ins").iterdir()}
    assert stand_ins == {"single-diffusion", "single-consistency-1"}
    times = {(row["method"], row["steps"]): row["ms"]["1"] for row in tiny.rows_with(kind="time")}
    assert set(times) == {("diffusion", 1), ("diffusion", 2), ("crps", 1), ("consistency-1", 1)}
    assert min(times.values()) > 0
    assert not any("mib" in row for row in tiny.rows)
    tiny.memory()
    tiny.times()
    assert all(row["mib"] == {"1": 100, "3": 300} for row in tiny.rows_with(kind="time"))


def test_memory_is_what_drawing_adds_to_a_process_of_its_own(tiny: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PROCESSES", 1)
    tiny.train("final", "single", "crps", Setting(4), 0.01, 0)
    (row,) = tiny.rows_with(kind="final")
    few, many = (contest.memory_of(tiny.folder(row), None, members) for members in (1, 20_000))
    assert 0 <= few < 100  # a process with torch and a model has more
    fields = 20_000 * 3 * 16 * 4 / 2**20
    assert few + fields < many < few + 100 * fields


def test_peak_memory_begins_anew() -> None:
    ballast = np.ones(2**26)  # half a GiB
    size = ballast.nbytes
    most = peak_memory(torch.device("cpu")) or 0
    del ballast
    assert contest.forget_peak() < most - size / 2


def test_a_sphere_is_simulated_with_its_places_and_contested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another system with axes: flow on a sphere wants torch-harmonics."""
    tier = replace(forecast.TIERS["mini"], channels=(8, 8), blocks=(1, 1), embedding=8)
    monkeypatch.setitem(forecast.TIERS, "mini", tier)

    class Globe(KuramotoSivashinsky):
        axes = "latitude (falling)", "longitude (rising)"
        variables = ("vorticity",)

        def simulate(self, trajectories, frames, seed, progress=None):
            return np.random.default_rng(seed).normal(size=(trajectories, frames, 1, 8, 16)).astype(np.float32)

        @property
        def metadata(self) -> Metadata:
            rows = Coordinate("latitude", (0,), tuple(np.linspace(78.75, -78.75, 8)), Description("degrees_north"))
            columns = Coordinate("longitude", (1,), tuple(np.arange(16) * 22.5), Description("degrees_east"))
            return Metadata((Description("1/s"),), (rows, columns), "hours")

    sphere = systems.SYSTEMS["sphere"]
    assert (sphere.shared, sphere.windows.lead, sphere.windows.size) == ((1, 6, 16, 50), 4, "mini")
    small = replace(sphere, simulation=Globe(), trajectories=10, frames=16, starts=4, members=2)
    monkeypatch.setitem(systems.SYSTEMS, "sphere", small)
    monkeypatch.setattr(contest, "UPDATES", 1)
    monkeypatch.setattr(contest, "ROUNDS", 2)
    small.simulate(tmp_path)
    Contest("sphere", tmp_path).train("final", "dual", "crps", Setting(4), 0.01, 0)
    (row,) = Contest("sphere", tmp_path).rows_with(kind="final")
    assert {*row["macs"]} == {"1", "6", "16", "50"}
    geometry = dr.load(Contest("sphere", tmp_path).folder(row)).experiment.condition.geometry
    assert geometry.spherical
    assert geometry.poles


def test_a_frozen_encoder_is_the_trained_large_network_and_stays_so(tiny: Contest) -> None:
    with pytest.raises(ValueError, match="train single:diffusion, seed 0, first"):
        tiny.train("final", "dual", "frozen", Setting(4), 0.01, 0)
    tiny.train("final", "single", "diffusion", Setting(4), 0.01, 0)
    tiny.train("final", "dual", "frozen", Setting(4), 0.01, 0)
    model = dr.load(str(tiny.folder(tiny.rows_with(kind="final", method="frozen")[0])))
    teacher = dr.load(str(tiny.teacher("single", 0)))
    encoder = model.experiment.networks.backbone(model.networks, "encoder").state_dict()
    weights = teacher.networks["model"].state_dict()
    assert encoder
    assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.items())


def test_noise_levels_of_a_window_are_those_of_the_name(tiny: Contest) -> None:
    for method, levels in (("diffusion", 4), ("levels-2", 2), ("levels-8", 8)):
        config = tiny.untimed("dual", method, 0).method
        assert isinstance(config, DenoisingConfig)
        assert config.times.draws == levels


def test_averages_are_of_the_best_setting_and_shorter_than_a_20th_of_the_windows(tiny: Contest) -> None:
    contest.add_rows(tiny.out, [{"kind": "speed", "network": "dual", "method": "diffusion", "batch": 4, "ms": 1.0}])
    tiny.train("search", "dual", "diffusion", Setting(4, 1e-3), 0.04, 0)
    tiny.averages("dual", "diffusion", 0.08)  # 80 updates of 4 windows
    rows = tiny.rows_with(kind="average", batch=4, rate=1e-3)
    assert [row["halflife"] for row in rows] == [8, 4, 2]
    assert tiny.best("dual", "diffusion") == Setting(4, 1e-3)
