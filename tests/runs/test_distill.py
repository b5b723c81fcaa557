"""Distilling a run: three networks and two optimisers resume bit for bit, and the student needs no teacher."""

import math
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from training.toy import Recorder, final, same_bits

from dualrate.diffusion.context import Cond, Context
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine, Interpolated, RectifiedFlow
from dualrate.drawing.choice import Choice
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment, Start
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.experiment.teaching import begin, frozen_teacher
from dualrate.methods import moment_matching
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.em_distillation import Langevin
from dualrate.methods.moment_matching import MomentMatching
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.students import (
    StudentRecipe,
    by_consistency,
    consistency_student,
    dual_student,
    em_student,
    plain_student,
)
from dualrate.runs.release import export
from dualrate.runs.store import load, read_experiment, write_experiment
from dualrate.runs.train import train
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig, OptimConfig


def net(conv: int, transformer: int) -> UViTConfig:
    levels = (Level("conv", conv, 1), Level("transformer", transformer, 1))
    return UViTConfig(8, 1, levels, num_classes=4, patch=2, embedding=16, head_dim=16)


NET, LIGHT = net(8, 32), net(4, 16)
FIT = FitConfig(
    iterations=8,
    batch_size=8,
    precision="float32",
    optim=OptimConfig(lr=1e-3, betas=(0.0, 0.99), warmup=2),
    ema_halflife=100,
    log_every=1,
    checkpoint_every=3,
    sample_every=4,
)
RECIPE = StudentRecipe("tiny", LIGHT, FIT)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A teacher, another one, and a dual-rate run on 32 labelled images."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(32) % 4)
    data = DataConfig(str(root / "images.npz"))
    fit = replace(FIT, iterations=3, sample_every=100, optim=OptimConfig(lr=1e-2, warmup=0))
    train(Experiment("teacher", OneNetwork(NET), DenoisingConfig(), fit, data), root / "teacher", progress=Recorder())
    other = Experiment("other", OneNetwork(NET), DenoisingConfig(), replace(fit, seed=1), data)
    train(other, root / "other", progress=Recorder())
    two = Experiment("two", TwoNetworks(NET, LIGHT), DenoisingConfig(times=TimeSampler()), fit, data)
    train(two, root / "two", progress=Recorder())
    return root


def plain(root: Path, steps: int = 4, **options) -> Experiment:
    return plain_student(RECIPE, str(root / "teacher"), steps, **options)


def dual(root: Path, **options) -> Experiment:
    return dual_student(RECIPE, str(root / "teacher"), 4, 2, **options)


def consistency(root: Path, **options) -> Experiment:
    return consistency_student(RECIPE, str(root / "teacher"), 4, **options)


def em(root: Path, **options) -> Experiment:
    return em_student(RECIPE, str(root / "teacher"), **options)


def brief(student: Experiment) -> Experiment:
    """One iteration: where it matters that there is a run."""
    return replace(student, fit=replace(FIT, iterations=1, sample_every=100))


def taught_by(student: Experiment, teacher: Path) -> Experiment:
    return replace(student, method=replace(student.method, teacher=str(teacher)))


class Ending(Recorder):
    """Ends the process, or what stands for it here, at an iteration."""

    def __init__(self, at: int, *, politely: bool) -> None:
        super().__init__()
        self.at, self.politely = at, politely

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        if iteration == self.at:
            if not self.politely:
                raise InterruptedError
            os.kill(os.getpid(), signal.SIGTERM)


