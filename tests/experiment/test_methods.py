"""Configurations of methods: what they refuse, and what they make of an experiment."""

from dataclasses import dataclass, replace

import pytest
import torch

import dualrate as dr
from dualrate.codecs.codec import CodecFolder
from dualrate.data.conditions import Latent
from dualrate.diffusion.context import Batch
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Elbo
from dualrate.experiment.experiment import MethodConfig, Start
from dualrate.experiment.network_configs import NetworksConfig, OneConditional
from dualrate.experiment.plan_support import AnyPlan, AtLeast, OnePlan
from dualrate.experiment.teaching import check_targets, check_teacher
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitNetwork
from dualrate.methods.em_distillation import EMDistillationConfig
from dualrate.methods.moment_matching import WATCH, InstantMomentMatching, MomentMatchingConfig
from dualrate.methods.times import GivenTimes, SingleTime
from dualrate.training.config import FitConfig

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1, dropout=0.1)), 3, patch=2, embedding=16, head_dim=16
)
ONE, TWO, FIT = dr.OneNetwork(NET), dr.TwoNetworks(NET, NET), FitConfig(9, batch_size=8)
PLAIN = MomentMatchingConfig("one", AtLeast(4))
SHIFTED = dr.GaussianProcess(Cosine(shift=-1.0))
DUAL = replace(PLAIN, plans=OnePlan(8, 4), rollout="full")


def student(networks: NetworksConfig, method: MethodConfig, **fit) -> dr.Experiment:
    given = {} if networks.given is None else {"condition": Latent(CodecFolder("first", "f" * 64))}
    return dr.Experiment("student", networks, method, replace(FIT, **fit), **given)


def teacher(**changes) -> dr.Model:
    experiment = dr.Experiment("one", dr.OneNetwork(replace(NET, **changes)), dr.DenoisingConfig(), FIT)
    networks, denoiser = experiment.build()
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return dr.Model("one", experiment, networks, denoiser, 1, weights_hash="0" * 64)


def start(asked: list[int], *, bfloat16: bool = False) -> Start:
    def batch(iteration: int) -> Batch:
        asked.append(iteration)
        sample = torch.arange(200) + 200 * iteration
        return Batch(torch.full((200, 1, 8, 8), 0.1 * iteration), sample % 3, sample)

    return Start(True, torch.device("cpu"), bfloat16, lambda run: teacher(), batch, lambda text: None)


@pytest.mark.parametrize(
    ("networks", "change", "fit", "message"),
    [
        (TWO, {"pretraining": 9}, {}, "9 of 9 iterations are pre-training"),
        (TWO, {"version": "instant"}, {"micro_batch": 7}, "in micro-batches of 7"),
        (TWO, {"version": "instant"}, {"micro_batch": 1}, "in micro-batches of 1"),
        (TWO, {"version": "instant"}, {"batch_size": 24}, "multiples of 16 rows, got 24 and 24"),
        (TWO, {"version": "instant"}, {"batch_size": 40, "micro_batch": 16}, "multiples of 16 rows, got 40 and 16"),
        (TWO, {"version": "instant"}, {"batch_size": 32, "micro_batch": 8}, "multiples of 16 rows, got 32 and 8"),
        (TWO, {"student_from": "x", "light_from": "y"}, {}, "drop encoder_from and light_from, or student_from"),
        (TWO, {"student_from": "x", "encoder_from": "y"}, {}, "drop encoder_from and light_from, or student_from"),
        (ONE, {"encoder_from": "x"}, {}, "a plain student .* starts from its teacher"),
        (ONE, {"version": "instant", "guidance": 2.0}, {}, "needs a teacher without guidance"),
        (ONE, {"pairs": 2}, {}, "a plain student .* starts from its teacher"),
        (ONE, {"light_from": "x"}, {}, "a plain student .* starts from its teacher"),
        (ONE, {"student_from": "x"}, {}, "a plain student .* starts from its teacher"),
        (ONE, {"pretraining": 1}, {}, "a plain student .* starts from its teacher"),
        (ONE, {"rollout": "segment"}, {}, "learns from noised data"),
        (TWO, {"rollout": "data"}, {}, "learns from its own steps"),
        (ONE, {"plans": OnePlan(8, 4)}, {}, "a plain student serves all steps"),
        (TWO, {"plans": AtLeast(4)}, {}, "serves one plan"),
    ],
)
def test_a_distillation_that_does_not_go_together_is_refused(networks, change, fit, message):
    method = PLAIN if networks is ONE else DUAL
    student(networks, method)
    with pytest.raises(ValueError, match=message):
        student(networks, replace(method, **change), **fit)


