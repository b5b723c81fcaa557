"""What was made before the house was rebuilt still loads and draws the same (tests/golden/golden.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import HERE, drawn

from dualrate.runs.store import read_experiment

DRAWN = dict(np.load(HERE / "images.npz"))


@pytest.mark.parametrize("name", sorted(file.stem for file in (HERE / "experiments").glob("*.json")))
def test_an_experiment_file_is_read_and_built(name: str, tmp_path: Path) -> None:
    text = (HERE / "experiments" / f"{name}.json").read_text().replace("GOLDEN", str(HERE))
    (tmp_path / "experiment.json").write_text(text)
    experiment = read_experiment(tmp_path)
    with torch.device("meta"):
        networks, _ = experiment.networks.build(experiment.process)
    assert sum(p.numel() for p in networks.parameters()) > 0


@pytest.mark.parametrize("name", DRAWN)
def test_a_sampler_draws_the_same_images(name: str) -> None:
    """Up to rounding, since the file may be another machine's."""
    np.testing.assert_allclose(drawn(*name.split(" ")), DRAWN[name], atol=2e-4)


def test_a_pipeline_loads_and_draws_as_its_run() -> None:
    pytest.importorskip("diffusers")
    from dualrate.pipelines.export import DualRatePipeline

    pipeline = DualRatePipeline.from_pretrained(HERE / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    drawn = pipeline(class_labels=[0, 1], num_inference_steps=4, num_heavy=2, generator=seeds)
    assert len(drawn.images) == 2
