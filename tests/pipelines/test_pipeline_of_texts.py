"""A run of a text-to-image model as a pipeline of diffusers: prompts, negative prompts, and a fresh process."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli.command import call
from huggingface_hub import ModelCard
from pipelines.stub_texts import embedding, encoders
from pipelines.test_hub import SCORE
from pipelines.test_retrofit_prompts import direct, root  # noqa: F401  # a fixture

import dualrate as dr
from dualrate.data.condition_rows import Given
from dualrate.denoisers.guidance import Guided
from dualrate.pipelines.export import DualRatePipeline
from dualrate.sampling.trajectory import rollout

PLAN = ("--steps", "4", "--heavy", "2")
FRESH = """
import sys
import numpy as np, pytest, torch
from pipelines.stub_texts import encoders
encoders(pytest.MonkeyPatch())
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipe("a red circle", generator=torch.Generator().manual_seed(3), output_type="np").images
np.save(sys.argv[2], images)
"""


@pytest.fixture(scope="module")
def exported(root):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        encoders(patch)
        (root / "score.json").write_text(json.dumps(SCORE | {"weights": dr.load(root / "run").weights_hash}))
        line = ("export", root / "run", "--to", "diffusers", root / "pipe", *PLAN, "--score", root / "score.json")
        assert call(patch, *line) == 0
    return root / "pipe"


@pytest.fixture
def pipe(exported, tmp_path, monkeypatch):
    """Return the pipeline of a folder that may be changed."""
    encoders(monkeypatch)
    return DualRatePipeline.from_pretrained(shutil.copytree(exported, tmp_path / "pipe"))


def run_of(root, *texts):  # noqa: F811
    given = torch.stack([embedding(text).reshape(1, 1, -1) for text in texts])
    return dr.load(root / "run").with_given(Given(given))


def expected(root):  # noqa: F811
    drawer = replace(dr.Choice(steps=4, heavy=2).drawer(run_of(root, "a red circle")), precision="float32")
    return drawer.draw([3]).images.transpose(0, 2, 3, 1) / 255


def test_it_draws_the_runs_images_of_a_text(root, pipe, tmp_path):  # noqa: F811
    parts = {part.name for part in (tmp_path / "pipe" / "texts").iterdir()}
    assert parts == {"model_index.json", "scheduler", "text_encoder", "tokenizer", "vae"}
    images = pipe("a red circle", generator=torch.Generator().manual_seed(3), output_type="np").images
    np.testing.assert_allclose(images, expected(root), atol=1 / 255)


def test_its_card_says_text_to_image_of_the_model_and_of_its_score(exported):
    data = ModelCard.load(exported / "README.md").data
    (result,) = data.eval_results
    assert (data.pipeline_tag, result.task_type) == ("text-to-image", "text-to-image")


@pytest.mark.slow
def test_so_does_a_fresh_process_by_the_loader_of_diffusers(root, pipe, tmp_path):  # noqa: F811
    out = tmp_path / "images.npy"
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "pipe"), str(out)], check=True)
    np.testing.assert_allclose(np.load(out), expected(root), atol=1 / 255)


def test_it_is_guided_from_the_negative_prompt_and_takes_latents(root, pipe):  # noqa: F811
    texts, z = ["a red circle", "a blue square"], torch.randn(2, 4, 8, 8)
    how = {"num_inference_steps": 2, "num_heavy": 2, "latents": z, "output_type": "latent", "guidance_scale": 3.0}
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, sampler="ddim", gamma=None)
    found = pipe(prompt=texts, negative_prompt="blurred", **how).images
    model = direct(root)
    model.network.empty = embedding("blurred").reshape(1, 1, 1, -1)
    cond = dr.prompts(model, {"encoder_hidden_states": torch.stack([embedding(text) for text in texts])})
    guided = Guided(model, model.process, 3.0, null=1)
    plan = pipe.scheduler.asked(2, 2, None).drawer(pipe.as_model()).plan
    last = rollout(guided, dr.DDIM(model.process), plan, z, cond, lambda *_: None)
    torch.testing.assert_close(found, last, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, pipe(texts, **how).images)
    assert pipe("a red circle", batch_size=2, num_inference_steps=2, output_type="pt").images.shape == (2, 3, 16, 16)
    z = z.repeat(2, 1, 1, 1)
    several = pipe(texts, num_images_per_prompt=2, **how | {"latents": z}).images
    each = pipe([texts[0], texts[0], texts[1], texts[1]], **how | {"latents": z}).images
    torch.testing.assert_close(several, each)


def test_its_text_encoders_are_of_its_dtype(exported, tmp_path, monkeypatch):
    read, folder = encoders(monkeypatch), shutil.copytree(exported, tmp_path / "pipe")
    how = {"num_inference_steps": 1, "num_heavy": 1, "negative_prompt": "blurred", "output_type": "latent"}
    pipe = DualRatePipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipe("a red circle", **how)
    pipe.to(torch.float32)("a red circle", **how)
    assert [encoder.dtype for encoder in read] == [torch.bfloat16, torch.float32]


def test_calls_without_texts_or_with_changed_encoders_are_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="makes images of texts: pass prompt"):
        pipe()
    for wrong in ({"prompt": 3}, {"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}):
        with pytest.raises(ValueError, match="negative_prompt is one text for all images, got"):
            pipe(**wrong)
    with pytest.raises(ValueError, match="prompt 2, latents 3"):
        pipe(["a", "b"], latents=torch.zeros(3, 4, 8, 8))
    (tmp_path / "pipe" / "texts" / "tokenizer" / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match="are others"):
        pipe("a red circle")
    shutil.rmtree(tmp_path / "pipe" / "texts")
    with pytest.raises(ValueError, match="text encoders read prompts is gone from"):
        pipe.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "texts").exists()
