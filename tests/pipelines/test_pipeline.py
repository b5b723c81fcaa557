"""`DualRatePipeline`: what diffusers expects of a pipeline, and images that are those of `dualrate.sample`."""

import json
import os
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
pytest.importorskip("diffusers")

import diffusers
import diffusers.callbacks
import torch
from runs.made import ONE, TWO, saved
from trouble import flip_each

import dualrate as dr
from dualrate.data.images import to_uint8
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.pipelines import call
from dualrate.pipelines.export import DualRatePipeline
from dualrate.pipelines.parts import DualRateNetwork, DualRateScheduler
from dualrate.runs.store import write_class_names
from dualrate.sampling.trajectory import trajectory
from dualrate.system.folders import MANIFEST

SEEDS, STEPS, HEAVY = [3, 2**40], 4, 2
NAMES = ("circle", "square", "Dreieck, gleichseitig")


def generators(seeds=SEEDS):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(pipe, **how):
    return pipe(output_type="latent", **{"generator": generators(), **how}).images


def sampled(model, choice, seeds=SEEDS, guidance=1.0, labels=None):
    drawer = choice.drawer(model, precision="float32", guidance=dr.Guidance(guidance))
    labels = drawer.labels(seeds) if labels is None else labels
    return next(dr.sample_batches(drawer.denoiser, drawer.step, drawer.plan, model.shape, seeds, labels))


@pytest.fixture(scope="module", params=[ONE, TWO], ids=["one-network", "dual-rate"])
def made(request, tmp_path_factory):
    """(model, the folder of its pipeline, the pipeline read from there). Not to be changed."""
    place = tmp_path_factory.mktemp("made")
    write_class_names(saved(request.param, place / "run"), NAMES)
    model = dr.load(place / "run", note=lambda text: None)
    choice = dr.Choice(steps=STEPS, heavy=HEAVY if model.reuses_context else None)
    DualRatePipeline.of(model, choice).save_pretrained(place / "pipe")
    pipe = DualRatePipeline.from_pretrained(place / "pipe")
    pipe.set_progress_bar_config(disable=True)
    return model, choice, place / "pipe", pipe


@pytest.fixture
def model(made):
    return made[0]


@pytest.fixture
def choice(made):
    return made[1]


@pytest.fixture
def folder(made):
    return made[2]


@pytest.fixture
def pipe(made):
    return made[3]


# Images


def test_images_are_those_of_sample_bit_for_bit(model, choice, pipe):
    assert torch.equal(drawn(pipe), sampled(model, choice))
    assert pipe.num_timesteps == STEPS


def test_guidance_and_classes_too(model, choice, pipe):
    images = drawn(pipe, guidance_scale=2.0, class_labels=[2, 0])
    assert torch.equal(images, sampled(model, choice, guidance=2.0, labels=[2, 0]))
    assert pipe.guidance_scale == 2
    assert torch.equal(drawn(pipe, class_labels=1), sampled(model, choice, labels=[1, 1]))
    with pytest.raises(ValueError, match=r"guidance_scale: weight is a number from -100 to 100, got '3'"):
        pipe(guidance_scale="3")


