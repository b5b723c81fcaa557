"""Held-out images, their latents, and what decoders make of these: docs/results/reconstructions.png.

    OMP_NUM_THREADS=1 .venv/bin/python studies/decoder_pictures.py   # of runs/latents/first and runs/decoder-...

From above: images; the four channels of z_0, 7 x 7, each from -2 (black) to 2; and reconstructions by those of SHOWN.
"""

from __future__ import annotations

import numpy as np
import torch
from common import RESULTS, RUNS, command, load, on_one_thread

from dualrate.data.images import to_uint8
from dualrate.data.latents import HeldOut
from dualrate.drawing.choice import Choice
from dualrate.report.image_grid import save_grid

COUNT, SPAN = 16, 2.0
SHOWN = {"small": 6, "dual": 8, "heavy": 8}  # and steps
HOW = {"sampler": "sde-dpm++2m", "gamma": 0.1}


def main() -> None:
    command(__doc__).parse_args()
    on_one_thread()
    seeds, rows = range(COUNT), []
    for name, steps in SHOWN.items():
        model = load(RUNS / f"decoder-{name}")
        given = model.given
        assert isinstance(given, HeldOut)
        if not rows:
            z_0 = given(torch.tensor(seeds)) / SPAN
            enlarged = to_uint8(z_0.repeat_interleave(4, 2).repeat_interleave(4, 3)).cpu().numpy()
            rows += [given.originals(torch.tensor(seeds)), *(enlarged[:, [channel]] for channel in range(z_0.shape[1]))]
        rows.append(Choice(steps, **HOW).drawer(model).draw(seeds).images)
    save_grid(np.concatenate(rows), RESULTS / "reconstructions.png", columns=COUNT, scale=2)


if __name__ == "__main__":
    main()
