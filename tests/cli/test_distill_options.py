"""Options of `dualrate distill` up to the student's experiment and the method that they mean; nothing is distilled."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli.command import call
from training.toy import Recorder

from dualrate.cli import distill as cli_distill
from dualrate.cli.train import parse_train
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine, Truncated
from dualrate.diffusion.weighting import Elbo
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment, Start
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.experiment.plan_support import ONE_STEP, AtLeast, OnePlan, steps_of_ddim
from dualrate.methods.consistency import Consistency, ConsistencyConfig, TeacherSteps
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.em_distillation import EMDistillation, EMDistillationConfig, Langevin
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatching
from dualrate.methods.student_states import FullRollout, SegmentRollout
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import fashion_mnist
from dualrate.recipes.students import EM_RATE, StudentRecipe, dual_student
from dualrate.runs.store import load, write_experiment
from dualrate.runs.train import train
from dualrate.training.config import FitConfig


def net(conv: int, transformer: int, classes: int) -> UViTConfig:
    levels = (Level("conv", conv, 1), Level("transformer", transformer, 1))
    return UViTConfig(8, 1, levels, num_classes=classes, patch=2, embedding=16, head_dim=16)


FIT = FitConfig(iterations=1, batch_size=16, precision="float32", log_every=1, checkpoint_every=1)
RECIPE = StudentRecipe("tiny", net(4, 16, classes=7), replace(FIT, iterations=2000))  # more than pre-training has
PLAIN, INSTANT = ("--student", "plain"), ("--version", "instant")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A teacher of 4 classes with a shifted schedule, and the configuration of a dual-rate run."""
    root = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(64) % 4)
    data, network = DataConfig(str(root / "images.npz")), net(8, 32, classes=4)
    teacher = Experiment(
        "teacher", OneNetwork(network), DenoisingConfig(), FIT, data, process=GaussianProcess(Cosine(shift=-0.5))
    )
    train(teacher, root / "teacher", progress=Recorder())
    two = TwoNetworks(network, net(8, 16, classes=4))
    (root / "two").mkdir()
    write_experiment(root / "two", Experiment("two", two, DenoisingConfig(times=TimeSampler()), FIT, data))
    for name, classes in (("smaller", 4), ("strange", 3)):
        (root / name).mkdir()
        smaller = OneNetwork(net(8, 16, classes=classes))
        write_experiment(root / name, Experiment(name, smaller, DenoisingConfig(), FIT, data))
    return root


@pytest.fixture
def before(root, tmp_path, monkeypatch):
    """Return the first argument that `dualrate distill` with some options passes to a function, and end there."""
    monkeypatch.chdir(root)
    monkeypatch.setitem(cli_distill.RECIPES, "fashion-mnist", lambda: RECIPE)

    def before(function: str, *options):
        passed = []

        def end(first, *_, **__):
            passed.append(first)
            raise SystemExit

        monkeypatch.setattr(f"dualrate.runs.train.{function}", end)
        arguments = ["--teacher", "teacher", "--out", tmp_path / "out", *options]
        assert call(monkeypatch, "distill", "fashion-mnist", *arguments) == 0
        return passed[0]

    return before


@pytest.fixture
def student(before):
    """The student's experiment that some options mean."""

    def student(*options) -> Experiment:
        return before("train", *options)

    return student


@pytest.fixture
def method(student):
    """The configuration of its method."""
    return lambda *options: student(*options).method


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], 1000),
        (["--student-from", "two"], 0),
        (["--heavy", "8"], 0),
        (PLAIN, 0),
        (["--pretraining", "7"], 7),
        (["--pretraining", "7", "--student-from", "two"], 7),
    ],
)
def test_pre_training_is_for_a_light_network_that_has_to_learn_its_context(method, options, expected):
    assert method(*options).pretraining == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], 0.2), (PLAIN, 0.2), (INSTANT, 1), (["--student-rate", "0.5"], 0.5), ([*INSTANT, "--student-rate", "3"], 3)],
)
def test_only_a_student_with_an_auxiliary_is_slower_by_itself(method, options, expected):
    assert method(*options).student_rate == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], "full"), (["--rollout", "segment"], "segment"), (["--rollout", "full"], "full"), (PLAIN, "data")],
)
def test_states_are_those_of_the_student_s_whole_path_where_it_has_one(method, options, expected):
    assert method(*options).rollout == expected


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [("dropout", 0.25, None), ("pairs", 3, 1), ("guidance", 1.5, 1.0), ("version", "instant", "alternating"),
     ("student_from", "two", None)],
)  # fmt: skip
def test_an_option_is_the_field_of_its_name(method, option, value, default):
    assert getattr(method(), option) == default
    assert getattr(method(f"--{option.replace('_', '-')}", value), option) == value


@pytest.mark.parametrize("kind", ["plain", "dual"])
def test_a_shift_is_added_to_the_teacher_s(student, kind):
    assert student("--student", kind).process.schedule == Cosine(shift=-0.5)
    assert student("--student", kind, "--shift", -1.5).process.schedule == Cosine(shift=-2.0)