KINDS = {
    "plain": lambda root: plain(root, dropout=0.2),
    "plain, instant": lambda root: plain(root, version="instant"),
    "segment": lambda root: dual(root, rollout="segment", pretraining=2, dropout=0.2),
    "full": lambda root: dual(root, pretraining=1, pairs=2, guidance=1.5),
    "consistency": lambda root: consistency(root, dropout=0.2, guidance=1.5),
    "em": lambda root: em(root, dropout=0.2, langevin=Langevin(2, latent_step=0.01)),
    "consistency, dual": lambda root: consistency(root, heavy=2, student_from=str(root / "two")),
    "consistency, from data": lambda root: replace(
        by_consistency(read_experiment(root / "teacher")), method=ConsistencyConfig(student_from=str(root / "other"))
    ),
}


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory) -> Callable[[str], tuple[Experiment, Path]]:
    """Experiments by kind, each with the run that was trained by it without interruption."""

    @cache
    def trained(kind: str) -> tuple[Experiment, Path]:
        student, run = KINDS[kind](root), tmp_path_factory.mktemp("straight") / "run"
        student = replace(student, fit=replace(student.fit, iterations=4, checkpoint_every=2, sample_every=100))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moment_matching, "PRECONDITIONING", 4)  # batches
            train(student, run, progress=Recorder())
        return student, run

    return trained


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_and_a_stopped_distillation_end_with_the_same_bits(straight, tmp_path, kind, monkeypatch):
    student, run = straight(kind)
    monkeypatch.setattr(moment_matching, "PRECONDITIONING", 4)
    with pytest.raises(InterruptedError):
        train(student, tmp_path / "resumed", progress=Ending(2, politely=False))
    stopped = train(student, tmp_path / "resumed", progress=Ending(3, politely=True))
    assert (stopped.iteration, stopped.stopped) == (3, "signal")
    assert train(student, tmp_path / "resumed", progress=Recorder()).stopped == "done"
    files = final(run)
    assert same_bits(files, final(tmp_path / "resumed"))
    alone = "instant" in kind or "consistency" in kind
    own = set() if alone else {"auxiliaries", "optim-auxiliary"}
    first = {"optim-pretraining", "ema-pretraining"} if getattr(student.method, "pretraining", 0) else set()
    assert set(files) == {"model", "optim-student", "ema-student"} | own | first


@pytest.mark.parametrize("kind", ["plain", "full", "consistency", "consistency, dual", "em"])
def test_a_student_is_an_ordinary_model_without_its_teacher(root, straight, tmp_path, kind):
    _, run = straight(kind)
    (root / "teacher").rename(root / "away")
    try:
        export(run, tmp_path / "weights")
        for model in (load(run), load(tmp_path / "weights")):
            drawer = Choice().drawer(model, precision="float32")
            assert drawer.draw(range(3)).images.shape == (3, 1, 8, 8)
            with pytest.raises(ValueError, match=r"distilled|has learned to make 4 steps|has learned one step"):
                replace(drawer, plan=StepPlan.uniform(2, 1))
    finally:
        (root / "away").rename(root / "teacher")


def test_the_student_moves_and_the_teacher_is_in_no_checkpoint(root, straight):
    _, run = straight("full")
    saved = checkpoint.recover(run / "checkpoints", print)
    assert saved is not None
    assert {name.partition(".")[0] for name in saved.tensors["model"]} == {"encoder", "light"}
    assert {name.partition(".")[0] for name in saved.tensors["auxiliaries"]} == {"auxiliary"}
    teacher = load(root / "teacher").networks["model"].state_dict()
    for prefix, tensors in (("auxiliary.", saved.tensors["auxiliaries"]), ("encoder.net.", saved.tensors["model"])):
        assert any(not torch.equal(tensors[prefix + name], weight) for name, weight in teacher.items())


def test_pretraining_leaves_the_encoder_what_the_teacher_is(root, tmp_path):
    student = dual(root, pretraining=3)
    student = replace(student, fit=replace(FIT, iterations=4, sample_every=100))  # the last update is the auxiliary's
    train(student, tmp_path / "run", progress=Recorder())
    teacher = load(root / "teacher").networks["model"].state_dict()
    after = load(tmp_path / "run").networks
    for name, weight in after.get_submodule("encoder.net").state_dict().items():
        assert torch.equal(weight, teacher[name])
    before = student.build()[0].state_dict()
    assert any(name.startswith("light.") and not torch.equal(w, before[name]) for name, w in after.state_dict().items())


def filled(root: Path, heavy: int, **begins: str):
    """Networks of a student of 4 steps as its training begins with them, and what it says those are."""
    teacher = str(root / "teacher")
    student = dual_student(RECIPE, teacher, 4, heavy, **begins)
    networks = student.build()[0]
    start = Start(True, torch.device("cpu"), False, load, lambda iteration: pytest.fail("no data"), print)
    runs = {name.removesuffix("_from"): run for name, run in begins.items()}
    return networks, begin(student, networks, load(teacher), start, runs)


