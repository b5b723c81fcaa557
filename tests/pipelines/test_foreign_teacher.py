"""A model of diffusers as the teacher of students: of its own kind, and of a retrofit of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from pipelines.models import diffusers, dit, randomised, unet
from pipelines.test_retrofit import FIT, saved, tiny_recipe

import dualrate as dr
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.experiment.teaching import InBfloat16, check_teacher
from dualrate.methods import moment_matching
from dualrate.pipelines import recipe as retrofit
from dualrate.recipes import students
from dualrate.recipes.students import StudentRecipe, dual_student, plain_student
from dualrate.system.progress import Silent

pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
RECIPE = StudentRecipe("student", None, FIT)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers of three classes, images, and a retrofit of the DiT."""
    root, random = tmp_path_factory.mktemp("teachers"), np.random.default_rng(0)
    saved(root / "dit", randomised(dit(in_channels=1, out_channels=2, num_embeds_ada_norm=3)), "transformer")
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    saved(root / "unet", randomised(unet(in_channels=1, out_channels=1, num_class_embeds=3)), "unet", flow)
    np.savez(root / "images.npz", images=random.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 3)
    with pytest.MonkeyPatch.context() as patch:
        tiny_recipes(patch)
        recipe = retrofit.RetrofitRecipe(dr.DataConfig(str(root / "images.npz")), share=1.0)
        made = recipe(root / "dit", Silent())
        dr.train(replace(made, fit=replace(FIT, iterations=2)), root / "retrofit", progress=Silent())
    return root


def tiny_recipes(patch: pytest.MonkeyPatch) -> None:
    tiny_recipe(patch)
    patch.setattr(students, "DISTILLING", FIT)
    patch.setattr(moment_matching, "PRECONDITIONING", 2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_recipes(monkeypatch)


def on_images(root: Path, student: dr.Experiment) -> dr.Experiment:
    return replace(student, data=replace(student.data, source=str(root / "images.npz")))


def weights(model: dr.Model, role: str) -> dict[str, torch.Tensor]:
    return model.networks[role].net.state_dict()


@pytest.mark.parametrize(("teacher", "version"), [("dit", "instant"), ("unet", "alternating")])
def test_a_plain_student_is_the_teachers_network_and_learns(root: Path, tmp_path: Path, teacher: str, version) -> None:
    made = on_images(root, plain_student(RECIPE, str(root / teacher), 4, version=version))
    assert made.networks == dr.load(root / teacher).experiment.networks
    assert made.process == dr.load(root / teacher).process
    assert dr.train(made, tmp_path / "run", progress=Silent()).iteration == FIT.iterations
    student, own = dr.load(tmp_path / "run"), weights(dr.load(root / teacher), "model")
    assert any(not torch.equal(weight, own[name]) for name, weight in weights(student, "model").items())
    assert student.serves == AtLeast(4)


def test_a_retrofit_is_distilled_from_the_model_it_was_made_of(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, begun = tmp_path / "run", root / "retrofit"
    words = ("auto", "--teacher", root / "dit", "--student-from", begun, "--steps", 4, "--heavy", 2, "--out", out)
    quick = ("--fit.iterations", 2, "--fit.batch-size", 4, "--fit.sample-every", 2, "--device", "cpu")
    assert call(monkeypatch, "distill", *words, *quick) == 0, capsys.readouterr().err
    student, before = dr.load(out), dr.load(begun)
    assert student.experiment.networks == before.experiment.networks
    assert student.experiment.data == before.experiment.data
    assert student.serves == OnePlan(4, 2)
    moved = [name for name, weight in student.networks.state_dict().items() if weight.is_floating_point()]
    assert any(
        not torch.equal(student.networks.state_dict()[name], before.networks.state_dict()[name]) for name in moved
    )
    drawer = dr.Choice().drawer(student)
    assert drawer.draw([0, 1]).images.shape == (2, 1, 8, 8)


def test_the_teacher_says_what_it_says_alone_in_bfloat16_too(root: Path) -> None:
    student = on_images(root, plain_student(RECIPE, str(root / "dit"), 4))
    z, t, cond = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9]), dr.Cond(torch.arange(3))
    teacher = dr.load(root / "dit")
    own = teacher.denoiser.denoise(z, t, dr.Context(), cond)
    for bfloat16, tolerance in ((False, 1e-5), (True, 0.1)):
        taught = student.method.build(student, teacher, bfloat16=bfloat16).teacher
        assert isinstance(taught.network, InBfloat16) == bfloat16
        assert {p.dtype for p in taught.network.parameters()} == {torch.float32}  # autocast casts what it may
        assert not any(p.requires_grad for p in taught.network.parameters())
        with torch.no_grad():
            said = taught.denoise(z, t, dr.Context(), cond)
        assert (said - own).norm() <= tolerance * own.norm()


def test_what_cannot_be_distilled_is_refused_with_the_reason(root: Path, monkeypatch, capsys) -> None:
    with pytest.raises(
        ValueError, match=r"is a dual-rate model; .* name the run that its encoder came from, .*--student"
    ):
        plain_student(RECIPE, str(root / "retrofit"), 4)
    with pytest.raises(ValueError, match=r"first \(dualrate retrofit .*dit --out RUN\), then add --student-from RUN"):
        dual_student(RECIPE, str(root / "dit"), 4, 2)
    with pytest.raises(ValueError, match="student_from takes a dual-rate one"):
        dual_student(RECIPE, str(root / "dit"), 4, 2, student_from=str(root / "unet"))
    teacher = dr.load(root / "unet")
    guided = plain_student(RECIPE, str(root / "unet"), 4, guidance=2.0)
    with pytest.raises(ValueError, match="has no trained null class, so it cannot be guided"):
        check_teacher(guided, teacher, "unet", guided.method.guidance)
    instant = plain_student(RECIPE, str(root / "unet"), 4, version="instant")
    with pytest.raises(ValueError, match=r"forward derivatives, which torch lacks for the group norms of .*unet"):
        instant.method.build(instant, teacher, bfloat16=False)
    dropping = plain_student(RECIPE, str(root / "unet"), 4, dropout=0.1)
    with pytest.raises(ValueError, match="has no dropout to set"):
        dropping.method.build(dropping, teacher, bfloat16=False)
    assert call(monkeypatch, "distill", "auto", "--teacher", root / "dit", "--student", "plain") == 2
    assert "does not say which images it was trained on" in capsys.readouterr().err