def test_what_just_goes_together_is_taken():
    student(TWO, replace(DUAL, pretraining=8))
    student(TWO, replace(DUAL, version="instant"), batch_size=48, micro_batch=16)
    student(ONE, replace(PLAIN, version="instant"), batch_size=18, micro_batch=6)
    student(TWO, DUAL, micro_batch=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 2}, r"in 3 classes and of .* in 2: they must be the same"),
        ({"image_size": 16}, "they must be the same"),
        ({"embedding": 32}, "must have the network of one"),
    ],
)
def test_a_teacher_of_other_images_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_teacher(student(ONE, PLAIN), teacher(**change), "one", 1)


def test_a_teacher_without_classes_guides_nothing():
    none = replace(NET, num_classes=0)
    with pytest.raises(ValueError, match="so it cannot be guided"):
        check_teacher(student(dr.OneNetwork(none), PLAIN), teacher(num_classes=0), "one", 2)


def test_masks_of_dropout_are_shared_where_they_can_be():
    """By one network beside another that is as it was written: not twice the rows, and not compiled."""
    for change, fit, shared in (
        ({}, {}, True),
        ({"guidance": 2.0}, {}, False),
        ({"version": "instant"}, {}, False),
        ({}, {"compile": True}, False),
    ):
        experiment = student(ONE, replace(PLAIN, **change), **fit)
        made = experiment.method.build(experiment, teacher(), bfloat16=False).teacher
        assert (made.inner if change.get("guidance") else made).network.training == shared, (change, fit)


def test_a_teacher_is_held_in_bfloat16_where_training_runs_in_it_but_for_the_instant_version():
    for version, bfloat16, held in (
        ("alternating", True, torch.bfloat16),
        ("alternating", False, torch.float32),
        ("instant", True, torch.float32),
    ):
        experiment = student(ONE, replace(PLAIN, version=version))
        network = experiment.method.build(experiment, teacher(), bfloat16=bfloat16).teacher.network
        assert torch.bfloat16 in {p.dtype for p in network.parameters()} or held == torch.float32
        assert held == torch.bfloat16 or {p.dtype for p in network.parameters()} == {torch.float32}


def test_the_instant_version_is_preconditioned_on_64_batches_of_data(monkeypatch):
    asked, rows = [], []

    def preconditioned(method, batches):
        rows.extend(len(batch) for batch in batches)
        return method

    monkeypatch.setattr(InstantMomentMatching, "preconditioned", preconditioned)
    experiment = student(ONE, replace(PLAIN, version="instant"))
    experiment.method.prepare(experiment, start(asked))
    assert (asked, rows) == (list(range(64)), [64] * 64)


def test_a_distillation_is_watched():
    experiment = student(ONE, PLAIN)
    assert experiment.method.prepare(experiment, start([])).watch is WATCH


def test_denoising_is_of_the_experiment_s_classes_with_the_weights_that_were_chosen():
    config = dr.DenoisingConfig(dr.TimeSampler(), Elbo(), label_dropout=0.3, encoder_weight=0.25)
    made = config.build(student(TWO, config))
    assert (made.null, made.label_dropout, made.encoder_weight) == (3, 0.3, 0.25)
    assert (made.weighting, made.times) == (Elbo(), dr.TimeSampler())
    assert config.serves == AnyPlan((4, 32), drops=True)
    assert replace(config, times=SingleTime()).serves == AnyPlan()
    assert replace(config, times=dr.TimeSampler(dropout=0.0)).serves == AnyPlan((4, 32))
    late = replace(config, times=dr.TimeSampler(heavy=(1, 8), dropout=0.0, first=(0.5, 0.9))).serves
    assert late == AnyPlan((1, 8), drops=True, times=(0.5 / 8, 0.9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teacher(num_classes=2), "in 3 classes and of .* in 2: they"),
        (lambda: teacher(image_size=16), r"\(1, 8, 8\) .* and of \(1, 16, 16\)"),
        (lambda: replace(teacher(), experiment=student(ONE, PLAIN)), "is a student, whose x_hat is no posterior mean"),
        (
            lambda: replace(teacher(), experiment=replace(student(ONE, dr.DenoisingConfig()), process=SHIFTED)),
            "is a run with the process of student; .* has GaussianProcess",
        ),
    ],
)
def test_targets_are_of_the_same_estimate(make, message):
    with pytest.raises(ValueError, match=message):
        check_targets(student(TWO, dr.DenoisingConfig(dr.TimeSampler())), make(), "backbone_from")