def test_steps_and_heavy_calls_are_those_that_the_student_serves(student):
    assert student("--steps", 5).serves == OnePlan(5, 3)
    assert student("--steps", 5, "--heavy", 2).serves == OnePlan(5, 2)
    assert student(*PLAIN, "--steps", 5).serves == AtLeast(5)


def test_an_encoder_of_another_run_has_that_one_s_network(student):
    found = student("--encoder-from", "smaller", "--steps", 4, "--heavy", 4)
    assert found.networks.encoder == net(8, 16, classes=4)
    assert (found.method.teacher, found.method.encoder_from) == ("teacher", "smaller")
    assert found.method.pretraining == 0  # no light network runs


def test_an_encoder_of_other_images_than_the_teacher_s_is_refused(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=r"teacher make images of .* in 3 classes and of .* in 4: they"):
        dual_student(RECIPE, "teacher", 4, 4, encoder_from="strange")


def test_light_from_and_source_are_the_student_s(student):
    found = student("--light-from", "light", "--source", "elsewhere.npz")
    assert (found.method.light_from, found.data.source) == ("light", "elsewhere.npz")
    assert student().method.light_from is None


def test_the_light_network_has_the_teacher_s_classes_or_is_the_run_s(student):
    assert student().networks == TwoNetworks(net(8, 32, classes=4), replace(RECIPE.light, num_classes=4))
    started = student("--student-from", "two").networks
    assert started == TwoNetworks(net(8, 32, classes=4), net(8, 16, classes=4))


@pytest.mark.parametrize(("rollout", "source"), [("segment", SegmentRollout), ("full", FullRollout)])
def test_pairs_and_rates_reach_the_method(student, root, rollout, source):
    found = student("--rollout", rollout, "--pairs", 3, "--student-rate", 0.5, "--pretraining", 7)
    built = found.method.build(found, load(root / "teacher"), bfloat16=False)
    assert isinstance(built, MomentMatching)
    assert built.states == source(found.method.plan, found.process, 3)
    assert (built.student_rate, built.pretraining) == (0.5, 7)


def test_guidance_and_weighting_reach_the_method(student, root):
    found = student("--guidance", 2)
    found = replace(found, method=replace(found.method, weighting=Elbo()))
    built = found.method.build(found, load(root / "teacher"), bfloat16=False)
    assert (built.teacher.weight, built.teacher.null, built.weighting) == (2.0, 4, Elbo())


def test_the_instant_version_s_teacher_stays_in_float32(student, root):
    """Its direction in parameter space is a small difference."""
    teacher, found = load(root / "teacher"), student(*INSTANT)
    instant = found.method.build(found, teacher, bfloat16=True)
    assert isinstance(instant, InstantMomentMatching)
    assert {p.dtype for p in instant.teacher.network.parameters()} == {torch.float32}
    found = student()
    alternating = found.method.build(found, teacher, bfloat16=True)
    assert isinstance(alternating, MomentMatching)
    assert torch.bfloat16 in {p.dtype for p in alternating.teacher.network.parameters()}


def test_the_instant_version_is_distilled_with_a_preconditioner(before):
    found = before("fit", *INSTANT).preconditioner
    assert found is not None
    assert len(torch.cat([part.flatten() for part in found.values()]).unique()) > 2  # neither 1 nor 1 and the largest


BY = ("--method", "consistency")


def test_a_consistency_student_has_the_teacher_s_network_and_its_own_options(student):
    made = student(*BY, "--steps", 2)
    assert made.networks == OneNetwork(net(8, 32, classes=4))
    assert made.method == ConsistencyConfig(2, "teacher")
    assert (made.name, made.serves) == ("tiny-consistency-2", steps_of_ddim(2))
    assert made.process.schedule == Cosine(shift=-0.5)
    options = ("--teacher-steps", 8, 32, "--annealing", 0.25, "--eta", 0, "--huber", 0.1, "--guidance", 2)
    expected = ConsistencyConfig(8, "teacher", (8, 32), 0.25, 0.0, 0.1, 2.0, student_from="other")
    assert student(*BY, *options, "--student-from", "other", "--student", "plain").method == expected


def test_a_dual_rate_consistency_student_has_the_networks_of_a_dual_rate_one(student):
    made = student(*BY, "--student", "dual")
    assert (made.name, made.method.serves) == ("tiny-consistency-8-4", steps_of_ddim(8, 4))
    assert made.networks == TwoNetworks(net(8, 32, classes=4), net(4, 16, classes=4))
    started = student(*BY, "--steps", 4, "--heavy", 1, "--student-from", "two")
    assert started.method == ConsistencyConfig(4, "teacher", heavy=1, student_from="two")
    assert started.networks == TwoNetworks(net(8, 32, classes=4), net(8, 16, classes=4))
    assert student(*BY, "--heavy", 1, "--light-from", "other").method.light_from == "other"


def begun(root) -> Start:
    """Return the arguments that a run which begins here gives its method."""
    return Start(
        True, torch.device("cpu"), False, lambda run: load(root / run), lambda i: pytest.fail("no data"), print
    )