@pytest.mark.parametrize(
    "labels",
    [
        ["Dreieck, gleichseitig", "circle"],
        (np.int64(2), np.int32(0)),
        torch.tensor([2, 0]),
        np.array([2, 0]),
        [torch.tensor(2), 0],
        range(2, -1, -2),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_classes_are_given_by_number_of_any_kind_or_by_name(model, choice, pipe, labels):
    assert torch.equal(drawn(pipe, class_labels=labels), sampled(model, choice, labels=[2, 0]))


@pytest.mark.parametrize("label", ["square", np.int64(1), torch.tensor(1), np.array(1)], ids=repr)
def test_one_class_is_for_all_images(model, choice, pipe, label):
    assert torch.equal(drawn(pipe, class_labels=label), sampled(model, choice, labels=[1, 1]))


def test_steps_heavy_calls_and_plans_are_of_the_call_where_it_says_them(model, choice, pipe):
    three = dr.Choice(steps=3, heavy=1) if model.reuses_context else dr.Choice(steps=3)
    heavy = 1 if model.reuses_context else None
    assert torch.equal(drawn(pipe, num_inference_steps=3, num_heavy=heavy), sampled(model, three))
    plan = dr.StepPlan.at((1, 0.6, 0.2, 0), [0, 1, 2])
    assert torch.equal(drawn(pipe, plan=plan), sampled(model, dr.Choice(plan=plan)))
    with pytest.raises(ValueError, match="drop steps"):
        pipe(plan=plan, num_inference_steps=3)


def test_a_batch_is_its_images_one_by_one(pipe):
    alone = [drawn(pipe, generator=generators([seed])) for seed in SEEDS]
    torch.testing.assert_close(drawn(pipe), torch.cat(alone), rtol=0, atol=1e-5)


def test_a_generator_goes_on_and_stands_for_its_seed_at_first(model, choice, pipe):
    generator = torch.Generator().manual_seed(SEEDS[0])
    first, second = (drawn(pipe, generator=generator) for _ in range(2))
    assert torch.equal(first, sampled(model, choice, SEEDS[:1]))
    assert not torch.equal(first, second)
    both = drawn(pipe, generator=torch.Generator().manual_seed(SEEDS[0]), batch_size=2)
    torch.testing.assert_close(both, torch.cat((first, second)), rtol=0, atol=1e-5)


def test_without_a_generator_torchs_own_seed_counts(pipe):
    with torch.random.fork_rng([]):
        torch.manual_seed(SEEDS[0])
        assert torch.equal(drawn(pipe, generator=None), drawn(pipe, generator=generators(SEEDS[:1])))


def test_latents_are_the_noise_to_start_from(pipe):
    noise = Draws(0, torch.tensor(SEEDS)).normal("start", 1, 8, 8)
    assert torch.equal(drawn(pipe, latents=noise), drawn(pipe))
    assert not torch.equal(drawn(pipe, latents=-noise), drawn(pipe))
    with pytest.raises(ValueError, match=r"latents are \(B, 1, 8, 8\), got"):
        drawn(pipe, latents=noise[:, :, :4])


def test_outputs_agree(pipe):
    latent = drawn(pipe)
    images = {kind: pipe(generator=generators(), output_type=kind).images for kind in ("pil", "np", "pt")}
    assert images["np"].shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(images["np"], images["pt"].permute(0, 2, 3, 1))
    torch.testing.assert_close(images["pt"], (latent / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images["pil"]]), to_uint8(latent)[:, 0])
    (tuple_of,) = pipe(generator=generators(), output_type="latent", return_dict=False)
    assert torch.equal(tuple_of, latent)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"class_labels": [3]}, "knows the classes 0 to 2"),
        ({"class_labels": torch.tensor([0, 3])}, "knows the classes 0 to 2, got label 3"),
        ({"class_labels": ["squares"]}, "has no class 'squares': give square"),
        ({"class_labels": "?"}, r"has no class '\?': give circle, square, Dreieck, gleichseitig"),
        ({"class_labels": 1.5}, r"a class is given by its number, a whole one, or its name, got 1\.5"),
        ({"class_labels": torch.tensor([0.0])}, r"or its name, got 0\.0"),
        ({"class_labels": torch.tensor([[0]])}, r"or its name, got \[0\]"),
        ({"class_labels": True}, "or its name, got True"),
        ({"class_labels": {"square"}}, "or its name, got {'square'}"),
        ({"class_labels": [0], "batch_size": 2}, "must agree: got batch_size 2, class_labels 1"),
        ({"generator": []}, "1 or more"),
        ({"num_images_per_prompt": 4}, "makes images of no prompts: say how many by batch_size"),
        ({"prompt": "a cat"}, "makes images of no prompts: drop the prompt"),
        ({"negative_prompt": "a cat"}, "makes images of no prompts: drop the prompt"),
        ({"output_type": "jpeg"}, "output_type is one of pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["eps"]}, "a callback can have latents"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(pipe, how, message):
    with pytest.raises(ValueError, match=message):
        pipe(**how)


# Callbacks


@pytest.mark.parametrize("labels", ["a cat", ["a cat", "a dog"]])
def test_a_text_is_called_a_prompt_where_there_are_no_classes(labels, tmp_path):
    net = replace(ONE.networks.model, num_classes=0)
    model = dr.load(saved(replace(ONE, networks=replace(ONE.networks, model=net)), tmp_path / "run"))
    with pytest.raises(ValueError, match="makes images of no prompts: drop the prompt"):
        DualRatePipeline.of(model)(labels)
    with pytest.raises(ValueError, match="has no classes: drop the label"):
        DualRatePipeline.of(model)([1])


def test_a_callback_sees_every_step(pipe):
    seen = []

    def callback(pipeline, step, t, tensors):
        seen.append((step, t, tensors["latents"].clone()))
        return tensors

    images = drawn(pipe, callback_on_step_end=callback)
    assert [step for step, _, _ in seen] == list(range(STEPS))
    assert tuple(t for _, t, _ in seen) == pipe.scheduler.choice.plan.t[:-1]
    assert torch.equal(seen[-1][2], images)
    assert torch.equal(images, drawn(pipe))


@pytest.mark.parametrize("in_place", [True, False])
def test_changed_latents_are_taken_over_with_a_context_of_their_own(model, pipe, in_place):
    """As a sampling that starts at the latents, after the first step, with a heavy call there."""
    other = Draws(1, torch.tensor(SEEDS)).normal("start", 1, 8, 8)

    def callback(pipeline, step, t, tensors):
        if step == 0:
            return {"latents": tensors["latents"].copy_(other) if in_place else other}
        return {}

    plan = dr.StepPlan.at(3, [0])  # the second step would reuse the first one's context
    anew = dr.StepPlan.at(plan.t, [0, 1])
    drawer = dr.Choice(plan=anew if model.reuses_context else dr.StepPlan.uniform(3)).drawer(model, precision="float32")
    noise = Draws(0, torch.tensor(SEEDS))
    cond = dr.Cond(torch.tensor(drawer.labels(SEEDS)))

    def draw(step, k):
        return noise.normal(f"step {step} draw {k}", 1, 8, 8)

    *_, last = trajectory(drawer.denoiser, drawer.step, drawer.plan, other, cond, draw, start=1)
    found = drawn(pipe, plan=plan if model.reuses_context else drawer.plan, callback_on_step_end=callback)
    assert torch.equal(found, last.z)


def test_a_heavy_call_that_changed_latents_ask_for_where_the_encoder_was_not_trained_is_told(model):
    if not model.reuses_context:
        pytest.skip("it has one network")
    method = replace(model.experiment.method, times=dr.TimeSampler(heavy=(1, 2), first=(0.8, 0.8)))  # from 0.4 on
    late = replace(model, experiment=replace(model.experiment, method=method))
    drawer = dr.Choice(plan=dr.StepPlan.at(8, [2])).drawer(late, precision="float32")
    cond, draws = dr.Cond(torch.tensor(drawer.labels(SEEDS))), Draws(0, torch.tensor(SEEDS))

    def draw(changed_after):
        def changed(step, t, z):
            return 0.5 * z if step == changed_after else z

        return call.sampled(drawer, draws, cond, None, lambda: None, changed, lambda: False)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(3)  # the next step begins at 0.5
    with pytest.warns(UserWarning, match=r"before step 5, which so makes a heavy call.*was not trained: change"):
        draw(4)  # at 0.375


def test_latents_that_change_again_where_the_encoder_was_trained_are_no_reason_to_warn(model):
    if not model.reuses_context:
        pytest.skip("it has one network")
    method = replace(model.experiment.method, times=dr.TimeSampler(heavy=(1, 2), first=(0.8, 0.8)))
    late = replace(model, experiment=replace(model.experiment, method=method))
    with pytest.warns(UserWarning, match="1 of the plan's 1 heavy calls are"):
        drawer = dr.Choice(plan=dr.StepPlan.at(8, [0])).drawer(late, precision="float32")
    cond, draws = dr.Cond(torch.tensor(drawer.labels(SEEDS))), Draws(0, torch.tensor(SEEDS))

    def changed(step, t, z):
        return 0.5 * z if step in (0, 3) else z

    with pytest.warns(UserWarning, match="before step") as told:
        call.sampled(drawer, draws, cond, None, lambda: None, changed, lambda: False)
    assert [str(warning.message)[:37] for warning in told] == ["the latents changed before step 1, wh"]  # at 0.875


def test_latents_of_another_shape_are_refused_where_a_callback_gives_them(pipe):
    with pytest.raises(ValueError, match=r"a callback is given latents of .*, and returned"):
        drawn(pipe, callback_on_step_end=lambda pipeline, step, t, given: {"latents": given["latents"][:1]})


@pytest.mark.parametrize("name", ["_interrupt", "interrupt"])
def test_a_callback_that_interrupts_ends_the_steps(pipe, name):
    """As in diffusers: the images are of the latents so far, and the next call has all its steps."""
    seen = []

    def callback(pipeline, step, t, tensors):
        seen.append(tensors["latents"].clone())
        setattr(pipeline, name, step == 1)
        return {}

    images = drawn(pipe, callback_on_step_end=callback)
    assert len(seen) == 2
    assert torch.equal(images, seen[-1])
    assert pipe.interrupt
    whole = drawn(pipe)
    assert not torch.equal(whole, images)
    assert not pipe.interrupt
    seen.clear()
    images = pipe(generator=generators(), callback_on_step_end=callback, output_type="pt").images
    torch.testing.assert_close(images, (seen[-1] / 2 + 0.5).clamp(0, 1))


def test_an_interrupt_from_another_place_ends_the_steps_without_a_callback(pipe, monkeypatch):
    steps, bar = [], pipe.progress_bar

    @contextmanager
    def watched(**settings):
        with bar(**settings) as inner:

            def update():
                steps.append(1)
                pipe._interrupt = True
                return inner.update()

            yield SimpleNamespace(update=update)

    monkeypatch.setattr(pipe, "progress_bar", watched)
    drawn(pipe)
    assert len(steps) == 1


@pytest.mark.parametrize("returned", [None, {}, {"prompt_embeds": None}])
def test_a_callback_may_return_nothing(pipe, returned):
    assert torch.equal(drawn(pipe, callback_on_step_end=lambda *given: returned), drawn(pipe))

    def zeroed(pipeline, step, t, tensors):
        tensors["latents"].zero_()

    assert not drawn(pipe, callback_on_step_end=zeroed).any()


@pytest.mark.parametrize(
    "returned", [0, "latents", [torch.zeros(2, 1, 8, 8)], torch.zeros(2, 1, 8, 8), {"latents": None}]
)
def test_what_a_callback_cannot_return_is_refused(pipe, returned):
    with pytest.raises(ValueError, match=r'a callback returns \{"latents": a tensor\}, \{\} or None, got \w+'):
        drawn(pipe, callback_on_step_end=lambda *given: returned)


def test_callbacks_of_diffusers_class_say_what_they_see(pipe):
    class Doubled(diffusers.callbacks.PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            seen.append(step_index)
            return callback_kwargs

    seen = []
    both = diffusers.callbacks.MultiPipelineCallbacks([Doubled(), Doubled()])
    assert torch.equal(drawn(pipe, callback_on_step_end=both, callback_on_step_end_tensor_inputs=[]), drawn(pipe))
    assert seen == [step for step in range(STEPS) for _ in range(2)]
    with pytest.raises(ValueError, match="a callback can have latents"):
        drawn(pipe, callback_on_step_end=diffusers.callbacks.SDCFGCutoffCallback())


def test_the_last_latents_may_be_replaced(pipe):
    def callback(pipeline, step, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else tensors

    assert not drawn(pipe, callback_on_step_end=callback).any()


# Files


def test_what_is_saved_again_is_the_same(pipe, folder, tmp_path):
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    files = {file.relative_to(folder) for file in folder.rglob("*")}
    assert files == {file.relative_to(tmp_path) for file in tmp_path.rglob("*")}
    for file in files:
        if file.suffix in (".py", ".safetensors"):
            assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file
    again = DualRatePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(again), drawn(pipe))


def test_a_folder_of_texts_where_it_is_saved_from_is_none_of_its_own(model, choice, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    DualRatePipeline.of(model, choice).save_pretrained("pipe")
    assert not (tmp_path / "pipe" / "texts").exists()


def test_the_plan_is_in_the_schedulers_file_and_swapped_with_it(model, pipe, folder):
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert dr.StepPlan.from_json(json.dumps(config["plan"])) == pipe.scheduler.choice.plan
    assert config["sampler"] == "sde-dpm++2m"
    plan = dr.StepPlan.uniform(2)
    for written in (plan, json.loads(plan.to_json())):
        scheduler = DualRateScheduler.from_config(pipe.scheduler.config, plan=written, sampler="ddim", gamma=None)
        assert json.loads(scheduler.to_json_string())["plan"] == json.loads(plan.to_json())
        other = DualRatePipeline(**{**pipe.components, "scheduler": scheduler})
        other.set_progress_bar_config(disable=True)
        assert torch.equal(drawn(other), sampled(model, dr.Choice(sampler="ddim", plan=plan)))


def test_a_scheduler_made_of_a_config_has_all_of_it():
    choice = dr.Choice(sampler="ddim", plan=dr.StepPlan.uniform(2))
    scheduler = DualRateScheduler.of(choice, dr.Guidance(3.0))
    again = DualRateScheduler.from_config(scheduler.config)
    assert (again.choice, again.config["guidance_scale"]) == (choice, 3)


def test_other_numbers_of_steps_keep_the_grid_and_the_places_of_the_export(model, tmp_path):
    wish = {"grid": "karras", "places": "even" if model.reuses_context else None}
    DualRatePipeline.of(model, dr.Choice(steps=STEPS, **wish)).save_pretrained(tmp_path / "pipe")
    pipe = DualRatePipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(pipe, num_inference_steps=3), sampled(model, dr.Choice(steps=3, **wish)))
    assert pipe.scheduler.asked(None, 2, None) == replace(pipe.scheduler.asked(STEPS, 2, None), steps=STEPS)
    pipe.scheduler = DualRateScheduler(sampler="ddim", grid="karras")
    choice = dr.Choice(steps=3, sampler="ddim", grid="karras")
    assert torch.equal(drawn(pipe, num_inference_steps=3), sampled(model, choice))
    with pytest.raises(ValueError, match="there is no grid 'steep'"):
        DualRateScheduler(grid="steep")


def test_a_plan_of_other_noise_levels_is_refused(model, pipe, folder):
    steeper = replace(model.experiment, process=GaussianProcess(Cosine(shift=-2.0)))
    other = DualRatePipeline.of(replace(model, experiment=steeper), dr.Choice(steps=STEPS))
    with pytest.raises(ValueError, match="of another model's noise levels: take that of this"):
        DualRatePipeline(**{**pipe.components, "scheduler": other.scheduler})
    later = DualRatePipeline.from_pretrained(folder)
    later.scheduler = other.scheduler
    with pytest.raises(ValueError, match="of another model's noise levels"):
        later()
    later.scheduler = DualRateScheduler(plan=other.scheduler.choice.plan)
    assert later(output_type="latent").images.isfinite().all()


def test_a_scheduler_of_diffusers_is_refused_with_what_to_pass(pipe, folder):
    theirs = diffusers.DDIMScheduler()
    for scheduler in (theirs, diffusers.DDIMScheduler.from_config(pipe.scheduler.config)):
        with pytest.raises(ValueError, match=r"scheduler is a DualRateScheduler, got DDIMScheduler: .*ancestral"):
            DualRatePipeline.from_pretrained(folder, scheduler=scheduler)
    later = DualRatePipeline.from_pretrained(folder)
    later.scheduler = theirs
    with pytest.raises(ValueError, match="got DDIMScheduler"):
        later()
    later.scheduler = DualRateScheduler.from_pretrained(folder, subfolder="scheduler", sampler="ancestral", gamma=None)
    later.set_progress_bar_config(disable=True)
    choice = dr.Choice(plan=pipe.scheduler.choice.plan, sampler="ancestral")
    assert torch.equal(drawn(later), sampled(pipe.as_model(), choice))


def test_names_of_classes_are_in_the_index_and_kept_by_saving_again(pipe, folder, tmp_path):
    assert pipe.as_model().class_names == NAMES
    pipe.save_pretrained(tmp_path)
    for place in (folder, tmp_path):
        index = json.loads((place / "model_index.json").read_text())
        assert index["id2label"] == {"0": NAMES[0], "1": NAMES[1], "2": NAMES[2]}
        assert index["_class_name"] == ["pipeline", "DualRatePipeline"]


def test_a_flipped_bit_in_any_file_is_an_error_that_names_the_folder(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "pipe")
    files = [file for file in place.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"model_index.json", "pipeline.py", "config.json", MANIFEST}
    for file in flip_each(files):
        with pytest.raises(OSError, match=rf"{file.parent} is damaged \("):
            DualRatePipeline.from_pretrained(place)
    DualRatePipeline.from_pretrained(place)


def test_an_exported_pipeline_is_no_model_and_says_what_reads_it(folder):
    with pytest.raises(ValueError, match=r"is a pipeline that dualrate exported: DualRatePipeline\.from_pretrained"):
        dr.load(folder)


def test_a_folder_of_something_else_is_no_pipeline_and_says_what_makes_one(folder):
    with pytest.raises(ValueError, match=r"has no model_index\.json: `dualrate export RUN --to diffusers` makes"):
        DualRatePipeline.from_pretrained(folder.parent / "run")


def test_a_pipeline_of_another_class_says_what_makes_a_model_of_it(tmp_path):
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "_diffusers_version": "0.30"})
    )
    with (
        pytest.warns(UserWarning, match=r"has no MANIFEST"),
        pytest.raises(
            ValueError, match=r"index\.json: it is a DDPMPipeline: dr\.load\(FOLDER\) or dr\.from_diffusers\("
        ),
    ):
        DualRatePipeline.from_pretrained(tmp_path)