def test_a_pair_is_trained_at_times_of_a_pair():
    """Else the encoder would see z_t in training and other states in sampling, at plans that it never learned."""
    for times in (SingleTime(), GivenTimes()):
        with pytest.raises(ValueError, match=r"Times?\(.*\) are times of one.*DenoisingConfig\(TimeSampler\("):
            student(TWO, dr.DenoisingConfig(times))
    student(TWO, dr.DenoisingConfig(dr.TimeSampler(heavy=(4, 32))))
    student(ONE, dr.DenoisingConfig())


def test_every_role_has_a_network_and_the_denoiser_calls_no_other():
    """One without would neither be trained nor stored."""

    @dataclass(frozen=True)
    class Own(NetworksConfig):
        names: tuple[str, ...]
        apart: bool = False
        shape = 1, 8, 8
        num_classes = 3

        def build(self, process):
            networks, denoiser = ONE.build(process)
            named = ONE.build(process)[0] if self.apart else networks
            return torch.nn.ModuleDict(dict.fromkeys(self.names, named["model"])), denoiser

    made = student(Own(("model",)), dr.DenoisingConfig(dr.TimeSampler()))
    with pytest.raises(ValueError, match=r"Own has the roles encoder, light, .* by the names model: .*\('model',\)"):
        made.build()
    with pytest.raises(ValueError, match="by the names light: return one for each role"):
        replace(made, networks=Own(("light",))).build()
    with pytest.raises(ValueError, match=r"denoiser of Own calls a .* in none of the networks encoder, light"):
        replace(made, networks=Own(("encoder", "light"), apart=True)).build()
    replace(made, networks=Own(("encoder", "light", "codec"))).build()


@pytest.mark.parametrize("part", ["encoder_from", "light_from"])
def test_parts_of_a_single_network_start_from_nothing(part):
    with pytest.raises(ValueError, match="has a single network"):
        student(ONE, dr.DenoisingConfig(**{part: "x"}))


@pytest.mark.parametrize(
    ("networks", "change", "message"),
    [
        (TWO, {}, "with 1 to 3 heavy calls .* and heavy None"),
        (TWO, {"heavy": 4}, "with 1 to 3 heavy calls .* and heavy 4"),
        (TWO, {"heavy": 2, "student_from": "a", "light_from": "b"}, "student_from brings the light network's weights"),
        (ONE, {"heavy": 2}, "has one network, called at every step: drop heavy and light_from"),
        (ONE, {"light_from": "b"}, "has one network, called at every step"),
        (ONE, {"teacher_steps": (32, 16)}, "no fewer in the end than at first; got 32 and 16"),
        (ONE, {"steps": 65}, "for a student of 65"),
        (ONE, {"teacher": None, "guidance": 2.0}, "guidance is a teacher's, and the data have none"),
        (ONE, {"eta": -1.0}, "eta is a number from 0 to 1,000"),
        (ONE, {"huber": 0.0}, "huber is a number above 0"),
        (ONE, {"annealing": -0.1}, "annealing is a number from 0 to 1"),
    ],
)
def test_consistency_that_does_not_go_together_is_refused(networks, change, message):
    student(ONE, ConsistencyConfig(4, "one"))
    with pytest.raises(ValueError, match=message):
        student(networks, replace(ConsistencyConfig(4, "one"), **change))


@pytest.mark.parametrize(
    ("networks", "change", "message"),
    [
        (TWO, {}, "is dual-rate: one step is one heavy call, so a light network would never run"),
        (
            OneConditional(replace(NET, num_classes=0), (4, 2, 2)),
            {},
            "is a decoder, which EM distillation does not train",
        ),
        (ONE, {"times": (0.9, 0.1)}, "the least and the largest t"),
        (ONE, {"times": (0.1, 1.5)}, "times is 2 values"),
        (ONE, {"student_rate": 0.0}, "student_rate is a number above 0"),
    ],
)
def test_em_distillation_that_does_not_go_together_is_refused(networks, change, message):
    student(ONE, EMDistillationConfig("one"))
    with pytest.raises(ValueError, match=message):
        student(networks, replace(EMDistillationConfig("one"), **change))


