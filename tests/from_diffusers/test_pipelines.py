"""Pipelines of diffusers that draw images of prompts: their loops and ours from the same noise, with and without
guidance; and what is refused."""

import inspect
from functools import partial

import pytest
import torch
from from_diffusers.models import (
    TOKENS,
    diffusers,
    flux,
    inpainting,
    pixart,
    qwen_image,
    randomised,
    sana,
    sd3,
    sdxl,
    texts,
    unet_text,
)

import dualrate as dr
from dualrate.denoisers.guidance import Guided
from dualrate.from_diffusers.classes.kind import in_patches
from dualrate.sampling.trajectory import rollout

pytestmark = [
    pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z"),
    pytest.mark.filterwarnings("ignore:guidance was distilled"),
]
N, ROWS = 4, 3
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
ddim = partial(diffusers.DDIMScheduler, **TABLE, clip_sample=False, set_alpha_to_one=False)
euler = partial(diffusers.EulerDiscreteScheduler, **TABLE, timestep_spacing="leading")
flow = partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0)
grown = partial(flow, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64)
qwens = partial(grown, shift_terminal=0.02, max_shift=0.9)
EMBEDS = {"encoder_hidden_states": "prompt_embeds"}
MASKED = EMBEDS | {"encoder_attention_mask": "prompt_attention_mask"}
POOLED = EMBEDS | {"pooled_projections": "pooled_prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
BY_MASK = EMBEDS | {"encoder_hidden_states_mask": "prompt_embeds_mask"}
SD = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SIZED = {"height": 64, "width": 64}
UNBINNED = SIZED | {"use_resolution_binning": False}
# each: network, pipeline, scheduler, arguments' names there, what the pipeline is made with, and called with
MODELS = {
    "SD 1.5": (unet_text, "StableDiffusionPipeline", ddim, EMBEDS, SD, {}),
    "SD 2, v": (unet_text, "StableDiffusionPipeline", partial(ddim, prediction_type="v_prediction"), EMBEDS, SD, {}),
    "inpainting": (inpainting, "StableDiffusionInpaintPipeline", ddim, EMBEDS, SD, {}),
    "SDXL": (sdxl, "StableDiffusionXLPipeline", euler, POOLED, {"add_watermarker": False}, {}),
    "SD3": (sd3, "StableDiffusion3Pipeline", flow, POOLED, {}, {}),
    "SD3, shift that grows": (sd3, "StableDiffusion3Pipeline", grown, POOLED, {}, {}),
    "PixArt": (pixart, "PixArtAlphaPipeline", ddim, MASKED, {}, UNBINNED),
    "Sana": (partial(sana, timestep_scale=0.5), "SanaPipeline", flow, MASKED, {}, UNBINNED),
    "Flux": (flux, "FluxPipeline", grown, POOLED, {}, SIZED),
    "Flux, distilled": (partial(flux, guidance_embeds=True), "FluxPipeline", grown, POOLED, {}, SIZED),
    "Qwen-Image": (qwen_image, "QwenImagePipeline", qwens, BY_MASK, {}, SIZED),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def pipeline(model, **parts):
    """The pipeline object, with a network of random weights, and no encoders."""
    pytest.importorskip("transformers")
    make, name, scheduler, _, settings, _ = model
    net, kind = randomised(make()), getattr(diffusers, name)
    role = "unet" if hasattr(net, "down_blocks") else "transformer"
    names = inspect.signature(kind.__init__).parameters
    absent = {part: None for part, one in names.items() if part != "self" and one.default is one.empty}
    pipe = kind(**absent | settings | {role: net, "scheduler": scheduler()} | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, net


def noise():
    return torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def theirs(pipe, model, net, guidance):
    """Latents (B, C, 8, 8) of its own loop."""
    _, name, _, names, _, settings = model
    made, negative, latents = texts(net), texts(net, 1, 3), noise()
    packed = "img" in inspect.signature(pipe.transformer.forward).parameters.keys() if False else "patch" in name
    call = settings | {"latents": latents, "num_inference_steps": N, "output_type": "latent"}
    call |= {names[part]: value for part, value in made.items() if part in names}
    call |= {
        f"negative_{names[part]}": value.expand(ROWS, *value.shape[1:])
        for part, value in negative.items()
        if part in names
    }
    scale = "true_cfg_scale" if "true_cfg_scale" in inspect.signature(pipe.__call__).parameters else "guidance_scale"
    call[scale] = guidance
    if scale == "true_cfg_scale":
        call["latents"] = in_patches(latents)
        call |= {"guidance_scale": 2.5} if "guidance" in made else {}
    if "time_ids" in made:
        call |= {"original_size": (60, 50), "crops_coords_top_left": (1, 2), "target_size": (64, 64)}
    if "mask" in made:
        hole = made["mask"].repeat_interleave(8, 2).repeat_interleave(8, 3)
        call |= {"image": torch.zeros(ROWS, 3, 64, 64), "mask_image": hole}
        call |= {"masked_image_latents": made["masked_image_latents"], "strength": 1.0}
    found = pipe(**call).images
    return found if found.ndim == 4 else torch.nn.functional.pixel_shuffle(found.mT.unflatten(2, (4, 4)), 2)


def ours(pipe, net, guidance, patch=0):
    made = texts(net)
    if "time_ids" in made:
        made["time_ids"] = torch.tensor([[60.0, 50, 1, 2, 64, 64]])
    if "guidance" in made:
        made["guidance"] = torch.tensor([2.5])
    shape = {} if net.config.get("sample_size") else {"shape": (4, 8, 8)}
    denoiser = dr.from_diffusers(pipe, negative=texts(net, 1, 3), tokens=TOKENS, **shape)
    plan = dr.scheduler_plan(denoiser, pipe.scheduler, N, (4, 8, 8))
    process, cond = denoiser.process, dr.prompts(denoiser, made)
    called = denoiser if guidance == 1 else Guided(denoiser, process, guidance, null=1, patch=patch)
    with torch.no_grad():
        return rollout(called, dr.DDIM(process), plan, noise(), cond, lambda *_: None)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@every_model
def test_ddim_from_their_noise_is_their_pipeline(model, guidance):
    vae = {}
    if model[0] is inpainting:
        sizes = {"block_out_channels": (4,) * 4, "norm_num_groups": 4, "latent_channels": 4}
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = {"vae": diffusers.AutoencoderKL(**sizes, **blocks)}
    pipe, net = pipeline(model, **vae)
    expected = theirs(pipe, model, net, guidance)
    found = ours(pipe, net, guidance, patch=2 if model[0] is qwen_image else 0)
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-5)