def test_a_consistency_student_s_options_reach_the_method(student, root):
    options = ("--teacher-steps", 8, 32, "--annealing", 0.25, "--eta", 0.5, "--huber", 0.1, "--guidance", 2)
    made = student(*BY, *options, "--steps", 4, "--fit.iterations", 40)
    method = made.method.prepare(made, begun(root)).method
    assert isinstance(method, Consistency)
    assert (method.steps, method.teacher_steps) == (4, TeacherSteps(8, 32, 10))
    assert (method.guidance, method.null, method.eta, method.huber) == (2.0, 4, 0.5, 0.1)
    assert (method.heavy, method.backbone) == (None, None)


def test_a_consistency_student_trained_by_the_clock_has_one_number_of_teacher_s_steps(student, root):
    clock = (*BY, "--teacher-steps", 8, 32, "--steps", 4, "--fit.max-seconds", 5, "--fit.iterations", "None")
    growing = student(*clock)
    with pytest.raises(ValueError, match="--annealing 0"):
        growing.method.prepare(growing, begun(root))
    made = student(*clock, "--annealing", 0)
    steps = made.method.prepare(made, begun(root)).method.teacher_steps
    assert [steps(i) for i in (0, 1000)] == [32, 32]


EM = ("--method", "em")


def test_a_student_by_em_s_options_reach_the_method(student, root):
    options = ("--langevin-steps", 3, "--noise-step", 0.2, "--latent-step", 0.01, "--student-rate", 0.5)
    made = student(*EM, *options, "--guidance", 2)
    method = made.method.prepare(made, begun(root)).method
    assert isinstance(method, EMDistillation)
    assert (method.langevin, method.student_rate) == (Langevin(3, 0.2, 0.01), 0.5)
    assert (method.times, method.weighting) == (made.method.times, made.method.weighting)
    assert isinstance(method.teacher, Guided)
    assert (method.teacher.weight, method.teacher.null) == (2.0, 4)
    plain = student(*EM)
    assert not isinstance(plain.method.prepare(plain, begun(root)).method.teacher, Guided)


def test_a_student_by_em_begins_at_its_own_noise_level_and_makes_one_step(student):
    made = student(*EM)
    assert made.networks == OneNetwork(net(8, 32, classes=4))
    assert made.method == EMDistillationConfig("teacher", student_rate=EM_RATE)
    assert (made.name, made.serves) == ("tiny-em", ONE_STEP)
    assert made.process.schedule == Truncated(Cosine(shift=-0.5), -6.0)
    options = (
        "--langevin-steps",
        3,
        "--noise-step",
        0.2,
        "--latent-step",
        0.01,
        "--student-rate",
        0.5,
        "--guidance",
        2,
    )
    made = student(*EM, *options, "--log-snr", -4, "--steps", 1, "--shift", -1, "--student", "plain")
    expected = EMDistillationConfig("teacher", Langevin(3, 0.2, 0.01), guidance=2.0, student_rate=0.5)
    assert (made.method, made.process.schedule) == (expected, Truncated(Cosine(shift=-1.5), -4.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*BY, "--pairs", 2), "--method consistency does not take --pairs"),
        ((*EM, "--steps", 2), "makes students of one step, got 2: drop --steps"),
        ((*EM, "--student", "dual"), "a student of one step has one network: drop --student dual"),
        ((*EM, "--student-from", "other"), "--method em does not take --student-from"),
        ((*EM, "--noise-step", 0), "noise_step is a number above 0"),
        ((*EM, "--log-snr", -20), "goes from log-SNR 15 to -15, and ends nowhere in between at -20"),
        ((*BY, "--langevin-steps", 2), "does not take --langevin-steps"),
        ((*BY, "--pairs", 1, "--version", "instant"), "--method consistency does not take --pairs, --version"),
        (("--eta", 0.5), "--method moments does not take --eta"),
        (
            (*BY, "--heavy", 2, "--student", "plain"),
            "plain student by --method consistency does not take --heavy: drop --heavy, or pass --student dual",
        ),
        ((*BY, "--steps", 1, "--student", "dual"), "a student of one step has no use"),
        ((*BY, "--heavy", 2, "--student-from", "teacher"), "teacher is a single-rate model; student_from takes a dual"),
        ((*BY, "--steps", 128), "64 and 1280 for a student of 128"),
    ],
)
def test_options_of_another_way_to_distil_are_refused(before, capsys, options, message):
    with pytest.raises(AssertionError):  # it ends before anything is trained
        before("train", *options)
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_training_from_data_is_a_word_of_any_recipe_of_images():
    made = parse_train(
        ["fashion-mnist-light", "--method", "consistency", "--method.steps", "2", "--fit.iterations", "9"]
    )
    assert made.experiment.method == ConsistencyConfig(2)
    assert made.experiment.networks == fashion_mnist.single("light").networks
    assert (made.experiment.name, made.experiment.fit.iterations) == ("fashion-mnist-light-consistency", 9)
    assert parse_train(["fashion-mnist-light"]).experiment == fashion_mnist.single("light")
    dual = parse_train(["fashion-mnist-dual-45", "--method", "consistency"]).experiment
    assert (dual.networks, dual.method) == (fashion_mnist.dual().networks, ConsistencyConfig(4, heavy=2))