def test_a_network_alone_is_checked_too(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "pipe")
    role = next(path.name for path in place.iterdir() if path.name in ("light", "model"))
    network = DualRateNetwork.from_pretrained(place, subfolder=role, use_safetensors=True)
    assert network.config["role"] == role
    weights = place / role / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode == (place / role / "config.json").stat().st_mode
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(OSError, match="is damaged"):
        DualRateNetwork.from_pretrained(place / role, use_safetensors=True)


def test_a_folder_without_a_manifest_warns(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "pipe")
    (place / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="nothing tells whether it is what was saved"):
        DualRatePipeline.from_pretrained(place)


def test_nothing_is_pushed_by_saving(pipe, tmp_path):
    with pytest.raises(ValueError, match="save the pipeline, then push it"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


# Precision, parts, offloading


@pytest.mark.parametrize("late", [True, False])
def test_bfloat16_is_the_projects_own(model, choice, folder, late):
    how = {} if late else {"dtype": torch.bfloat16}
    pipe = DualRatePipeline.from_pretrained(folder, **how)
    pipe = pipe.to(torch.bfloat16) if late else pipe
    pipe.set_progress_bar_config(disable=True)
    drawer = choice.drawer(model, precision="bfloat16")
    of = (drawer.denoiser, drawer.step, drawer.plan, model.shape, SEEDS, drawer.labels(SEEDS))
    assert torch.equal(drawn(pipe), next(dr.sample_batches(*of, bfloat16=True)))
    assert pipe.dtype == torch.bfloat16
    pipe.to(torch.float32)
    assert {part.dtype for part in pipe.transformer.parameters()} == {torch.float32}


def test_a_network_takes_the_dtypes_that_it_computes_in(folder, pipe):
    role = "light" if pipe.light is not None else "model"
    for name in ("dtype", "torch_dtype"):
        read = DualRateNetwork.from_pretrained(folder, subfolder=role, **{name: "auto"})
        assert (read.dtype, {weight.dtype for weight in read.parameters()}) == (torch.float32, {torch.float32})
        for wrong in (torch.float64, "bfloat16", torch.int8):
            with pytest.raises(ValueError, match=r"dtype is torch\.float32, torch\.float16 or torch\.bfloat16, got"):
                DualRateNetwork.from_pretrained(folder, subfolder=role, **{name: wrong})
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        DualRatePipeline.from_pretrained(folder).to(torch.float64)
    assert read.to("cpu", torch.float16).dtype == torch.float16
    assert read.to(dtype=torch.float32).dtype == torch.float32


def test_the_heavy_network_alone_is_offloaded(model, pipe):
    sequence = DualRatePipeline.model_cpu_offload_seq.split("->")
    light = set(model.networks) - set(sequence)
    assert light <= set(DualRatePipeline._exclude_from_cpu_offload)
    assert pipe.transformer._repeated_blocks == ["ConvBlock", "TransformerBlock"]


def test_networks_of_several_models_or_none_are_refused(made, pipe, tmp_path):
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, DualRateNetwork)}
    with pytest.raises(ValueError, match="got none"):
        DualRatePipeline(pipe.scheduler)
    role, part = next(iter(parts.items()))
    plain = {**part.config["experiment"], "name": "other"}
    other = DualRateNetwork(role, plain)
    with pytest.raises(ValueError, match=r"networks of one model.*several|has networks"):
        DualRatePipeline(pipe.scheduler, **{**parts, role: other, **({} if len(parts) > 1 else {"light": part})})
    if len(parts) > 1:
        with pytest.raises(ValueError, match="has networks encoder, light; got light"):
            DualRatePipeline(pipe.scheduler, light=parts["light"])


def test_what_a_folder_cannot_hold_is_refused(model):
    latents = replace(model)
    latents.__dict__["codec"] = "one of latents"
    with pytest.raises(ValueError, match="draws latents of a str, no codec of diffusers"):
        DualRatePipeline.of(latents)


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "weights"])
def test_a_pipe_among_the_files_is_refused_and_not_waited_for(folder, tmp_path, name):
    copied = shutil.copytree(folder, tmp_path / "pipe")
    file = next(copied.rglob("*.safetensors")) if name == "weights" else copied / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises((ValueError, OSError), match=r"is a named pipe|model_index"):
        DualRatePipeline.from_pretrained(copied)
