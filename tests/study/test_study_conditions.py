"""Costs of samples of a condition at equal CRPS, from rows whose answer is known."""

from studies.conditions import ratio_table, scored_table

HARD = [0.1, 0.3] * 8  # of conditions


def row(rate: str, steps: int, crps: float, macs: dict[str, float]) -> dict:
    each = {"crps": [[crps + hard] for hard in HARD], "energy": [[0.5]] * 16, "psnr": [[20.0]] * 16}
    more = {"spread_skill": 1.0, "distances": [[9.0, 8.0, 10.0]] * 2, "floor": [1.0, 2.0]}
    plan = {"rate": rate, "trained_by": "diffusion", "steps": steps, "macs": macs, "ms": macs}
    return {"task": "inpainting:16", "seed": 0, "seen": 1000, **plan, **each, **more}


def test_a_network_that_needs_more_steps_costs_their_ratio() -> None:
    rows = [row("dual", 8, 0.05, {"1": 20.0, "16": 10.0}), row("single", 8, 0.08, {"1": 8.0, "16": 8.0})]
    rows += [row("light", steps, 0.1 / steps, {"1": 10.0 * steps, "16": 10.0 * steps}) for steps in (2, 4, 8)]

    scores, ratios = scored_table(rows).splitlines(), ratio_table(rows).splitlines()

    first = [line.split(" | ")[0] for line in scores[2:5]]
    assert first == ["| light, diffusion", "| two rates, diffusion", "| large, diffusion"]
    assert "| 20.0 | 10.0 | 0.2500 [" in scores[3]
    assert ratios[2:] == ["| inpainting | 1.00 | 2.00 |"]
