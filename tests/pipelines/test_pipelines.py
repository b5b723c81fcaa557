"""Pipelines of diffusers that draw images of prompts: their loops and ours from the same noise, with and without
guidance; and what is refused."""

import inspect
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pipelines.models import (
    TOKENS,
    diffusers,
    flux,
    inpainting,
    ovis_image,
    pipeline_class,
    pixart,
    prompted,
    qwen_image,
    randomised,
    sana,
    sd3,
    sdxl,
    texts,
    unet,
    unet_text,
)
from pipelines.own_times import own_times
from pipelines.test_retrofit import saved

import dualrate as dr
from dualrate.config.serial import from_plain, to_plain
from dualrate.denoisers.guidance import Guided
from dualrate.pipelines import prompts as pipelines
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.classes.kind import in_patches
from dualrate.pipelines.condition import Prompts
from dualrate.pipelines.foreign import adopted, image_tokens
from dualrate.pipelines.retrofitted import OneForeign
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
ALONE = SIZED | {"negative_prompt": None}
UNBINNED = ALONE | {"use_resolution_binning": False}
# each: network, pipeline, scheduler, arguments' names there, what the pipeline is made with, and called with
MODELS = {
    "SD 1.5": (
        unet_text,
        ("stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline"),
        ddim,
        EMBEDS,
        SD,
        {},
    ),
    "SD 2, v": (
        unet_text,
        ("stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline"),
        partial(ddim, prediction_type="v_prediction"),
        EMBEDS,
        SD,
        {},
    ),
    "inpainting": (
        inpainting,
        ("stable_diffusion.pipeline_stable_diffusion_inpaint", "StableDiffusionInpaintPipeline"),
        ddim,
        EMBEDS,
        SD,
        {},
    ),
    "SDXL": (
        sdxl,
        ("stable_diffusion_xl.pipeline_stable_diffusion_xl", "StableDiffusionXLPipeline"),
        euler,
        POOLED,
        {"add_watermarker": False},
        {},
    ),
    "SD3": (sd3, ("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline"), flow, POOLED, {}, {}),
    "SD3, shift that grows": (
        sd3,
        ("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline"),
        grown,
        POOLED,
        {},
        {},
    ),
    "PixArt": (pixart, ("pixart_alpha.pipeline_pixart_alpha", "PixArtAlphaPipeline"), ddim, MASKED, {}, UNBINNED),
    "PixArt of 1024": (
        partial(pixart, sample_size=128),  # which is told the sides
        ("pixart_alpha.pipeline_pixart_alpha", "PixArtAlphaPipeline"),
        ddim,
        MASKED,
        {},
        UNBINNED,
    ),
    "Sana": (partial(sana, timestep_scale=0.5), ("sana.pipeline_sana", "SanaPipeline"), flow, MASKED, {}, UNBINNED),
    "Flux": (flux, ("flux.pipeline_flux", "FluxPipeline"), grown, POOLED, {}, SIZED),
    "Flux, distilled": (
        partial(flux, guidance_embeds=True),
        ("flux.pipeline_flux", "FluxPipeline"),
        grown,
        POOLED,
        {},
        SIZED,
    ),
    "Qwen-Image": (qwen_image, ("qwenimage.pipeline_qwenimage", "QwenImagePipeline"), qwens, BY_MASK, {}, SIZED),
    "Ovis-Image": (ovis_image, ("ovis_image.pipeline_ovis_image", "OvisImagePipeline"), grown, EMBEDS, {}, ALONE),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def pipeline(model, **parts):
    """The pipeline object, with a network of random weights, and no encoders."""
    make, name, scheduler, _, settings, _ = model
    net, kind = randomised(make()), pipeline_class(*name)
    role = "unet" if hasattr(net, "down_blocks") else "transformer"
    names = inspect.signature(kind.__init__).parameters
    absent = {part: None for part, one in names.items() if part != "self" and one.default is one.empty}
    pipe = kind(**absent | settings | {role: net, "scheduler": scheduler()} | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, net


def noise():
    return torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def in_tokens(net):
    """Whether the pipeline itself makes tokens of 2 x 2 positions."""
    return type(net).__name__.startswith(("Flux", "QwenImage", "OvisImage"))


def theirs(pipe, model, net, guidance):
    """Latents (B, C, 8, 8) of its own loop."""
    _, _, _, names, _, settings = model
    made, negative, latents = texts(net), texts(net, 1, 3), noise()
    call = settings | {"latents": latents, "num_inference_steps": N, "output_type": "latent"}
    call |= {names[part]: value for part, value in made.items() if part in names}
    call |= {
        f"negative_{names[part]}": value.expand(ROWS, *value.shape[1:])
        for part, value in negative.items()
        if part in names
    }
    scale = "true_cfg_scale" if "true_cfg_scale" in inspect.signature(pipe.__call__).parameters else "guidance_scale"
    call[scale] = guidance
    if in_tokens(net):
        call["latents"] = in_patches(latents)
    if "guidance" in made:
        call["guidance_scale"] = 2.5
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
    tokens = image_tokens(denoiser.network.kind, net.config, (4, 8, 8))
    plan = dr.StepPlan.spread(own_times(pipe.scheduler, denoiser.process.schedule, N, tokens, even=in_tokens(net)))
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


@pytest.fixture
def drawn():
    """A denoiser of an SD3 with three prompts, and a call of it: (cond, rows of noise) -> x_hat."""
    denoiser, cond = prompted(randomised(sd3()), flow())

    def x_hat(cond, z):
        with torch.no_grad():
            return denoiser.denoise(z, torch.tensor([0.6]).double().expand(len(z)), dr.Context(), cond)

    return denoiser, cond, x_hat


def test_the_null_class_is_the_negative_prompt_and_members_share_one(drawn):
    denoiser, cond, x_hat = drawn
    z, label = noise(), torch.tensor([0, 1, 0])
    negative = dr.prompts(denoiser, texts(denoiser.network.net, 1, 3))
    mixed, own = x_hat(dr.Cond(label, cond.given), z), x_hat(cond, z)
    torch.testing.assert_close(mixed[label == 0], own[label == 0])
    torch.testing.assert_close(mixed[1:2], x_hat(negative, z[1:2]))
    torch.testing.assert_close(x_hat(dr.Cond(), z[:1]), x_hat(negative, z[:1]))
    assert not torch.allclose(mixed[1], own[1])
    members = torch.cat((z, z.flip(0)))
    shared = dr.Cond(None, cond.given)
    torch.testing.assert_close(
        x_hat(shared, members), x_hat(dr.Cond(None, cond.given.repeat_interleave(2, 0)), members)
    )


def test_images_of_prompts_are_drawn_in_batches_that_change_nothing(drawn):
    denoiser, cond, _ = drawn
    guided = Guided(denoiser, denoiser.process, 2.0, null=1)
    draw = partial(dr.sample_batches, guided, dr.DDIM(denoiser.process), dr.StepPlan.uniform(2), (4, 8, 8))
    label, given = [0] * 3, lambda seeds: cond.given[seeds]
    one, several = (torch.cat(list(draw(range(3), label, given=given, batch_size=size))) for size in (1, 3))
    torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-4)
    members = torch.cat(list(draw(range(3), label, given=given, members=2)))
    torch.testing.assert_close(members[::2], one, rtol=1e-4, atol=1e-4)
    dropped = torch.cat(list(draw(range(3), [1] * 3, given=given)))
    assert not torch.allclose(dropped, one)


def test_what_is_no_part_of_the_text_stays_where_the_prompt_is_dropped():
    denoiser, cond = prompted(randomised(inpainting()))
    z, t = noise()[:1].expand(3, -1, -1, -1), torch.full((3,), 0.5).double()
    with torch.no_grad():
        x_hat = denoiser.denoise(z, t, dr.Context(), dr.Cond(torch.ones(3, dtype=torch.int64), cond.given))
    assert not torch.allclose(x_hat[0], x_hat[1])  # of one noise and one text, with two holes


def test_fewer_tokens_than_there_is_room_for_change_nothing():
    for make in (pixart, sana, qwen_image):
        net = randomised(make())
        denoiser, cond = prompted(net)
        mask = next(part.name for part in denoiser.network.prompt.parts if part.mask)
        short = {name: value[1:2, :4] for name, value in texts(net).items()}
        z, t = noise()[:1], torch.tensor([0.5]).double()
        with torch.no_grad():
            whole = denoiser.denoise(z, t, dr.Context(), cond[1:2])
            for given in (short, {name: value for name, value in short.items() if name != mask}):
                filled = denoiser.denoise(z, t, dr.Context(), dr.prompts(denoiser, given))
                torch.testing.assert_close(filled, whole, rtol=1e-4, atol=1e-4)


WRONG = {
    "width": (
        lambda made: {**made, "pooled_projections": made["pooled_projections"][:, 1:]}, r"\(3, 10\) .* got \(3, 9\)"
    ),
    "length": (
        lambda made: {**made, "encoder_hidden_states": made["encoder_hidden_states"][:, :5]}, r"denoiser with tokens=5"
    ),
    "no pooled": (lambda made: {"encoder_hidden_states": made["encoder_hidden_states"]}, "add pooled_projections"),
    "unknown": (lambda made: {**made, "time_ids": torch.ones(1, 6)}, "drop what is not among these"),
    "rows": (lambda made: {**made, "pooled_projections": made["pooled_projections"][:2]}, r"of 3 prompts"),
    "texts": (lambda made: "a red circle", "encoded by the pipeline that the network is from.* pass it"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "why"), WRONG.values(), ids=WRONG)
def test_prompts_that_do_not_fit_are_refused(drawn, changed, why):
    denoiser, _, _ = drawn
    with pytest.raises(ValueError, match=why):
        dr.prompts(denoiser, changed(texts(denoiser.network.net)))


def test_prompts_of_another_network_and_latents_of_another_vae_are_refused(drawn):
    x_hat = drawn[2]
    other = prompted(randomised(unet_text()))[1]
    with pytest.raises(ValueError, match=r"make them by dualrate.prompts of this denoiser"):
        x_hat(other, noise())
    with pytest.raises(ValueError, match=r"takes latents of in_channels 4, got 3: .* VAE"):
        x_hat(dr.Cond(), noise()[:, :3])
    with pytest.raises(ValueError, match="the negative prompt is one, got 2"):
        dr.from_diffusers(sd3(), flow(), negative=texts(sd3(), 2), tokens=TOKENS)
    with pytest.raises(ValueError, match="encoded by the pipeline"):
        dr.from_diffusers(sd3(), flow(), negative="blurred")
    with pytest.raises(ValueError, match="no negative one: drop it"):
        dr.from_diffusers(unet(), ddim(), negative="blurred")
    with pytest.raises(ValueError, match="takes no prompts"):
        dr.prompts(dr.from_diffusers(randomised(unet()), ddim()), {})


def test_texts_are_encoded_by_the_pipeline_in_the_words_of_its_class(monkeypatch):
    """The calls fit its `encode_prompt`, and what comes back is what the network is given."""
    for name, model in MODELS.items():
        pipe, net = pipeline(model)
        made, negative, asked = texts(net, 2), texts(net, 1, 3), []
        signature = inspect.signature(type(pipe).encode_prompt)

        def encode(*given, made=made, negative=negative, asked=asked, signature=signature, **named):
            asked.append(signature.bind(*given, **named).arguments)
            own = [part for part in ("encoder_hidden_states", "text_embeds", "pooled_projections") if part in made]
            masks = [part for part in made if part.endswith("_mask")]
            one = negative if len(asked[-1]["prompt"]) == 1 else made
            if len(own + masks) > 1 and masks and "encoder_hidden_states_mask" not in made:
                return one[own[0]], one[masks[0]], None, None
            if "do_classifier_free_guidance" in signature.parameters:
                return tuple(embedded for part in own for embedded in (one[part], None))
            return tuple(one[part] for part in own + masks) + (None,) * (not masks)

        monkeypatch.setattr(type(pipe), "encode_prompt", encode)
        monkeypatch.setattr(pipelines, "has_encoders", lambda pipe: True)
        hole = {part: made[part] for part in ("mask", "masked_image_latents") if part in made}
        denoiser = dr.from_diffusers(pipe, tokens=TOKENS, shape=(4, 8, 8), negative="blurred")
        cond = dr.prompts(denoiser, ["a red circle", "a blue square"], pipe, **hole)
        parts = denoiser.network.prompt.unpacked(cond.given, torch.float32)
        empty = denoiser.network.prompt.unpacked(denoiser.network.empty, torch.float32)
        for part in denoiser.network.prompt.parts:
            if not part.stays:
                torch.testing.assert_close(parts[part.name], made[part.name].float(), msg=f"{name} {part.name}")
                torch.testing.assert_close(empty[part.name], negative[part.name].float())
            elif part.name == "time_ids":
                sizes = pipe._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 10)
                torch.testing.assert_close(parts[part.name], sizes.expand(2, -1))
        assert any(call["prompt"] == ["a red circle", "a blue square"] for call in asked)
        empty = dr.from_diffusers(pipe, tokens=TOKENS, shape=(4, 8, 8)).network.empty
        assert asked[-1]["prompt"] == [" " if name == "Qwen-Image" else ""]
        assert not any(call.get("do_classifier_free_guidance") for call in asked)  # no text is encoded in vain
        assert ("complex_human_instruction" in asked[-1]) == (name == "Sana")
        assert asked[-1].get("complex_human_instruction") is None
        if name == "SDXL":  # it takes zeros for no text
            assert not empty.flatten()[: TOKENS * net.config.cross_attention_dim].any()
        monkeypatch.undo()