def test_a_student_may_start_from_a_dual_rate_run(root):
    run = str(root / "two")
    networks, told = filled(root, 2, student_from=run)
    assert "weights" in told["student"]
    assert same_bits({"": dict(networks.state_dict())}, {"": dict(load(run).networks.state_dict())})


def test_an_encoder_may_start_from_another_run_than_the_teacher(root):
    run = str(root / "other")
    networks, told = filled(root, 4, encoder_from=run)
    source = load(run)
    assert told == {"encoder": str(source)}
    begun, its = networks["encoder"].net.state_dict(), source.networks["model"].state_dict()
    assert same_bits({"": dict(begun)}, {"": dict(its)})


def test_a_teacher_held_in_bfloat16_says_the_same(root):
    teacher, process = load(root / "teacher"), GaussianProcess(Cosine())
    taught = (frozen_teacher(OneNetwork(NET), process, teacher, bfloat16=held)[0] for held in (False, True))
    wide, narrow = (networks["model"].eval() for networks in taught)
    z, log_snr, label = torch.randn(5, 1, 8, 8), torch.linspace(-5, 5, 5), torch.arange(5) % 4
    with torch.no_grad():
        said = narrow(z, log_snr, label)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(said, wide(z, log_snr, label))
    assert not any(p.requires_grad for p in narrow.parameters())
    assert sum(p.numel() * p.element_size() for p in narrow.parameters()) < 0.6 * sum(
        p.numel() * p.element_size() for p in wide.parameters()
    )


def test_a_shifted_student_asks_its_teacher_at_the_same_noise_level(root):
    teacher = load(root / "teacher")
    student = plain_student(RECIPE, str(root / "teacher"), 4, shift=-1.5)
    assert student.process.schedule == Cosine(shift=-1.5)
    method = student.method.build(student, teacher, bfloat16=False)
    z, t, cond = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), Cond(torch.arange(3))
    its_own = teacher.process.schedule.time(student.process.schedule.log_snr(t))
    assert (its_own > t).all()
    assert isinstance(method, MomentMatching)
    with torch.no_grad():
        said = method.teacher.denoise(z, t, Context(), cond)
        torch.testing.assert_close(said, teacher.denoiser.denoise(z, its_own, Context(), cond))


def test_dropout_is_in_student_and_auxiliary_and_masks_are_shared_with_the_teacher(root):
    student = plain(root, dropout=0.3)
    method = student.method.build(student, load(root / "teacher"), bfloat16=False)
    assert isinstance(method, MomentMatching)
    for module in (method.networks["model"], method.auxiliaries["auxiliary"], method.teacher.network):
        rates = [(part.p, part.training) for part in module.modules() if isinstance(part, torch.nn.Dropout)]
        assert rates
        assert set(rates) == {(0.3, True)}
    student = plain(root, dropout=0.3, guidance=2.0)
    guided = student.method.build(student, load(root / "teacher"), bfloat16=False)
    assert not guided.teacher.inner.network.training  # twice the rows: other masks


def test_a_changed_teacher_is_refused(root, tmp_path):
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    student = brief(taught_by(plain(root), tmp_path / "teacher"))
    train(student, tmp_path / "run", progress=Recorder())
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(root / "other", tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"teacher: weights \w{12} -> weights \w{12}"):
        train(student, tmp_path / "run", progress=Recorder())


