"""Systems: scores of forecasts."""

import numpy as np
import torch

from studies.systems import by_lead


def test_scores_count_points_by_their_area() -> None:
    members, truth = torch.randn(3, 4, 2, 1, 2, 5).double(), torch.randn(3, 2, 1, 2, 5).double()
    area = torch.tensor([0.5, 1.5]).double()[:, None]
    rows = [by_lead(members[..., [i], :], truth[..., [i], :], torch.ones(1, 1).double()) for i in (0, 1)]
    scores = by_lead(members, truth, area)
    np.testing.assert_allclose(
        scores["crps"], (np.array(rows[0]["crps"]) + 3 * np.array(rows[1]["crps"])) / 4, atol=1e-4
    )
    alike = by_lead(members * area.sqrt(), truth * area.sqrt(), torch.ones(1, 1).double())
    assert (scores["energy"], scores["spread_skill"]) == (alike["energy"], alike["spread_skill"])
