"""A text-to-image model: encoded, retrofitted, and drawn from by texts, guided; and what is refused."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli.command import call
from latents import autoencoders
from latents.autoencoders import photos
from pipelines.models import diffusers, flux, randomised
from pipelines.stub_texts import embedding, encoders, text_pipeline
from pipelines.test_retrofit import saved, tiny_recipe

import dualrate as dr
from dualrate.comparison import compare as comparison
from dualrate.data.condition_rows import Given
from dualrate.data.latent_set import read_latents
from dualrate.data.loader import Augment, Batches
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Refresh
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Guidance, measured_on, real_batches
from dualrate.drawing.planning import measured_errors
from dualrate.experiment.experiment import Start
from dualrate.methods.times import TimeSampler
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.features import Architecture, Card, FeatureNet
from dualrate.metrics.trained_network import weight_bytes
from dualrate.pipelines import clip
from dualrate.pipelines import prompt_set as prompts
from dualrate.pipelines import recipe as retrofit
from dualrate.pipelines.prompt_set import read_prompts
from dualrate.pipelines.retrofitted import encoder_of, prompts_of
from dualrate.recipes import auto
from dualrate.recipes.students import plain_student
from dualrate.runs.store import called_by
from dualrate.sampling.planner import NO_CONTEXT
from dualrate.system.progress import Silent

COUNT = 20
ON_CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pipeline, latents with prompts and without, and a run of four iterations."""
    root, images = tmp_path_factory.mktemp("retrofit-prompts"), photos(COUNT)
    text_pipeline(root / "model", images)
    np.savez(root / "images.npz", images=images.transpose(0, 2, 3, 1))
    (root / "captions.txt").write_text("\n".join(f"picture {i}" for i in range(COUNT)))
    with pytest.MonkeyPatch.context() as patch:
        tiny_recipe(patch)
        encoders(patch)
        how = ("--no-mirrored", *ON_CPU)
        texts = ("--prompts", root / "captions.txt", root / "model")
        assert call(patch, "data", "encode", root / "images.npz", root / "latents", *texts, *how) == 0
        codec = ("--codec", root / "model" / "vae")
        assert call(patch, "data", "encode", root / "images.npz", root / "mute", *codec, *how) == 0
        options = ("--data.source", root / "latents", "--share", "1", *ON_CPU, "--out", root / "run")
        assert call(patch, "retrofit", root / "model", *options) == 0
    return root


@pytest.fixture(autouse=True)
def read(monkeypatch):
    tiny_recipe(monkeypatch)
    return encoders(monkeypatch)


