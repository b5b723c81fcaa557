"""Diffusers' own tests of pipelines, on ours: run by test_diffusers_own_tests.py, from a checkout of diffusers."""

import unittest

import torch
from runs.made import TWO
from tests.pipelines.test_pipelines_common import PipelineTesterMixin

import dualrate as dr
from dualrate.pipelines.export import DualRatePipeline


class TestDualRate(PipelineTesterMixin, unittest.TestCase):
    pipeline_class = DualRatePipeline
    params = frozenset({"class_labels"})
    batch_params = frozenset({"class_labels"})
    required_optional_params = frozenset(
        {"num_inference_steps", "generator", "latents", "output_type", "return_dict", "callback_on_step_end"}
    )

    def get_dummy_components(self):
        networks, denoiser = TWO.build()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            for parameter in networks.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        model = dr.Model("two", TWO, networks.eval(), denoiser, 0, "")
        return dict(DualRatePipeline.of(model, dr.Choice(steps=4, heavy=2)).components)

    def get_dummy_inputs(self, device, seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        return {"class_labels": 1, "generator": generator, "num_inference_steps": 4, "output_type": "np"}

    def test_inference_batch_single_identical(self):
        self._test_inference_batch_single_identical(expected_max_diff=1e-5)