def test_moment_matching_trains_no_decoder_and_none_teaches():
    decoder = OneConditional(replace(NET, num_classes=0), (4, 2, 2))
    with pytest.raises(ValueError, match="is a decoder, which moment matching does not train"):
        student(decoder, PLAIN)
    given = Latent(CodecFolder("first", "f" * 64))
    experiment = dr.Experiment("one", decoder, dr.DenoisingConfig(), FIT, condition=given)
    of_decoder = replace(teacher(), experiment=experiment)
    with pytest.raises(ValueError, match="one is a decoder, which has no students: name a model of images"):
        check_teacher(student(ONE, PLAIN), of_decoder, "one", 1)


def test_no_distillation_trains_a_null_class():
    """So none of their students is guided: the label is always there."""
    students = (MomentMatchingConfig("x", OnePlan(4, 2)), ConsistencyConfig(4, "x"), EMDistillationConfig("x"))
    assert [one.drops_labels for one in (*students, dr.DenoisingConfig())] == [False, False, False, True]


@pytest.mark.parametrize(("dropout", "freeze", "refused"), [(0.1, True, True), (0.0, True, False), (0.1, False, False)])
def test_a_frozen_encoder_whose_null_class_is_untrained_stays_without(dropout, freeze, refused):
    labelled = replace(teacher(), experiment=student(ONE, dr.DenoisingConfig(label_dropout=0.0)))
    config = dr.DenoisingConfig(dr.TimeSampler(), label_dropout=dropout, encoder_from="one", freeze_encoder=freeze)
    asked = replace(start([]), load=lambda run: labelled)
    if not refused:
        assert config.prepare(student(TWO, config), asked).weights
        return
    with pytest.raises(ValueError, match="set label_dropout to 0"):
        config.prepare(student(TWO, config), asked)


@pytest.mark.parametrize(
    "method",
    [
        dr.DenoisingConfig(dr.TimeSampler(), encoder_from="other", freeze_encoder=True),
        dr.DenoisingConfig(dr.TimeSampler(), light_from="other"),
        replace(DUAL, encoder_from="other"),
        replace(DUAL, light_from="other"),
        replace(DUAL, student_from="other"),
        ConsistencyConfig(4, "one", heavy=2, student_from="other"),
    ],
)
def test_parts_of_a_model_of_other_latents_are_refused(method):
    def of(codec: str, networks: NetworksConfig = ONE) -> dr.Model:
        plain = student(networks, dr.DenoisingConfig(dr.TimeSampler() if networks == TWO else SingleTime()))
        parts, denoiser = networks.build(plain.process)
        latents = replace(plain, codec=CodecFolder(codec, codec * 16))
        return replace(teacher(), experiment=latents, networks=parts, denoiser=denoiser)

    whole = getattr(method, "student_from", None) is not None
    made = replace(student(TWO, method), codec=CodecFolder("mine", "mine" * 16))
    for codec, refused in (("mine", False), ("else", True)):
        other = of(codec, TWO if whole else ONE)
        asked = replace(start([]), load=lambda run, other=other: other if run == "other" else of("mine"))
        if not refused:
            assert method.prepare(made, asked).weights
            continue
        with pytest.raises(ValueError, match="are of latents by different codecs"):
            method.prepare(made, asked)


def test_labels_are_dropped_only_where_a_null_class_is_trained():
    @dataclass(frozen=True)
    class WithoutNull(dr.OneNetwork):
        null_class = False

    with pytest.raises(ValueError, match=r"has no null class, which 10% of the images would train: set label_dropout"):
        student(WithoutNull(NET), dr.DenoisingConfig())
    student(WithoutNull(NET), dr.DenoisingConfig(label_dropout=0.0))
    student(WithoutNull(replace(NET, num_classes=0)), dr.DenoisingConfig())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_exits_beside_a_network_whose_null_class_is_untrained_stay_without(dropout):
    deep = replace(NET, levels=(NET.levels[0], dr.Level("transformer", 16, 2)))
    labelled = teacher(levels=deep.levels)
    labelled = replace(labelled, experiment=student(dr.OneNetwork(deep), dr.DenoisingConfig(label_dropout=0.0)))
    config, asked = EarlyExitConfig("one", label_dropout=dropout), replace(start([]), load=lambda run: labelled)
    if not dropout:
        assert config.prepare(student(EarlyExitNetwork(deep), config), asked).weights
        return
    with pytest.raises(ValueError, match="set label_dropout to 0"):
        config.prepare(student(EarlyExitNetwork(deep), config), asked)


def test_consistency_trains_no_decoder():
    decoder = OneConditional(replace(NET, num_classes=0), (4, 2, 2))
    with pytest.raises(ValueError, match="is a decoder, which consistency does not train"):
        student(decoder, ConsistencyConfig(4))
