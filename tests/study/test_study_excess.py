"""The registered test of the excess: what it predicts, and what refutes it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from studies.common import add_rows
from studies.excess import FILE, GARMENTS, KNOBS, STEPS, Knob, high, kendall, prediction, refuted, wrong


def setting(excess: float, *ratio: float | None) -> dict:
    losses = {"large": [1.0] * 12, "light": [1.0] * 8 + [1 + excess] * 4}
    return {"losses": losses, "prediction": prediction(excess), "ratio": ratio}


def test_the_excess_at_high_noise_is_the_noisiest_thirds() -> None:
    assert high(setting(0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize(("excess", "words"), [(-0.1, "below 1"), (0.08, "no side"), (0.2, "above 2")])
def test_the_excess_predicts_a_side(excess: float, words: str) -> None:
    assert prediction(excess) == words


def test_the_order_of_ratios_is_kendalls_with_never_above_all() -> None:
    rising = [(-0.1, 0.5, 0.4), (0.05, 3, 1), (0.2, None, 2), (0.4, None, 5)]
    settings = {str(i): setting(excess, *ratio, None) for i, (excess, *ratio) in enumerate(rising)}
    assert kendall(settings) == 1
    falling = {str(i): setting(-excess, *ratio, None) for i, (excess, *ratio) in enumerate(rising)}
    assert kendall(falling) == -1
    settings["0"]["ratio"] = (4, 3, 5)  # one of six pairs is in the other order
    assert kendall(settings) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("excess", "ratio", "refuted"),
    [
        (-0.1, (1.5, 1.1, 2), True),
        (-0.1, (1.5, 0.9, 2), False),
        (-0.1, (None, 2, None), True),
        (0.2, (0.5, 0, 0.9), True),
        (0.2, (0.5, 0, None), False),
        (0.08, (0.5, 0.4, 0.6), False),
    ],
)
def test_a_ratio_on_the_other_side_refutes_beyond_its_interval(
    excess: float, ratio: tuple[float | None, ...], refuted: bool
) -> None:
    assert wrong(setting(excess, *ratio)) is refuted


def test_a_lost_order_refutes_without_a_ratio_on_the_other_side() -> None:
    lost = {"a": setting(0.5, 2.2, 1.4, 2.8), "b": setting(0.2, None, None, None)}
    assert refuted(lost)
    assert not refuted({**lost, "b": setting(0.2, 1.5, 1.1, 2)})


def test_the_ratio_is_of_scores_beside_rows_of_speeds(tmp_path: Path) -> None:
    def row(network: str, score: float, macs: float) -> dict:
        which = {"kind": "final", "network": network, "method": "diffusion", "steps": STEPS, "seed": 0}
        return which | {"crps": np.full((4, 3), score).tolist(), "macs": {"1": macs}}

    knob = Knob(GARMENTS, tmp_path)
    add_rows(tmp_path, [row("dual", 0.3, 2.0), row("single", 0.3, 6.0), {"kind": "speed", "network": "dual", "ms": 1}])
    assert knob.ratio().value == pytest.approx(3)


def test_the_file_has_the_predictions_that_its_losses_make() -> None:
    if FILE.exists():
        settings = json.loads(FILE.read_text())
        assert list(settings) == [*KNOBS, GARMENTS]
        for values in settings.values():
            assert all(math.isfinite(loss) for losses in values["losses"].values() for loss in losses)
            assert values["prediction"] == prediction(high(values))
