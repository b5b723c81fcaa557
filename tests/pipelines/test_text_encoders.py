"""`dualrate data encode --prompts` by real classes of transformers: what a pipeline's own `encode_prompt` makes."""

import json
import shutil

import numpy as np
import pytest
import torch
from cli.command import call
from latents import autoencoders
from latents.autoencoders import photos
from pipelines import encoders
from pipelines.models import diffusers, flux, pipeline_class, pixart, randomised, sd3, sdxl, unet_text
from safetensors.torch import load_file, save_file

import dualrate as dr
from dualrate.data.loader import Augment
from dualrate.diffusion.random import Draws
from dualrate.pipelines.foreign import adopted
from dualrate.pipelines.prompt_set import read_prompts
from dualrate.pipelines.retrofitted import text_folder
from dualrate.pipelines.text_encoders import read_pipeline

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
COUNT = 10
TEXTS = ["a red circle", "", "circle " * 200, *(f"a circle of {letter}" for letter in "bcdefgh")]
TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"


def clips(width, projected=0, number=""):
    made = {f"text_encoder{number}": encoders.clip_texts(width, projected)}
    return made | {f"tokenizer{number}": encoders.clip_tokenizer()}


def t5s(number=""):
    return {f"text_encoder{number}": encoders.t5(12), f"tokenizer{number}": encoders.t5_tokenizer()}


def of_sd(pipe, text):
    made, negative = pipe.encode_prompt(text, "cpu", 1, True)
    return {TEXT: made}, {TEXT: negative}


def of_sdxl(pipe, text):
    made, negative, pooled, pooled_negative = pipe.encode_prompt(text)
    sizes = {"time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]])}  # of images whose latents are 8 x 8
    return {TEXT: made, "text_embeds": pooled} | sizes, {TEXT: negative, "text_embeds": pooled_negative} | sizes


def of_sd3(pipe, text):
    made, negative, pooled, pooled_negative = pipe.encode_prompt(text, None, None)
    named = {TEXT: made, "pooled_projections": pooled}
    return named, {TEXT: negative, "pooled_projections": pooled_negative}


def of_pixart(pipe, text):
    made, mask, negative, negative_mask = pipe.encode_prompt(text)
    return {TEXT: made, MASK: mask}, {TEXT: negative, MASK: negative_mask}


def of_flux(pipe, text):
    made, none = (pipe.encode_prompt(one, None) for one in (text, ""))
    return tuple({TEXT: one[0], "pooled_projections": one[1]} for one in (made, none))


flow, steps = diffusers.FlowMatchEulerDiscreteScheduler, diffusers.DDIMScheduler
SD = ("stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline")
SAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
# each: pipeline, network, scheduler, its encoders, other parts, what its own `encode_prompt` makes
PIPELINES = {
    "SD": (SD, unet_text, steps, lambda: clips(12), SAFE, of_sd),
    "SDXL": (
        ("stable_diffusion_xl.pipeline_stable_diffusion_xl", "StableDiffusionXLPipeline"),
        sdxl,
        steps,
        lambda: clips(4) | clips(8, 10, "_2"),
        {"add_watermarker": False},
        of_sdxl,
    ),
    "SD3": (
        ("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline"),
        sd3,
        flow,
        lambda: clips(4, 4) | clips(6, 6, "_2") | t5s("_3"),
        {},
        of_sd3,
    ),
    "PixArt": (("pixart_alpha.pipeline_pixart_alpha", "PixArtAlphaPipeline"), pixart, steps, t5s, {}, of_pixart),
    "FLUX": (("flux.pipeline_flux", "FluxPipeline"), flux, flow, lambda: clips(10) | t5s("_2"), {}, of_flux),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, images = tmp_path_factory.mktemp("encoders"), photos(COUNT)
    np.savez(root / "images.npz", images=images.transpose(0, 2, 3, 1))
    (root / "captions.csv").write_text("caption\n" + "\n".join(f'"{text}"' for text in TEXTS))
    autoencoders.saved(root / "vae", images)
    return root


def pipeline(root, name):
    """The object, and its folder."""
    where, make, scheduler, parts, settings, _ = PIPELINES[name]
    net, vae = randomised(make()), diffusers.AutoencoderKL.from_pretrained(root / "vae")
    role = "unet" if hasattr(net, "down_blocks") else "transformer"
    pipe = pipeline_class(*where)(**{role: net, "scheduler": scheduler(), "vae": vae}, **parts(), **settings)
    if not (root / name).exists():
        pipe.save_pretrained(root / name)
    return pipe, root / name


def encode(patch, root, folder, out):
    how = ("--no-mirrored", "--device", "cpu", "--batch-size", "4")
    return call(patch, "data", "encode", root / "images.npz", out, "--prompts", root / "captions.csv", folder, *how)


@pytest.mark.parametrize("name", PIPELINES)
def test_prompts_are_what_the_pipelines_own_encoders_make(root, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    pipe, folder = pipeline(root, name)
    assert encode(monkeypatch, root, folder, tmp_path / "latents") == 0, capsys.readouterr().err
    layout = adopted(folder).network.prompt
    for split in ("train", "test"):
        prompts = read_prompts(tmp_path / "latents", split)
        rows = prompts.rows(np.arange(len(prompts)), Draws(0, torch.arange(len(prompts))), Augment())
        with torch.no_grad():
            expected = [
                layout.packed(PIPELINES[name][-1](pipe, text)[0])
                for text in map(prompts.texts.__getitem__, range(len(prompts)))
            ]
        torch.testing.assert_close(rows.float(), torch.cat(expected).half().float(), rtol=2e-3, atol=2e-3)
    with torch.no_grad():
        negative = layout.packed(PIPELINES[name][-1](pipe, "a")[1])
    torch.testing.assert_close(prompts.empty(), negative)


def test_sd3_without_its_t5_reads_as_diffusers_does(root, tmp_path):
    pipe, _ = pipeline(root, "SD3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "clips")
    texts, _ = text_folder(tmp_path / "clips")
    with torch.no_grad():
        expected, none = of_sd3(pipe, "a red circle")
    torch.testing.assert_close(texts.read("cpu")(["a red circle"]), texts.network.prompt.packed(expected))
    torch.testing.assert_close(texts.negative(None, "cpu"), texts.network.prompt.packed(none))


def test_weights_are_read_in_the_dtype_that_is_asked_for(root):
    _, folder = pipeline(root, "SD3")
    parts = read_pipeline(folder, torch.bfloat16).components
    assert {parts[f"text_encoder{number}"].dtype for number in ("", "_2", "_3")} == {torch.bfloat16}
    texts, _ = text_folder(folder)
    whole, half = (texts.read("cpu", dtype)(["a red circle"]) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.1)
    assert not torch.equal(half, whole)


def changed(file, **settings):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | settings))


def with_lora(file):
    """As a model is saved while a LoRA is loaded."""
    weights = load_file(file)
    name = next(name for name in weights if name.endswith(("q_proj.weight", "to_q.weight")))
    weights[name.replace(".weight", ".base_layer.weight")] = weights.pop(name)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: (folder / "tokenizer/tokenizer.json").unlink(), "tokenizer has no vocabulary (tokenizer.json"),
        (lambda folder: changed(folder / "model_index.json", text_encoder=["mine", "Mine"]), "text_encoder is of mine"),
        (lambda folder: changed(folder / "model_index.json", _class_name=["own", "Own"]), "its class is in a file"),
        (lambda folder: changed(folder / "text_encoder/config.json", quantization_config={"bits": 4}), "quantised"),
        (lambda folder: changed(folder / "unet/config.json", quantization_config={"bits": 4}), "is quantised: take"),
        (lambda folder: with_lora(folder / "text_encoder/model.safetensors"), r"text_encoder was saved with a LoRA"),
        (lambda folder: with_lora(folder / "unet/diffusion_pytorch_model.safetensors"), "unet was saved with a LoRA"),
    ],
    ids=[
        "no vocabulary",
        "own encoder",
        "own class",
        "quantised encoder",
        "quantised network",
        "LoRA of the encoder",
        "LoRA",
    ],
)
def test_pipelines_that_cannot_be_followed_are_refused_in_a_sentence(root, tmp_path, monkeypatch, capsys, change, why):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(pipeline(root, "SD")[1], tmp_path / "SD")
    change(folder)
    how = ("--prompt", "a red circle", "--steps", "1", "--device", "cpu", "--out", tmp_path / "out")
    assert call(monkeypatch, "sample", folder, *how) == 2
    assert why in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["SD", "SD3", "FLUX"])
