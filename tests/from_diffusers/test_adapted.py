"""Adapters by phase on a folder of diffusers: it stays as it is, and its library reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from from_diffusers.models import diffusers, dit, randomised

from dualrate.networks.adapters import adapter_state, layers_of, merged
from dualrate.runs.store import load


def test_a_folder_of_diffusers_is_adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomised(dit(in_channels=1, out_channels=1))
    net.save_pretrained(tmp_path / "theirs")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "theirs")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(8) % 5)
    words = ("--images", tmp_path / "images.npz", "--rank", 2, "--fit.iterations", 2, "--out", tmp_path / "run")
    assert call(monkeypatch, "adapt", tmp_path / "theirs", *words) == 0
    theirs = load(tmp_path / "run").networks["model"].net.net
    bare, before = merged(theirs, None).state_dict(), net.state_dict()
    assert all(torch.equal(bare[name], before[name]) for name in before)
    assert all(layer.update("phase-2").any() for layer in layers_of(theirs).values())
    names = {"transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2", "transformer_blocks.1.norm1.linear"}
    assert {f"{name}.lora_B.weight" for name in names} <= adapter_state(theirs, "phase-1").keys()
    assert call(monkeypatch, "sample", tmp_path / "run", "--num", 1, "--out", tmp_path / "out") == 0