class Asked(Exception):
    """Call of an `encode_prompt`, whose arguments it has."""


CALLED = {name: MODELS[name] for name in ("SD3", "PixArt", "Sana", "Flux", "Qwen-Image", "Ovis-Image")}
CALLED["PixArt Sigma"] = (pixart, ("pixart_alpha.pipeline_pixart_sigma", "PixArtSigmaPipeline"))


@pytest.mark.parametrize("model", CALLED.values(), ids=CALLED)
def test_texts_are_encoded_as_a_call_of_the_pipeline_encodes_them(model):
    made, name = model[:2]
    of, net = pipeline_class(*name), type(made()).__name__

    def encode(pipe, *given, **named):
        raise Asked(inspect.signature(of.encode_prompt).bind(pipe, *given, **named).arguments)

    pipe = object.__new__(type(of.__name__, (of,), {"encode_prompt": encode}))
    with pytest.raises(Asked) as asked:
        KINDS[net].encode(pipe, ["a red circle"], KINDS[net].tokens)
    usual = {name: one.default for name, one in inspect.signature(of.__call__).parameters.items()}
    for setting in {"max_sequence_length", "complex_human_instruction", "clean_caption"} & usual.keys():
        assert asked.value.args[0].get(setting, False) == usual[setting]


def test_pixart_is_told_height_and_width_in_pixels_and_their_ratio():
    told = {}

    def net(state, *, added_cond_kwargs, **_):
        told.update(added_cond_kwargs)
        return (state,)

    net.use_additional_conditions = True
    KINDS["PixArtTransformer2DModel"].call(net, torch.zeros(2, 4, 6, 8), torch.zeros(2), None, {})
    assert told["resolution"].tolist() == [[48, 64]] * 2
    assert told["aspect_ratio"].tolist() == [[0.75]] * 2


