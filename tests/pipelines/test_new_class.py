"""A class that is added: caches and a retrofit follow from what it declares, and say what is missing."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from pipelines.models import diffusers, randomised

import dualrate as dr
from dualrate.diffusion.prediction import REPA
from dualrate.pipelines import text_encoders
from dualrate.pipelines.accelerate import METHODS
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.classes.kind import HIDDEN, TEXT, NetworkSpec, PromptPart, Rows, by_text
from dualrate.pipelines.folder import check_own
from dualrate.pipelines.foreign import ForeignConfig
from dualrate.pipelines.policies import FirstBlock
from dualrate.pipelines.retrofitted import taps_of

NAME = "AuraFlowTransformer2DModel"
SHAPE = (4, 8, 8)
RIGHT = Rows(("joint_transformer_blocks",), (TEXT, HIDDEN))


def aura() -> torch.nn.Module:
    """Return a network of no known class: blocks of two streams, then blocks of one, of tokens of text and image."""
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 16}
    blocks = {"num_mmdit_layers": 3, "num_single_dit_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    net = diffusers.AuraFlowTransformer2DModel(**sizes | blocks, joint_attention_dim=12, caption_projection_dim=16)
    return randomised(net).eval()


def declared(monkeypatch, rows: Rows | None, net: torch.nn.Module) -> dr.Denoiser:
    spec = NetworkSpec(
        by_text,
        prompt=lambda config, tokens, shape: (PromptPart(TEXT, (tokens, config["joint_attention_dim"])),),
        tokens=6,
        rows=rows,
        units=lambda net: 1000.0,
    )
    monkeypatch.setitem(KINDS, NAME, spec)
    return dr.from_diffusers(
        net, diffusers.FlowMatchEulerDiscreteScheduler(), negative={TEXT: torch.zeros(1, 6, 12)}, tokens=6
    )


def called(net: torch.nn.Module) -> list[torch.Tensor]:
    x, text, times = torch.randn(1, *SHAPE), torch.randn(1, 6, 12), (0.9, 0.8, 0.7, 0.6)
    with torch.no_grad():
        return [net(x, encoder_hidden_states=text, timestep=torch.tensor([time])).sample for time in times]


@pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
def test_a_class_that_says_its_rows_is_cached_and_retrofitted(monkeypatch):
    net = aura()
    denoiser = declared(monkeypatch, RIGHT, net)
    assert [(tap.block, tap.channels, tap.side) for tap in taps_of(denoiser.network, SHAPE)] == [
        (0, 16, 4), (1, 16, 4), (2, 16, 4)
    ]  # fmt: skip
    for method, refresh in (("fora", 2), ("taylor", 2), ("fora", FirstBlock(1e9))):
        with dr.accelerate(net, method, refresh=refresh) as handle:
            outputs = called(net)
        (sampling,) = handle.samplings["transformer"]
        assert [call.did for call in sampling][1] == "skipped"
        assert all(output.isfinite().all() for output in outputs)


@pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"has no blocks in transformer_blocks: .* rows=Rows\(names=\.\.\.\)"),
        (Rows(("blocks",)), r"has no blocks in blocks: .* rows=Rows\(names=\.\.\.\)"),
        (
            Rows(("joint_transformer_blocks", "single_transformer_blocks"), (TEXT, HIDDEN)),
            r"AuraFlowSingleTransformerBlock of .* takes no encoder_hidden_states: .* streams=",
        ),
        (Rows(("joint_transformer_blocks",), (HIDDEN, TEXT)), r"14 tokens, which are not those of a square image"),
        (Rows(("single_transformer_blocks",)), r"30 tokens, which are not those of a square image"),
    ],
    ids=["none", "another-name", "mixed", "order", "joined"],
)
def test_what_is_missing_is_said(rows, message, monkeypatch):
    net = aura()
    denoiser = declared(monkeypatch, rows, net)
    with pytest.raises(ValueError, match=message + r".*pipelines/README\.md"):
        taps_of(denoiser.network, SHAPE)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"rows=Rows\(names"),
        (Rows(("joint_transformer_blocks",)), r"returns 2 tensors, expected hidden_states: .*streams="),
    ],
    ids=["none", "streams"],
)
def test_a_cache_says_it_too(rows, message, monkeypatch):
    net = aura()
    declared(monkeypatch, rows, net)
    with pytest.raises(ValueError, match=message), dr.accelerate(net, "fora", refresh=2):
        called(net)


@pytest.mark.parametrize("method", METHODS)
def test_without_rows_no_method_fails_in_its_own_words(method, monkeypatch):
    net = aura()
    declared(monkeypatch, None, net)
    with pytest.raises(ValueError, match=r"README|one level"):
        dr.accelerate(net, method, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def prx(monkeypatch) -> tuple[torch.nn.Module, list[tuple[int, ...]]]:
    """Return a network of PRX, whose configuration says no size, and the shapes that its class was asked about."""
    sizes = {"in_channels": 4, "context_in_dim": 12, "hidden_size": 16, "num_heads": 2, "depth": 2, "axes_dim": [4, 4]}
    shapes = []

    def prompt(config, tokens, shape):
        shapes.append(shape)
        return PromptPart(TEXT, (tokens, config["context_in_dim"])), PromptPart("attention_mask", (tokens,), mask=True)

    spec = NetworkSpec(by_text, prompt=prompt, tokens=6, rows=Rows(("blocks",)), units=lambda net: 1000.0)
    monkeypatch.setitem(KINDS, "PRXTransformer2DModel", spec)
    return randomised(diffusers.PRXTransformer2DModel(**sizes)).eval(), shapes


@pytest.mark.filterwarnings("ignore:at the noise end x_hat follows z")
def test_a_pipeline_whose_usual_size_is_in_pixels_has_latents_of_an_eighth(monkeypatch):
    net, shapes = prx(monkeypatch)

    class Pipeline(diffusers.DiffusionPipeline):  # as diffusers' PRXPipeline, which needs encoders of transformers
        __module__, vae_scale_factor = "diffusers.pipelines.prx.pipeline_prx", property(lambda self: 8)

        def __init__(self, transformer, scheduler, default_sample_size=64):
            super().__init__()
            self.default_sample_size = default_sample_size
            self.register_modules(transformer=transformer, scheduler=scheduler)
            self.register_to_config(default_sample_size=default_sample_size)

    pipe = Pipeline(net, diffusers.FlowMatchEulerDiscreteScheduler())
    denoiser = dr.from_diffusers(pipe, negative={TEXT: torch.zeros(1, 6, 12)})
    assert set(shapes) == {(4, 8, 8)}
    z, text = torch.randn(2, *SHAPE), torch.randn(2, 6, 12)
    drawn = denoiser.network.prompt.packed({TEXT: text, "attention_mask": torch.ones(2, 6)})
    with torch.no_grad():
        v = denoiser.network(z, torch.zeros(2), drawn, None)
    assert v.shape == z.shape


def test_parts_may_be_in_the_module_of_a_pipeline_of_diffusers(tmp_path, monkeypatch):
    for library in ("prx", "kolors", "transformers", None):
        check_own(tmp_path, {"text_encoder": [library, "Encoder"]})
    for library in ("mine", "mine.prx", "prx.pipeline_prx", "", "..prx", "os", "__pycache__"):
        with pytest.raises(ValueError, match="code of its own"):
            check_own(tmp_path, {"text_encoder": [library, "Encoder"]})
    monkeypatch.setitem(sys.modules, "diffusers", None)  # where it is not installed
    with pytest.raises(ValueError, match="code of its own"):
        check_own(tmp_path, {"text_encoder": ["prx", "Encoder"]})


@pytest.mark.parametrize("library", ["prx", "kolors", "transformers", "diffusers"])
def test_a_file_of_the_folder_is_not_taken_for_that_module(tmp_path, library):
    (tmp_path / "text_encoder").mkdir()  # diffusers would run the file where it lacks what the module needs
    (tmp_path / "text_encoder" / f"{library}.py").touch()
    with pytest.raises(ValueError, match="code of its own"):
        check_own(tmp_path, {"text_encoder": [library, "Encoder"]})


def test_a_pipeline_that_computes_its_scale_keeps_it(tmp_path, monkeypatch):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [4, 4, 4]}))

    class Plain(SimpleNamespace):
        def to(self, device):
            return self

    class Computes(Plain):
        vae_scale_factor = property(lambda self: 32)

    network = ForeignConfig("UNet2DConditionModel", json.dumps({"sample_size": 8}), REPA)
    for number, (kind, expected) in enumerate(((Plain, 4), (Computes, 32))):
        monkeypatch.setattr(text_encoders, "read_pipeline", lambda folder, dtype, kind=kind: kind())
        texts = text_encoders.TextFolder(str(tmp_path), str(number), network)
        assert text_encoders._pipeline(texts, "cpu", torch.float32).vae_scale_factor == expected
