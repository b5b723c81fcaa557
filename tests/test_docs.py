"""The documentation is code too: names exist, examples run, links lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import dualrate as dr
from dualrate.draws import Draws

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("name", re.findall(r"`(dualrate\.[\w.]+)`", (ROOT / "docs/equations.md").read_text()))
def test_every_function_of_the_equation_map_exists(name):
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            place = getattr(place, attribute)
        assert place.__doc__ or attribute.islower()
        return
    pytest.fail(f"{name} does not exist")


@pytest.fixture(scope="module")
def extensions() -> dict:
    names: dict = {}
    for block in python_blocks(ROOT / "docs/extending.md"):
        exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def test_the_worked_sampler_converges(extensions):
    """On one Gaussian every step size must go to the right variance; a churned DDIM gets there."""
    process = dr.GaussianProcess(dr.Cosine())
    mixture = dr.GaussianMixture.isotropic(torch.zeros(1, 1, dtype=torch.float64), 0.25)
    step = extensions["Churned"](process)
    denoiser = extensions["Clipped"](dr.OracleDenoiser(mixture, process))
    draws = Draws(0, torch.arange(2000))
    x = dr.rollout(
        denoiser, step, dr.StepPlan.uniform(512), draws.normal("z", 1).double(), dr.Cond(),
        lambda i, j: draws.normal(f"{i} {j}", 1).double(),
    )  # fmt: skip
    assert x.var().item() == pytest.approx(0.25, rel=0.1)


def test_the_worked_method_trains(extensions, tmp_path):
    from dualrate.training.config import FitConfig
    from dualrate.training.loop import fit
    from dualrate.training.optim import OptimConfig

    class Data:
        def batch(self, iteration):
            return dr.Batch(torch.full((4, 1, 2, 2), 0.5), None, torch.arange(4) + 4 * iteration)

    method = extensions["MeanRegression"](
        nn.ModuleDict({"mean": nn.Embedding.from_pretrained(torch.zeros(1, 4), freeze=False)})
    )
    config = FitConfig(iterations=80, batch_size=4, precision="float32", optim=OptimConfig(lr=0.1, warmup=0))
    fit(method, Data(), config, tmp_path, identity={})
    torch.testing.assert_close(method.networks["mean"].weight[0], torch.full((4,), 0.5), atol=0.05, rtol=0)


def test_the_readme_example_runs(tmp_path, monkeypatch):
    """On the released weights, as a reader would run it."""
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(ROOT / "README.md")
    assert "weights/fashion-mnist-dual" in block
    exec(compile(block.replace("weights/", f"{ROOT}/weights/"), "README.md", "exec"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heavy-16.png", "heavy-4.png", "heavy-8.png"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]*[/.][^)#\s]*)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