def test_text_encoders_may_be_offloaded_and_may_not_lack_their_weights(drawn):
    denoiser, cond, _ = drawn
    made, encoder = texts(denoiser.network.net), torch.nn.Linear(1, 1, device="meta")

    def encode(**_):
        embedded, pooled = made.values()
        return embedded, embedded, pooled, pooled

    parts = {"text_encoder_2": encoder, "tokenizer": object()}
    pipe = SimpleNamespace(components=parts, encode_prompt=encode, _execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"the text_encoder_2 of this .* without numbers .* load the pipeline"):
        dr.prompts(denoiser, "a red circle", pipe)
    encoder._hf_hook = object()  # as accelerate leaves them, and fills them in for each call
    torch.testing.assert_close(dr.prompts(denoiser, ["a", "b", "c"], pipe).given, cond.given)
    pipe._execution_device = torch.device("meta")  # as of a pipeline of which this part alone is offloaded
    with pytest.raises(ValueError, match="offload all of it and not a part"):
        dr.prompts(denoiser, ["a", "b", "c"], pipe)


def test_a_lora_that_is_loaded_is_a_part_of_the_network():
    pipe, net = pipeline(MODELS["SD3"])
    before = ours(pipe, net, 1.0)

    class Low(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down = base, torch.nn.Linear(base.in_features, 1)
            self.up = torch.nn.Linear(1, base.out_features)

        def forward(self, h):
            return self.base(h) + self.up(self.down(h))

    net.transformer_blocks[0].attn.to_q = Low(net.transformer_blocks[0].attn.to_q)
    expected = theirs(pipe, MODELS["SD3"], net, 1.0)
    torch.testing.assert_close(
        ours(pipe, net, 1.0) / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-5
    )
    assert not torch.allclose(before, expected)


def test_an_experiment_holds_a_model_of_texts(tmp_path):
    net, scheduler = randomised(sd3()), flow()
    saved(tmp_path, net, "transformer", scheduler)
    found = adopted(tmp_path)
    networks = OneForeign(replace(found.network, tokens=TOKENS))
    assert networks.given == (1, 1, TOKENS * 12 + 10)
    parts = networks, dr.DenoisingConfig(), dr.FitConfig(iterations=1), dr.DataConfig("")
    held = dr.Experiment("texts", *parts, dr.GaussianProcess(found.schedule), condition=Prompts(networks.given[2]))
    assert from_plain(dr.Experiment, to_plain(held)) == held
    modules, denoiser = held.build()
    modules["model"].net.load_state_dict(found.weights().state_dict())
    direct, cond = prompted(net, scheduler)
    modules["model"].empty.copy_(direct.network.empty)
    z, t = noise(), torch.full((ROWS,), 0.5).double()
    for one in (cond, dr.Cond(torch.tensor([0, 1, 0]), cond.given)):
        with torch.no_grad():
            torch.testing.assert_close(*(of.denoise(z, t, dr.Context(), one) for of in (denoiser, direct)))
    with pytest.raises(ValueError, match="has no text_encoder, which makes prompts of texts"):
        dr.load(tmp_path)


def test_networks_whose_weights_are_elsewhere_or_quantised_are_refused():
    def refused(why, change):
        net = randomised(unet_text())
        change(net)
        with pytest.raises(ValueError, match=why):
            dr.from_diffusers(net, ddim())

    refused("is offloaded, .* pipe.to", lambda net: setattr(net.conv_in, "_hf_hook", object()))
    hooks = SimpleNamespace(hooks={"group_offloading": None})
    refused("is offloaded", lambda net: setattr(net.conv_in, "_diffusers_hook", hooks))
    refused("without numbers", lambda net: net.conv_in.to("meta"))
    refused("is quantised, .* torch_dtype", lambda net: net.register_to_config(quantization_config={"bits": 4}))

    def whole_numbers(net):
        net.conv_in.weight = torch.nn.Parameter(net.conv_in.weight.to(torch.int8), requires_grad=False)

    refused("is quantised", whole_numbers)


def test_pipelines_that_a_denoiser_cannot_follow_are_refused_with_the_way_out(monkeypatch):
    net, scheduler = randomised(unet()), ddim()
    of = diffusers.DDPMPipeline
    assert dr.from_diffusers(of(net, scheduler)).network.kind is KINDS["UNet2DModel"]

    class Own(of):
        pass

    with pytest.raises(ValueError, match=r"Own is no pipeline of diffusers' own, .*from_diffusers\(pipe.unet"):
        dr.from_diffusers(Own(net, scheduler))
    pipe, parts = of(net, scheduler), {"unet": net, "scheduler": scheduler, "controlnet": torch.nn.Linear(1, 1)}
    monkeypatch.setattr(of, "components", property(lambda self: parts))
    with pytest.raises(ValueError, match=r"calls its controlnet too"):
        dr.from_diffusers(pipe)
    with pytest.raises(ValueError, match="time_cond_proj_dim 8, of another process"):
        dr.from_diffusers(unet_text(time_cond_proj_dim=8), ddim())
    with pytest.raises(ValueError, match=r"has in_channels 8 and out_channels 4: known are as many, and 9"):
        dr.from_diffusers(unet_text(in_channels=8), ddim())
    with pytest.warns(UserWarning, match="guidance was distilled into this Flux"):
        dr.from_diffusers(flux(guidance_embeds=True), flow(), shape=(4, 8, 8))