def test_a_resumed_distillation_keeps_the_precision_of_its_teacher(root, tmp_path, monkeypatch):
    held = []

    def noted(*args, bfloat16: bool, **options):
        held.append(bfloat16)
        return frozen_teacher(*args, bfloat16=bfloat16, **options)

    monkeypatch.setattr(moment_matching, "frozen_teacher", noted)
    student = brief(plain(root))
    student = replace(student, fit=replace(student.fit, precision="auto"))
    for pays, iterations in ((True, 1), (False, 2), (False, 3)):
        monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device, pays=pays: pays)
        monkeypatch.setattr("dualrate.training.loop.pays", lambda device, pays=pays: pays)
        train(replace(student, fit=replace(student.fit, iterations=iterations)), tmp_path / "run", progress=Recorder())
        if iterations == 2:  # it is set aside, and the one before says it too
            (tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    assert held == [True, True, True]
    train(student, tmp_path / "other", progress=Recorder())
    assert held[3:] == [False]


def test_the_instant_version_goes_on_with_its_micro_batches_alone(root, tmp_path, monkeypatch):
    monkeypatch.setattr(moment_matching, "PRECONDITIONING", 1)
    student = brief(plain(root, version="instant"))
    train(student, tmp_path / "run", progress=Recorder())
    fewer = replace(student, fit=replace(student.fit, iterations=2, micro_batch=4))
    with pytest.raises(ValueError, match=r"fit\.micro_batch: None -> 4"):
        train(fewer, tmp_path / "run", progress=Recorder())
    alternating = brief(plain(root))
    train(alternating, tmp_path / "alternating", progress=Recorder())
    fewer = replace(alternating, fit=fewer.fit)
    assert train(fewer, tmp_path / "alternating", progress=Recorder()).iteration == 2


@pytest.mark.parametrize("of", ["student", "trained"])
def test_scores_come_every_so_many_iterations_and_not_twice(root, tmp_path, of):
    data, values = DataConfig(str(root / "images.npz")), iter(range(100))
    trained = Experiment("trained", OneNetwork(NET), DenoisingConfig(), FIT, data)
    for _ in range(2):
        train(
            plain(root) if of == "student" else trained,
            tmp_path / "run",
            score=lambda model: ("FD-test", float(next(values))),
            score_every=4,
            progress=Recorder(),
        )
    lines = (tmp_path / "run" / "scores.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ['{"iteration": 4', '{"iteration": 8']


def test_pictures_and_scores_of_a_lost_continuation_are_made_anew(root, tmp_path):
    trained = Experiment("trained", OneNetwork(NET), DenoisingConfig(), FIT, DataConfig(str(root / "images.npz")))
    train(replace(trained, fit=replace(FIT, iterations=6)), tmp_path, progress=Recorder())
    picture, scores = tmp_path / "samples" / "0000008.png", tmp_path / "scores.jsonl"
    picture.write_bytes(b"lost")
    scores.write_text('{"iteration": 4, "FD-test": 1.0}\n{"iteration": 8, "FD-test": 2.0}\n')
    train(trained, tmp_path, score=lambda model: ("FD-test", 3.0), score_every=4, progress=Recorder())
    assert picture.read_bytes() != b"lost"
    assert scores.read_text() == '{"iteration": 4, "FD-test": 1.0}\n{"iteration": 8, "FD-test": 3.0}\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: dual(root, rollout="data"), "learns from its own steps"),
        (lambda root: plain(root, rollout="full"), "learns from noised data"),
        (lambda root: plain(root, pretraining=3), "learns from noised data: drop pretraining$"),
        (lambda root: dual(root, pairs=0), "pairs is a whole number from 1"),
        (lambda root: plain(root, dropout=1.0), "dropout is a number from 0 to below 1"),
        (lambda root: replace(plain(root), networks=dual(root).networks), "serves one plan"),
        (lambda root: replace(plain(root), method=dual(root).method), "a plain student serves all steps"),
        (lambda root: dual_student(RECIPE, str(root / "two"), 4, 2), "is a dual-rate model; a teacher"),
        (lambda root: dual_student(RECIPE, str(root / "teacher"), 4, 5), "1 to 4 heavy calls, got 5"),
        (lambda root: dual_student(RECIPE, str(root / "teacher"), 4, 2, student_from=str(root / "other")),
         "takes a dual"),
        (lambda root: plain_student(RECIPE, str(root / "nowhere"), 4), "is no run"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(root, change, message):
    with pytest.raises(ValueError, match=message):
        change(root)


def test_what_cannot_be_distilled_here_is_refused(root, tmp_path):
    student = tmp_path / "student"
    train(brief(plain(root)), student, progress=Recorder())
    with pytest.raises(ValueError, match="is a student itself"):
        train(taught_by(plain(root), student), tmp_path / "a", progress=Recorder())
    with pytest.raises(ValueError, match="holds a run trained by DenoisingConfig, not by MomentMatchingConfig"):
        train(plain(root), root / "other", progress=Recorder())
    with pytest.raises(ValueError, match=r"method\.plans\.steps: 4 -> 5"):
        train(brief(plain(root, steps=5)), student, progress=Recorder())
    wrong = replace(plain(root), networks=OneNetwork(LIGHT))
    with pytest.raises(ValueError, match="must have the network of"):
        train(wrong, tmp_path / "b", progress=Recorder())
    with pytest.raises(ValueError, match=r"multiple of --fit.sample-every"):
        train(plain(root), tmp_path / "c", score=lambda model: ("", 0.0), score_every=3, progress=Recorder())
    assert not (tmp_path / "a").exists()


def test_a_run_is_not_continued_by_another_method(root, tmp_path):
    """Whichever of the two was first, and however alike the rest of the experiments is."""
    student = brief(plain(root))
    trained = replace(student, method=DenoisingConfig())
    train(trained, tmp_path / "run", progress=Recorder())
    before = (tmp_path / "run" / "experiment.json").read_text()
    with pytest.raises(ValueError, match="choose a new directory"):
        train(student, tmp_path / "run", progress=Recorder())
    (tmp_path / "run" / "experiment.json").unlink()  # then its checkpoints tell
    with pytest.raises(ValueError, match=r"method\.type: DenoisingConfig -> MomentMatchingConfig"):
        train(student, tmp_path / "run", progress=Recorder())
    (tmp_path / "run" / "experiment.json").write_text(before)
    assert train(trained, tmp_path / "run", progress=Recorder()).stopped == "done"


def test_what_its_number_of_iterations_decides_is_kept_where_that_may_change(root, tmp_path):
    """At a constant rate a run may be made longer, but not one whose teacher's steps were annealed over its end."""
    student = consistency(root)
    train(student, tmp_path / "run", progress=Recorder())
    with pytest.raises(ValueError, match=r"method\.annealing: 4 iterations -> 8 iterations"):
        train(replace(student, fit=replace(student.fit, iterations=16)), tmp_path / "run", progress=Recorder())
    train(plain(root), tmp_path / "other", progress=Recorder())
    longer = replace(plain(root), fit=replace(plain(root).fit, iterations=10))
    assert train(longer, tmp_path / "other", progress=Recorder()).iteration == 10


def test_a_run_of_another_method_that_has_no_checkpoint_yet_is_refused_too(root, tmp_path):
    write_experiment(tmp_path, replace(plain(root), method=DenoisingConfig()))
    with pytest.raises(ValueError, match="choose a new directory"):
        train(plain(root), tmp_path, progress=Recorder())


def test_what_is_shown_of_a_distillation_leaves_out_what_means_nothing(root, tmp_path):
    shown: list[str] = []

    class Shown(Recorder):
        def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
            shown.extend(logs)

    train(plain(root), tmp_path / "run", progress=Shown())
    assert "student/moment_gap" in shown
    assert "student/loss" not in shown


def test_cosine_and_interpolated_schedules_are_shifted_further_and_no_other(root, tmp_path):
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    teacher, own = str(tmp_path / "teacher"), read_experiment(tmp_path / "teacher")
    write_experiment(tmp_path / "teacher", replace(own, process=GaussianProcess(Interpolated.between(4, 8, 8))))
    halved = 2 * math.log(1 / 2)
    made = [
        plain_student(RECIPE, teacher, 4, shift=halved),
        dual_student(RECIPE, teacher, 4, 2, shift=halved),
        consistency_student(RECIPE, teacher, 4, shift=halved),
        em_student(RECIPE, teacher, shift=halved),
    ]
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    schedules = [one.process.schedule for one in made]
    schedules[-1] = schedules[-1].whole  # a student of one step has the part of it up to its noise level
    for schedule in schedules:
        torch.testing.assert_close(schedule.log_snr(t), Interpolated.between(2, 4, 8).log_snr(t))
    write_experiment(tmp_path / "teacher", replace(own, process=GaussianProcess(RectifiedFlow())))
    plain_student(RECIPE, teacher, 4)
    with pytest.raises(ValueError, match="cosine and interpolated schedules can be shifted further, this teacher's is"):
        plain_student(RECIPE, teacher, 4, shift=-1)