@pytest.mark.parametrize("how", ["cpu_offload_with_hook", "cpu_offload"])
def test_a_pipeline_that_is_offloaded_encodes_texts_and_its_network_is_refused(root, name, how):
    accelerate = pytest.importorskip("accelerate")
    pipe, _ = pipeline(root, name)
    denoiser = dr.from_diffusers(pipe, shape=(4, 8, 8))
    before = dr.prompts(denoiser, ["a red circle", ""], pipe).given
    for part in pipe.components.values():  # as pipe.enable_model_cpu_offload() and enable_sequential_cpu_offload()
        if isinstance(part, torch.nn.Module):
            getattr(accelerate, how)(part, "cpu")
    torch.testing.assert_close(dr.prompts(denoiser, ["a red circle", ""], pipe).given, before)
    with pytest.raises(ValueError, match=r"is offloaded, .*remove_all_hooks.* pipe.to\(device\)"):
        dr.from_diffusers(pipe, shape=(4, 8, 8))


def test_a_lora_that_is_loaded_into_a_text_encoder_is_a_part_of_it(root):
    """The texts go through the pipeline as it is."""
    pipe, _ = pipeline(root, "SD")
    denoiser = dr.from_diffusers(pipe)
    before = dr.prompts(denoiser, "a red circle", pipe).given
    layer = next(part for part in pipe.text_encoder.modules() if hasattr(part, "q_proj"))
    layer.q_proj = Low(layer.q_proj)
    with torch.no_grad():
        expected = pipe.encode_prompt("a red circle", "cpu", 1, False)[0]
        found = dr.prompts(denoiser, "a red circle", pipe).given
    torch.testing.assert_close(found.flatten(), expected.flatten())
    assert not torch.allclose(found, before)


class Low(torch.nn.Module):
    """As a LoRA wraps a layer."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight
        self.down, self.up = torch.nn.Linear(base.in_features, 1), torch.nn.Linear(1, base.out_features)

    def forward(self, h):
        return self.base(h) + self.up(self.down(h))
