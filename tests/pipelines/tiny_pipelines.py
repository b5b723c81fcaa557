"""Tiny pipelines of diffusers with random weights, called without texts: `ROWS` or `UNETS[name]() -> (pipe, draw)`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from pipelines.models import diffusers, dit, ovis_image, pipeline_class, pixart, randomised, sana, sd3, unet

STEPS = 4


class Pixels:
    """A VAE that returns what it is given, and keeps it."""

    config = SimpleNamespace(scaling_factor=1.0, block_out_channels=(1,))

    def decode(self, latents):
        self.latents = latents.clone()
        return SimpleNamespace(sample=latents)


def of_dit(guidance: float = 1.0, steps: int = STEPS, **settings):
    net = randomised(dit(num_layers=3, **{"num_embeds_ada_norm": 1000} | settings)).eval()
    vae = Pixels()
    pipe = diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def draw(seed=0):
        generator = torch.Generator().manual_seed(seed)
        pipe([1, 2], guidance, generator=generator, num_inference_steps=steps, output_type="pt")
        return vae.latents

    return pipe, draw


def of_unet():
    pipe = diffusers.DDIMPipeline(randomised(unet()).eval(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def draw(seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.from_numpy(pipe(2, generator, num_inference_steps=STEPS, output_type="np").images)

    return pipe, draw


def _embeddings(shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _drawing(pipe, **given):
    pipe.set_progress_bar_config(disable=True)
    return (
        pipe,
        lambda seed=0, **more: (
            pipe(
                **given,
                **{"num_inference_steps": STEPS, "output_type": "latent"} | more,
                generator=torch.Generator().manual_seed(seed),
            ).images
        ),
    )


def _masked(pipe, side: int):
    """Return the mask of a text and of none, 6 tokens each, all of them there."""
    mask = torch.ones(1, 6)
    return _drawing(
        pipe,
        negative_prompt=None,
        prompt_embeds=_embeddings((1, 6, 12)),
        negative_prompt_embeds=_embeddings((1, 6, 12), 4),
        prompt_attention_mask=mask,
        negative_prompt_attention_mask=mask,
        height=side,
        width=side,
        use_resolution_binning=False,
    )


def of_pixart():
    kind = pipeline_class("pixart_alpha.pipeline_pixart_alpha", "PixArtAlphaPipeline")
    net = randomised(pixart(use_additional_conditions=False)).eval()
    return _masked(kind(None, None, None, net, diffusers.DPMSolverMultistepScheduler()), 64)


def of_sana():
    kind = pipeline_class("sana.pipeline_sana", "SanaPipeline")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _masked(kind(None, None, None, randomised(sana(timestep_scale=0.5)).eval(), scheduler), 256)


def of_sd3():
    kind = pipeline_class("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline")
    names = ["vae", *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))]
    net = randomised(sd3()).eval()
    pipe = kind(transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **dict.fromkeys(names))
    return _drawing(
        pipe,
        prompt_embeds=_embeddings((1, 6, 12)),
        negative_prompt_embeds=_embeddings((1, 6, 12), 4),
        pooled_prompt_embeds=_embeddings((1, 10)),
        negative_pooled_prompt_embeds=_embeddings((1, 10), 4),
        height=64,
        width=64,
    )


def of_flux():
    kind = pipeline_class("flux.pipeline_flux", "FluxPipeline")
    sizes = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16}
    net = diffusers.FluxTransformer2DModel(
        **sizes, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(4, 4, 8)
    )
    names = ["vae", *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2"))]
    pipe = kind(
        transformer=randomised(net).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(names),
    )
    return _drawing(
        pipe, prompt_embeds=_embeddings((1, 6, 12)), pooled_prompt_embeds=_embeddings((1, 10)), height=64, width=64
    )


def of_qwen():
    """Guidance is a second call at every step, with a longer text."""
    kind = pipeline_class("qwenimage.pipeline_qwenimage", "QwenImagePipeline")
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16}
    net = diffusers.QwenImageTransformer2DModel(
        **sizes, num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(8, 4, 4)
    )
    pipe = kind(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, randomised(net).eval())
    return _drawing(
        pipe,
        prompt_embeds=_embeddings((1, 6, 12)),
        prompt_embeds_mask=torch.ones(1, 6, dtype=torch.long),
        negative_prompt_embeds=_embeddings((1, 8, 12), 4),
        negative_prompt_embeds_mask=torch.ones(1, 8, dtype=torch.long),
        true_cfg_scale=3.0,
        height=64,
        width=64,
    )


def of_ovis():
    kind = pipeline_class("ovis_image.pipeline_ovis_image", "OvisImagePipeline")
    net = ovis_image(num_layers=2, num_single_layers=2)
    pipe = kind(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, randomised(net).eval())
    return _drawing(
        pipe,
        negative_prompt=None,
        prompt_embeds=_embeddings((1, 6, 12)),
        negative_prompt_embeds=_embeddings((1, 6, 12), 4),
        height=64,
        width=64,
    )


def of_texts_unet():
    kind = pipeline_class("stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline")
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    pipe = kind(None, None, None, randomised(net).eval(), scheduler, None, None, requires_safety_checker=False)
    return _drawing(
        pipe,
        prompt_embeds=_embeddings((1, 6, 12)),
        negative_prompt_embeds=_embeddings((1, 6, 12), 4),
        height=64,
        width=64,
    )


ROWS = {
    "DiT": of_dit, "PixArt": of_pixart, "Sana": of_sana, "SD3": of_sd3, "Flux": of_flux, "Qwen": of_qwen,
    "Ovis": of_ovis,
}  # fmt: skip
UNETS = {"UNet2D": of_unet, "UNet2DCondition": of_texts_unet}
