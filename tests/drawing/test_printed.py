"""Drawers and what they draw print in a few lines; in a notebook with the timeline of calls, or the picture."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs.made import TWO
from serving.made import model

from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer, Samples
from dualrate.drawing.samples import write_samples
from dualrate.sampling.cost import CallCost, PlanCost


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return Choice(steps=4, heavy=2).drawer(model(TWO), batch_size=3)


def picture_in(html: str) -> np.ndarray:
    (content,) = re.findall(r'<img src="data:image/png;base64,([^"]+)">', html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_samples_are_counted_in_words_and_shown_in_a_notebook(drawer: Drawer) -> None:
    drawn = drawer.draw(range(3))
    channels, side, _ = drawer.model.image_shape
    assert repr(Samples(drawn.images, 1.25)) == f"3 samples of {channels} x {side} x {side} (C, H, W), drawn in 1.25 s"
    assert repr(Samples(drawn.images[:1], 1.25)).startswith("1 sample of ")
    shown = picture_in(drawn._repr_html_())
    assert (shown[:side, :side] == drawn.images[0].transpose(1, 2, 0).squeeze()).all()


def test_samples_in_a_folder_say_where_they_are(drawer: Drawer, tmp_path: Path) -> None:
    written = write_samples(drawer, range(3), tmp_path / "out")
    assert repr(written).startswith(f"3 samples in {tmp_path / 'out'}: 3 drawn now")
    assert len(repr(written).splitlines()) == 1
    assert picture_in(written._repr_html_()).size
    assert "&lt;a&gt;" in replace(written, texts=["<a>"])._repr_html_()


def test_a_cost_is_a_line_for_each_kind_of_calls(drawer: Drawer) -> None:
    cost = replace(drawer.cost, calls=CallCost(3e9, 2e6), members=1)
    assert repr(cost).splitlines() == [
        "6 GMACs a sample (two FLOPs each)",
        "     2 x 3 GMACs a heavy call",
        "     1 x 2 MMACs a light call",
        "     1 x 2 MMACs a light call without a context",
    ]
    lines = repr(PlanCost(CallCost(8e6, 2e3, read=4e6, decode=5e3, of_condition=True), 1, 3, 7e6, 1, 1, 16, 1))
    assert lines.splitlines() == [
        "7 MMACs a sample, on average (two FLOPs each)",
        "     1 x 4 MMACs to read the condition, shared by 16 members",
        "     1 x 8 MMACs a heavy call, shared by 16 members",
        "     1 x 2 kMACs a light call",
        "     1 x 0 kMACs a light call that renews a part",
        "     1 x 2 kMACs a light call without a context",
        "     1 x 5 kMACs to decode",
    ]