def direct(root):
    """The pipeline's own network, its empty prompt what the encoders make of none."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    net = UNet2DConditionModel.from_pretrained(root / "model" / "unet")
    scheduler = DDIMScheduler.from_pretrained(root / "model" / "scheduler")
    return dr.from_diffusers(net, scheduler, negative={"encoder_hidden_states": embedding("")[None]})


def test_the_run_holds_the_empty_prompt_and_is_guided_as_the_pipeline_at_heavy_steps(root):
    run, model = dr.load(root / "run"), direct(root)
    torch.testing.assert_close(run.networks["encoder"].net.empty.flatten(), embedding("").flatten())
    cond = dr.prompts(model, {"encoder_hidden_states": embedding("a red circle")[None]})
    plan, step = dr.StepPlan.uniform(4), dr.DDIM(run.process)

    def images(denoiser):
        guided = Guided(denoiser, run.process, 3.0, null=1)
        return next(dr.sample_batches(guided, step, plan, (4, 8, 8), [3], [0], given=lambda seeds: cond.given))

    torch.testing.assert_close(images(run.denoiser), images(model))


def test_what_trains_is_the_light_network_and_prompts_are_dropped(root):
    run, own = dr.load(root / "run"), direct(root).network.net.state_dict()
    encoder = run.networks["encoder"].net.net.state_dict()
    assert all(torch.equal(encoder[name], weight) for name, weight in own.items())
    assert run.experiment.method.label_dropout == 0.1
    plan = dr.Choice(steps=8, heavy=2).drawer(run).plan
    assert plan.refresh[0] is Refresh.FULL  # the light network alone knows no text


def test_each_latent_trains_with_its_own_prompt(root):
    experiment = dr.load(root / "run").experiment
    data = experiment.seen(experiment.data.load("train"))
    index, draws = np.arange(len(data)), Draws(0, torch.arange(len(data)))
    assert set(data.labels) == {0}
    captions = {embedding(f"picture {i}").half().numpy().tobytes(): i for i in range(COUNT)}
    kept = [captions[prompt.numpy().tobytes()] for prompt in data.partners(index, draws, Augment())]
    codec = experiment.codec.build(torch.nn.ModuleDict(), "cpu")
    expected = codec.encode(torch.tensor(photos(COUNT)[kept]) / 127.5 - 1).mean
    torch.testing.assert_close(data.rows(index, draws, Augment())[:, 0].float(), expected, rtol=1e-2, atol=1e-2)
    batch = Batches(data, 6, 0).batch(2)
    assert (batch.given.dtype, batch.given.shape) == (torch.float32, (6, 1, 1, 924))
    assert all(one.half().numpy().tobytes() in captions for one in batch.given)


def sample(patch, root, out, *options, steps="2"):
    how = ("--steps", steps, *ON_CPU, "--out", out)
    return call(patch, "sample", root, *how, *options)


def test_texts_files_and_encoded_prompts_are_drawn_with_members(root, tmp_path, monkeypatch, read):
    guided = ("--guidance", "3", "--members", "2")
    assert sample(monkeypatch, root / "run", tmp_path / "one", "--prompt", "a red circle", *guided, "--npz") == 0
    assert len(list((tmp_path / "one").glob("000*.png"))) == 2
    with np.load(tmp_path / "one" / "images.npz") as archive:
        assert len(archive["arr_0"]) == len(archive["arr_1"])
    (tmp_path / "two.txt").write_text("a blue square\na red circle\n")
    assert sample(monkeypatch, root / "run", tmp_path / "two", "--prompt", tmp_path / "two.txt", *guided) == 0
    assert len(list((tmp_path / "two").glob("000*.png"))) == 4
    texts = sum(one.texts for one in read)
    assert sample(monkeypatch, root / "run", tmp_path / "held", "--prompt", root / "latents") == 0
    assert sample(monkeypatch, root / "run", tmp_path / "own", "--num", "2") == 0
    assert sum(one.texts for one in read) == texts  # nothing was encoded for them
    first = [(tmp_path / out / "000000.png").read_bytes() for out in ("held", "own")]
    assert first[0] == first[1]
    assert sample(monkeypatch, root / "model", tmp_path / "whole", "--prompt", "a red circle", "--guidance", "3") == 0


def test_texts_of_a_file_are_encoded_as_they_are_drawn(root, tmp_path, monkeypatch, read):
    monkeypatch.setattr(prompts, "HELD", 2)
    texts = [f"picture {i}" for i in range(5 * prompts.AT_A_TIME + 3)]
    (tmp_path / "many.txt").write_text("\n".join(texts))
    run = dr.load(root / "run")
    given = prompts_of(run.experiment, str(tmp_path / "many.txt"), "cpu")
    model = run.with_given(given)
    assert read[-1].texts == prompts.AT_A_TIME  # so that what refuses does so at once
    for seeds in ([0, 1], [82, 3, 0, 82], [len(texts) + 40]):
        expected = torch.stack([embedding(texts[seed % len(texts)]).reshape(1, 1, -1) for seed in seeds])
        torch.testing.assert_close(given(torch.tensor(seeds)), expected, rtol=0, atol=0)
    assert read[-1].texts == 2 * prompts.AT_A_TIME + 3
    for seed in range(len(texts)):
        given(torch.tensor([seed]))
    assert given.y._held.cache_info().currsize == 2
    assert torch.equal(pickle.loads(pickle.dumps(given))(torch.tensor([82])), given(torch.tensor([82])))
    other = Given(prompts.EncodedPrompts([*texts[:-1], "else"], encoder_of(run.experiment), "cpu"))
    assert model.identity not in (run.identity, run.with_given(other).identity)


def test_the_empty_prompt_is_kept_by_what_it_depends_on(root):
    of = encoder_of(dr.load(root / "run").experiment)
    others = (replace(of, fingerprint="other"), replace(of, network=replace(of.network, tokens=5)))
    assert len({one.cache_file for one in (of, *others)}) == 3
    assert replace(of, folder="elsewhere").cache_file == of.cache_file


def test_texts_without_the_pipeline_that_reads_them_are_refused(root, tmp_path, monkeypatch, capsys):
    run, model = root / "run", root / "model"

    def refused(why, prompt="a red circle", of=run):
        assert sample(monkeypatch, of, tmp_path / "out", "--prompt", prompt) == 2
        assert why in " ".join(capsys.readouterr().err.split())

    refused("no text: give one", "")
    refused("nowhere.txt", "nowhere.txt")
    refused("mute has no prompts", root / "mute")
    refused("images.npz is no .txt file: a prompt is a text", root / "images.npz")
    (model / "tokenizer" / "more").write_text("x")
    try:
        refused("are others (sha256")
    finally:
        (model / "tokenizer" / "more").unlink()
    model.rename(root / "away")
    try:
        refused("gone from")
        assert sample(monkeypatch, run, tmp_path / "kept", "--prompt", root / "latents") == 2  # nor is its VAE there
        capsys.readouterr()
        codec = ("--codec", root / "away" / "vae")
        assert sample(monkeypatch, run, tmp_path / "kept", "--prompt", root / "latents", *codec) == 0
    finally:
        (root / "away").rename(model)
    assert sample(monkeypatch, model, tmp_path / "out") == 2
    assert "pass --prompt TEXT" in capsys.readouterr().err


def test_data_that_do_not_fit_the_model_are_refused(root, tmp_path, monkeypatch):
    def refused(why, data, model=root / "model"):
        with pytest.raises(ValueError, match=why):
            retrofit.RetrofitRecipe(dr.DataConfig(str(data)), share=1.0)(model, Silent())

    refused(r"are images: encode them first .*--prompts CAPTIONS .*model\)", root / "images.npz")
    refused(r"has no prompts, which a text-to-image model is trained on: dualrate data encode", root / "mute")
    other = shutil.copytree(root / "model", tmp_path / "other")
    (other / "tokenizer" / "config.json").write_text("{ }")
    refused(r"by other text encoders .*: encode the captions by .*other, into another folder", root / "latents", other)
    autoencoders.autoencoder("kl").save_pretrained(other / "vae")
    refused("latents by another codec", root / "latents", other)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    distilled = saved(tmp_path / "flux", randomised(flux(guidance_embeds=True)), "transformer", scheduler)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(root / "model" / part, distilled / part)
    refused("guidance was distilled into this FluxTransformer2DModel", root / "latents", distilled)
    with (
        pytest.warns(UserWarning, match=r"guidance was distilled into this Flux.* draw by DDIM"),
        pytest.raises(ValueError, match=r"guidance was distilled into .*flux, so its x_hat is no posterior mean"),
    ):
        plain_student(auto.distilled(), str(distilled), 4)


def test_a_pipeline_that_trains_on_drops_prompts_as_labels_are_dropped(root):
    """The rows that are dropped are those of `with_null`, and their loss is that of the empty prompt."""
    model = dr.load(root / "model")
    experiment = replace(model.experiment, data=dr.DataConfig(str(root / "latents")))
    batch = Batches(experiment.seen(experiment.data.load("train")), 16, 0).batch(0)

    def loss(share, given=batch.given):
        method = replace(experiment, method=dr.DenoisingConfig(label_dropout=share)).method.build(experiment)
        method.networks.load_state_dict(model.networks.state_dict())
        with torch.no_grad():
            return method.phases(0)[0].loss(replace(batch, given=given), 0, batch.draws(0)).total

    empty = model.networks["model"].empty
    dropped = batch.draws(0).host.uniform("label dropout") < 0.3
    assert 0 < dropped.sum() < 16
    mixed = torch.where(dropped[:, None, None, None], empty, batch.given)
    torch.testing.assert_close(loss(0.3), loss(0.0, mixed))
    torch.testing.assert_close(loss(1.0), loss(0.0, empty.expand_as(batch.given)))
    assert loss(0.0) != loss(1.0)


def test_plans_are_searched_on_held_out_latents_with_their_prompts(root):
    run = dr.load(root / "run")
    held = measured_on(run)
    (batch,) = real_batches(run, held, len(held), 4)
    draws = Draws(0, batch.sample)
    expected = read_prompts(root / "latents", "test").rows(batch.sample.numpy(), draws, Augment()).float()
    assert torch.equal(run.given(batch.sample), expected)
    assert batch.label.tolist() == [0] * len(held)
    assert torch.equal(batch.x, read_latents(root / "latents", "test").rows(batch.sample.numpy(), draws, Augment()))


STUDENTS = {
    "moments, two rates": ("--student-from", "run", "--steps", 4, "--heavy", 2, "--guidance", "2"),
    "moments, one rate": ("--source", "latents", "--student", "plain", "--steps", 2, "--guidance", "2"),
    "consistency": ("--method", "consistency", "--source", "latents", "--steps", 2, "--guidance", "2"),
    "em": ("--method", "em", "--source", "latents", "--langevin-steps", 1, "--guidance", "2"),
}


@pytest.mark.parametrize("options", STUDENTS.values(), ids=STUDENTS)
def test_a_model_of_texts_is_distilled_with_its_prompts(root, tmp_path, monkeypatch, options):
    out, own = tmp_path / "student", [root / one if one in ("run", "latents") else one for one in options]
    quick = ("--fit.iterations", 2, "--fit.batch-size", 4, "--fit.sample-every", 2, *ON_CPU, "--out", out)
    assert call(monkeypatch, "distill", "auto", "--teacher", root / "model", *own, *quick) == 0
    student = dr.load(out)
    assert student.experiment.condition == dr.load(root / "run").experiment.condition
    experiment = student.experiment
    batches = Batches(experiment.seen(experiment.data.load("train")), 4, 0)
    start = Start(True, torch.device("cpu"), False, dr.load, batches.batch, print)
    method, batch = experiment.method.prepare(experiment, start).method, batches.batch(0)
    (phase,) = method.phases(0)

    @torch.no_grad()
    def loss(given):
        with torch.random.fork_rng([]):
            return float(phase.loss(replace(batch, given=given), 0, batch.draws(0)).total)

    assert loss(batch.given) == loss(batch.given)
    assert loss(batch.given) != loss(batch.given.flip(0))
    images, steps = tmp_path / "images", "1" if "em" in own else "2"
    assert sample(monkeypatch, out, images, "--prompt", "a red circle", steps=steps) == (2 if "--heavy" in own else 0)


def test_a_student_of_other_texts_or_latents_is_refused(root, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(root / "model", tmp_path / "other")
    (other / "tokenizer" / "config.json").write_text("{ }")
    words = ("auto", "--teacher", other, "--student-from", root / "run", "--steps", 4, "--heavy", 2, *ON_CPU)
    assert call(monkeypatch, "distill", *words, "--out", tmp_path / "student") == 2
    assert "they must be given the same" in " ".join(capsys.readouterr().err.split())
    same = shutil.copytree(root / "model", tmp_path / "same")
    autoencoders.autoencoder("kl").save_pretrained(same / "vae")
    how = ("--prompts", root / "captions.txt", same, "--no-mirrored", *ON_CPU)
    assert call(monkeypatch, "data", "encode", root / "images.npz", tmp_path / "latents", *how) == 0
    for source, why in (
        (tmp_path / "latents", "by different codecs: take latents by one (dualrate data encode"),
        (root / "images.npz", "encode the images by that (dualrate data encode)"),
    ):
        words = ("auto", "--teacher", root / "model", "--source", source, "--student", "plain", "--steps", 4, *ON_CPU)
        capsys.readouterr()
        assert call(monkeypatch, "distill", *words, "--out", tmp_path / "student") == 2
        assert why in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def judge(tmp_path) -> FeatureNet:
    """A feature net with random weights, in tmp_path/judge."""
    arch = Architecture(3, 16, 2, features=4)
    module = arch.build()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    identity = hashlib.sha256(weight_bytes(module)).hexdigest()
    net = FeatureNet(Card("noise", identity, arch, "", None, 0, 1), module.eval().requires_grad_(False))
    net.save(tmp_path / "judge")
    return net


class Words:
    """Model of images and texts, in the place of CLIP: means of parts of an image, and a text's length."""

    identity, metric, dim, usual_count = "words", "CLIP score", 3, 2

    def features(self, images):
        return torch.as_tensor(np.asarray(images)).float().mean((2, 3)) - 127

    def texts(self, texts):
        return torch.tensor([[len(text), -1.0, 2.0] for text in texts])


