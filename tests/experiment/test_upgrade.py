"""Experiments as earlier versions wrote them are read as today's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dualrate as dr
from dualrate.config.serial import from_plain, to_plain
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneConditional
from dualrate.experiment.upgrade import RETIRED, upgraded
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.rolling import RollingConfig
from dualrate.forecasts.rolling_process import Rolling

NET = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)
PAIR = dr.Experiment("run", dr.TwoNetworks(NET, NET), dr.DenoisingConfig(dr.TimeSampler()), dr.FitConfig(9))


def test_released_weights_are_read() -> None:
    for file in sorted((Path(__file__).parents[2] / "weights").glob("*/experiment.json")):
        shape = (1, 28, 28) if file.parent.name.startswith("fashion") else (3, 1, 64)
        assert from_plain(dr.Experiment, upgraded(json.loads(file.read_text()))).shape == shape, file


def with_fields(plain: Any, fields: dict[str, dict[str, Any]]) -> Any:
    """With these fields in every object of the class of that name."""
    if isinstance(plain, dict):
        inner = {name: with_fields(value, fields) for name, value in plain.items()}
        return inner | fields.get(str(plain.get("type")), {})
    return [with_fields(item, fields) for item in plain] if isinstance(plain, list) else plain


def test_a_retired_field_is_dropped_where_it_holds_what_now_applies_and_refused_otherwise() -> None:
    today = json.loads(json.dumps(to_plain(PAIR)))
    before = with_fields(today, RETIRED)
    assert before != today
    assert upgraded(before) == today
    for kind, fields in RETIRED.items():
        for field in fields:
            other = with_fields(today, {kind: {field: "another"}})
            if other == today:  # no such object in this experiment
                continue
            with pytest.raises(ValueError, match=f"has no field '{field}'"):
                from_plain(dr.Experiment, upgraded(other))


def test_networks_with_the_usual_context_are_read_and_others_are_refused() -> None:
    plain = to_plain(PAIR)
    usual = {"type": "ContextConfig", "levels": None, "width": None}
    light = plain["networks"]["light"] | {"resample_kernel": 1}
    for context in (usual, usual | {"residual": False}):
        assert upgraded(plain | {"networks": plain["networks"] | {"light": light, "context": context}}) == plain
    other = plain | {"networks": plain["networks"] | {"context": usual | {"width": 4}}}
    with pytest.raises(ValueError, match="TwoNetworks has no field 'context'"):
        from_plain(Experiment, upgraded(other))


def test_a_method_without_latents_is_one_without_a_condition() -> None:
    today = json.loads(json.dumps(to_plain(PAIR)))
    before = today | {"method": today["method"] | {"latents": {"type": "NoCodec"}}}
    assert from_plain(dr.Experiment, upgraded(before)) == PAIR


def test_a_run_whose_networks_could_not_tell_the_window_s_clock_is_refused() -> None:
    """The clock of one frame is as it was, and such a run is resumed."""
    for frames in (1, 2):
        nets = OneConditional(replace(NET, image_channels=frames), (1, 8, 8))
        run = dr.Experiment(
            "run", nets, RollingConfig(), dr.FitConfig(9), process=Rolling(frames=frames), condition=Forecast(1, frames)
        )
        today, identity = json.loads(json.dumps(to_plain(run))), json.loads(json.dumps(run.identity))
        assert from_plain(dr.Experiment, upgraded(today)) == run
        for plain in (today, identity):
            before = json.loads(json.dumps(plain))
            del before["process"]["linear"]
            assert (upgraded(before) == plain) == (frames == 1)
        del today["process"]["linear"]
        if frames == 1:
            assert from_plain(dr.Experiment, upgraded(today)) == run
        else:
            with pytest.raises(ValueError, match="whose networks could not tell the window's clock: train it again"):
                from_plain(dr.Experiment, upgraded(today))