def scores(captured: str) -> dict[str, float]:
    found = json.loads(captured.splitlines()[-1])
    return {one["metric"]: one["value"] for one in (found["score"], *found["beside"])}


def test_a_run_is_scored_by_images_of_held_out_prompts_or_of_named_ones(root, tmp_path, monkeypatch, capsys, judge):
    """The Frechet distance is from the training images themselves, the CLIP score is of the images' own prompts."""
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    monkeypatch.setattr(clip, "load_clip", lambda folder, device: Words())
    run, count, split = dr.load(root / "run"), 10, "test"
    real = judge.features(run.experiment.data.images("train").images[:])
    held_out = read_prompts(root / "latents", split).texts
    (tmp_path / "two.txt").write_text("a blue square\na red circle\n")
    for texts, how in (
        ([held_out[i] for i in range(len(held_out))], ()),
        (["a blue square", "a red circle"], ("--prompt", tmp_path / "two.txt")),
    ):
        nets = ("--features", f"{tmp_path / 'judge'},{tmp_path / 'clip'}", "--json", *ON_CPU)
        plan = ("--steps", 4, "--heavy", 2, "--guidance", 2, "--num", count, "--batch-size", count)
        assert call(monkeypatch, "evaluate", root / "run", *plan, *nets, *how) == 0
        found = scores(capsys.readouterr().out)
        given = Given(torch.stack([embedding(text).reshape(1, 1, -1) for text in texts]))
        own = run.with_given(given if how else Given(given.y.half()))
        images = dr.Choice(steps=4, heavy=2).drawer(own, guidance=Guidance(2.0)).draw(range(count)).images
        expected = frechet_distance(GaussianStats.of(judge.features(images)), GaussianStats.of(real))
        assert found["FD-noise"] == pytest.approx(expected, rel=1e-4)
        seen, words = Words().features(images).double(), Words().texts(texts * (count // 2)).double()
        cos = (seen * words).sum(1) / (seen.norm(dim=1) * words.norm(dim=1))
        assert found["CLIP score"] == pytest.approx(100 * cos.clamp(min=0).mean().item(), rel=1e-4)
    alone = ("--prompt", tmp_path / "two.txt", "--features", tmp_path / "clip", "--steps", 2, "--num", 4, "--json")
    assert call(monkeypatch, "evaluate", root / "model", *alone, *ON_CPU) == 0  # without a run, without images
    assert 0 <= scores(capsys.readouterr().out)["CLIP score"] <= 100
    assert call(monkeypatch, "evaluate", "--images", root / "images.npz", root / "run", *nets[:2]) == 2
    assert "the texts that they were made of, which are not known here" in " ".join(capsys.readouterr().err.split())


def test_a_pipeline_is_compared_with_its_run_by_the_runs_prompts(root, tmp_path, monkeypatch, judge):
    monkeypatch.setattr(comparison, "SHOWN", 2)
    monkeypatch.setattr(comparison, "seconds_each", lambda *_: 1.0)
    words = ("compare", f"{root / 'run'}:4/2", f"{root / 'model'}:4", "--count", 10, "--screen", 10, *ON_CPU)
    how = ("--features", tmp_path / "judge", "--guidance", 2, "--out", tmp_path / "page.html")
    assert call(monkeypatch, *words, *how, "--mixed") == 0
    rows = {row["network"]: row for row in json.loads((tmp_path / "page.json").read_text())["front"]}
    model = dr.load(root / "model").with_given(dr.load(root / "run").given)
    images = dr.Choice(steps=4).drawer(model, guidance=Guidance(2.0)).draw(range(10)).images
    real = judge.features(dr.load(root / "run").experiment.data.images("train").images[:])
    expected = frechet_distance(GaussianStats.of(judge.features(images)), GaussianStats.of(real))
    assert rows["model"]["value"] == pytest.approx(expected, rel=1e-4)
    assert rows["run"]["sampler"].endswith(", guidance 2")
    assert rows["run"]["value"] != rows["model"]["value"]


def test_a_worker_loads_a_model_of_prompts_under_a_denoiser(root):
    given = Given(embedding("a red circle").reshape(1, 1, 1, -1))
    model = called_by(dr.load(root / "model").with_given(given), "pipelines.stub_texts:as_it_is")
    assert pickle.loads(pickle.dumps(model)).identity == model.identity


def test_steps_that_would_see_no_prompt_are_neither_drawn_nor_planned_nor_trained(root, tmp_path, monkeypatch, capsys):
    run = dr.load(root / "run")
    late = dr.StepPlan.late(dr.StepPlan.uniform(4).t, 2, 1)
    (tmp_path / "late.json").write_text(late.to_json())
    for how in (("--plan", tmp_path / "late.json"), ("--steps", 4, "--heavy", 0)):
        assert call(monkeypatch, "sample", root / "run", *how, *ON_CPU, "--out", tmp_path / "out") == 2
        assert "was not trained without a context" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match=r"1 of the plan's 4 steps have no context: begin with a heavy call"):
        dr.Choice(plan=late).drawer(run)
    assert not dr.Choice(steps=4, heavy=2).drawer(run).plan.num_alone
    errors = measured_errors(run, grid=8, images=2, progress=Silent()).errors
    assert np.isinf(errors[:, NO_CONTEXT]).all()
    assert np.isfinite(errors.diagonal()).all()
    method = replace(run.experiment.method, times=TimeSampler(dropout=0.2))
    with pytest.raises(ValueError, match=r"set times.dropout to 0"):
        replace(run.experiment, method=method)
