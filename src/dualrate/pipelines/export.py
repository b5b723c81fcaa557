"""A model of ours as a pipeline of diffusers: `DualRatePipeline.from_pretrained(FOLDER)`.

    FOLDER/model_index.json    which class reads which folder below; names of the classes, `id2label`
    FOLDER/encoder, light      a network each (`DualRateNetwork`); of a model of one network, model
    FOLDER/vae                 of a model of latents the autoencoder that decodes them, a class of diffusers
    FOLDER/texts               of a text-to-image model the encoders of its pipeline, which the run knows by sha256
    FOLDER/scheduler           when they run and how a step is made (`DualRateScheduler`), to be swapped like any other
    FOLDER/pipeline.py         for diffusers' own loader
    FOLDER/**/MANIFEST.json    sha256 of all these files; a damaged one is an OSError that names it

Images are those of `dualrate.sample`, of seed, class, plan and step. torch's generators are states, ours are functions
of a seed: a generator that nothing was drawn from stands for the seed that it was made with, and any other for its next
number. The paths of this module and of parts.py stand in every folder.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # looked up in this module by folders that name it
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from torch import Tensor, nn

from dualrate.codecs.codec import ON_PIXELS, Codec, CodecFolder, decoded
from dualrate.config.classes import MOVED
from dualrate.config.imports import already_imported
from dualrate.config.serial import to_plain
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.drawing.choice import Choice, Note
from dualrate.drawing.drawer import UNGUIDED, Guidance
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.pipelines import call
from dualrate.pipelines.autoencoder import Autoencoder, HeldCodec
from dualrate.pipelines.condition import Prompts
from dualrate.pipelines.folder import class_names_of
from dualrate.pipelines.parts import Checked, DualRateNetwork, DualRateScheduler, check_sealed, experiment_in, seal
from dualrate.pipelines.prompts import negated
from dualrate.pipelines.retrofitted import encoder_of
from dualrate.pipelines.text_encoders import copy_encoders
from dualrate.system.device import own_defaults
from dualrate.system.files import blaming, read_json
from dualrate.system.folders import Manifest

STUB = '''"""For `DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`."""

from dualrate.pipelines.export import DualRatePipeline  # noqa: F401
'''
ROLES = ("encoder", "light", "model")  # of networks that a pipeline may hold
VAE, TEXTS = "vae", "texts"
TOP = ["model_index.json", "pipeline.py"]  # files beside the folders of its parts
RECOMMENDED = Choice()
DOWNLOADING = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class DualRatePipeline(Checked, DiffusionPipeline):
    """Images of a model, dual-rate or of one network.

    scheduler: plan, sampler and guidance, where a call does not say them
    encoder, light, model: the networks that the model's experiment has
    vae: of a model of latents; it computes in its own dtype, float32 unless it was cast
    id2label: names of the classes, {"0": name, "1": name, ...}, as in a file
    Raises ValueError for networks of several models, or too few, another scheduler, and where a vae is missing or does
    not fit; warns of one that did not make the latents.

    Offloading moves the heavy network, and the vae; the light one runs at every step.
    """

    model_cpu_offload_seq = "encoder->model->vae"
    _exclude_from_cpu_offload = ["light"]  # noqa: RUF012  # diffusers' name, and a list there
    _optional_components = [*ROLES, VAE]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        scheduler: DualRateScheduler,
        encoder: DualRateNetwork | None = None,
        light: DualRateNetwork | None = None,
        model: DualRateNetwork | None = None,
        vae: ModelMixin | None = None,
        id2label: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if id2label:
            self.register_to_config(id2label=dict(id2label))
        self.register_modules(scheduler=scheduler, encoder=encoder, light=light, model=model, vae=vae)
        self._optional_components = [name for name in (*ROLES, VAE) if getattr(self, name) is None]  # of this very one
        self.num_timesteps, self._guidance_scale, self._interrupt = 0, 1.0, False  # of the latest call
        self._texts: Path | None = None
        _ = self._how
        made_by, codec = self._experiment.codec.fingerprint, self.as_model().codec
        if vae is not None and vae.dtype == torch.float32 and codec.fingerprint != made_by:
            warnings.warn(
                f"this vae (sha256 {codec.fingerprint[:12]}) is not the one that made the model's latents "
                f"({made_by[:12]}): its images may be off",
                stacklevel=2,
            )

    @staticmethod
    @own_defaults()
    def of(
        model: Model, choice: Choice = RECOMMENDED, guidance: Guidance = UNGUIDED, note: Note = warnings.warn
    ) -> DualRatePipeline:
        """A pipeline that shares a model's weights. choice, guidance: for calls that say nothing; note: as of `Choice`.

        Raises ValueError for a plan or a sampler that the model does not serve, networks of other roles than encoder,
        light and model, a codec that is none of diffusers, a denoiser that is not their own.
        """
        if model.called_by is not None:
            raise ValueError(f"a pipeline calls networks by their own denoiser, not by {model.called_by}: drop it")
        if model.experiment.networks.given is not None and not model.experiment.condition.labelled:
            raise ValueError(f"{model.name} is a conditional model, and a pipeline draws from noise alone")
        codec, experiment, parts = model.codec, model.experiment, {}
        if isinstance(codec, Autoencoder):
            experiment = dataclasses.replace(experiment, codec=CodecFolder(VAE, codec.fingerprint))
            parts[VAE] = copy.deepcopy(codec.module)  # to be moved and cast
        elif codec != ON_PIXELS:
            raise ValueError(
                f"{model.name} draws latents of a {type(codec).__name__}, no codec of diffusers: use dualrate.sample"
            )
        condition, texts = experiment.condition, None
        if isinstance(condition, Prompts):
            texts = Path(encoder_of(experiment).folder)
            experiment = dataclasses.replace(experiment, condition=dataclasses.replace(condition, folder=TEXTS))
        if strange := sorted(set(model.networks) - set(ROLES)):
            raise ValueError(f"a pipeline has networks called {', '.join(ROLES)}, {model.name} has {strange[0]}")
        plain = json.loads(json.dumps(to_plain(experiment)))
        parts |= {role: DualRateNetwork.of(network, role, plain) for role, network in model.networks.items()}
        names = {str(number): name for number, name in enumerate(model.class_names)}
        scheduler = DualRateScheduler.of(choice.settled(model, note), guidance, choice, experiment.process)
        pipeline = DualRatePipeline(scheduler, **parts, id2label=names)
        pipeline._texts = texts
        pipeline.scheduler.choice.drawer(pipeline.as_model(), guidance=guidance)
        return pipeline

    @property
    def _networks(self) -> dict[str, DualRateNetwork]:
        return {role: part for role in ROLES if (part := getattr(self, role)) is not None}

    @property
    def _how(self) -> DualRateScheduler:
        """Its scheduler. Raises ValueError for one of diffusers: those step a network, and know no plan; and for one
        whose plan is of other noise levels.
        """
        if not isinstance(self.scheduler, DualRateScheduler):
            raise ValueError(
                f"a pipeline's scheduler is a DualRateScheduler, got {type(self.scheduler).__name__}: for another "
                "sampler pass DualRateScheduler.from_pretrained(FOLDER, subfolder='scheduler', sampler='ancestral')"
            )
        self.scheduler.check(self._experiment.process)
        return self.scheduler

    @property
    def _experiment(self) -> Experiment:
        """The experiment of its networks. Raises ValueError for networks of several models, or none."""
        networks = self._networks
        plains = [part.config["experiment"] for part in networks.values()]
        if not plains or any(plain != plains[0] for plain in plains):
            got = f"{', '.join(networks)} of several models" if networks else "none"
            raise ValueError(f"a pipeline has the networks of one model, as a folder holds them; got {got}")
        return experiment_in(plains[0])

    def as_model(self) -> Model:
        """The model that its networks are, on its vae."""
        experiment, parts, vae = self._experiment, self._networks, self.vae
        codec: Codec = ON_PIXELS if vae is None else Autoencoder(vae, vae.config, VAE)
        if (codec == ON_PIXELS) == bool(experiment.codec.fingerprint):
            drawn, has = ("latents", "the") if codec == ON_PIXELS else ("pixels", "no")
            raise ValueError(f"{experiment.name} draws {drawn}: a pipeline of it has {has} vae")
        codec.image_shape(experiment.shape)  # refuses what it cannot decode
        experiment = dataclasses.replace(experiment, codec=HeldCodec(codec))
        if isinstance(condition := experiment.condition, Prompts):
            condition = dataclasses.replace(condition, folder=str(self.texts))
            experiment = dataclasses.replace(experiment, condition=condition)
        with torch.device("meta"):
            networks, denoiser = experiment.parts()
        if networks.keys() != parts.keys():
            raise ValueError(f"{experiment.name} has networks {', '.join(networks)}; got {', '.join(parts)}")
        called, names = calling(denoiser, networks, parts), class_names_of(self.config.get("id2label"))
        return Model(experiment.name, experiment, nn.ModuleDict(parts), called, 0, "", class_names=names)

    @property
    def texts(self) -> Path:
        """The folder of a text-to-image model's encoders: in its own folder, or in that of the run's pipeline."""
        return self._texts or Path(str(self.config.get("_name_or_path") or ""), TEXTS)

    @property
    def transformer(self) -> DualRateNetwork:
        """The network of every step, by the name that tools look for."""
        return [*self._networks.values()][-1]

    @property
    def guidance_scale(self) -> float:
        """The weight of guidance in the latest call."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the latest call makes no more steps, as a callback or another thread may ask it to."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError for a part of a library that is neither diffusers nor imported already, and for
        another pipeline.

        Older versions of diffusers import whatever module the file names. The class is this one, so the folder's
        pipeline.py, which names it, is not run.
        """
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        parts = config[0] if isinstance(config, tuple) else config
        if cls.__name__ not in (kind := parts.get("_class_name", cls.__name__)):
            raise ValueError(f"it is a {kind}: dr.load(FOLDER) or dr.from_diffusers(PIPELINE) makes a model of it")
        for name, part in parts.items():
            library = part[0] if isinstance(part, list | tuple) and part and not name.startswith("_") else None
            if isinstance(library, str) and library != "diffusers":
                library = MOVED.get(library, library)
                already_imported(library)
                parts[name] = [library, *part[1:]]
        return config | {"_class_name": cls.__name__} if isinstance(config, dict) else config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a folder as any pipeline; a repository of the Hub comes as a whole, manifests included.

        Raises OSError for a damaged folder, naming the file; ValueError for one of something else, such as a run.
        """
        path = pretrained_model_name_or_path
        if not os.path.isdir(path):
            path = snapshot_download(str(path), **{name: kwargs[name] for name in DOWNLOADING if name in kwargs})
        elif not Path(path, str(cls.config_name)).is_file():
            raise ValueError(f"{path} has no {cls.config_name}: `dualrate export RUN --to diffusers` makes a pipeline")
        kwargs.pop("use_safetensors", None)
        folder = Path(path, VAE)
        if folder.is_dir() and VAE not in kwargs:
            check_sealed(folder, "config.json")
            for key in ("dtype", "torch_dtype"):
                if isinstance(kwargs.get(key), torch.dtype):  # the vae stays in the dtype that it was trained in
                    kwargs[key] = {VAE: torch.float32, "default": kwargs[key]}
        with blaming(Path(path) / str(cls.config_name)):
            return super().from_pretrained(path, use_safetensors=True, **kwargs)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save safetensors, with manifests. Raises ValueError if asked to push before they are there, and as
        `encoder_of` where a model's text encoders are to be copied.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save the pipeline, then push it: pipe.push_to_hub(...), or dualrate export --push-to-hub")
        super().save_pretrained(save_directory, safe_serialization=True, **kwargs)  # never a pickle
        folder = Path(save_directory)
        if self.vae is not None:
            seal(folder / VAE)
        if isinstance(self._experiment.condition, Prompts) and not (folder / TEXTS).exists():
            copy_encoders(Path(encoder_of(self.as_model().experiment).folder), folder / TEXTS)
        (folder / "pipeline.py").write_text(STUB)
        index = read_json(folder / self.config_name) | {"_class_name": ["pipeline", type(self).__name__]}
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")
        Manifest.write(folder, TOP)

    @own_defaults()
    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | NDArray[np.int64] | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        num_heavy: int | None = None,
        plan: StepPlan | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = call.SEEN,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images, one for each label, generator or row of latents, or `batch_size` of them.

        class_labels: one for each image or for all, by number or by name; None: class `seed mod classes`. Of a model
                   of texts it is the prompt, which may come first
        prompt:    of a text-to-image model, one for each image or for all; negative_prompt: one for all, which guidance
                   goes away from; None: what its pipeline takes for none
        num_images_per_prompt: of each prompt, one after the other
        num_inference_steps, num_heavy, plan: instead of the scheduler's plan, whose grid and places they keep
        guidance_scale: weight of classifier-free guidance, 1 is none; None: the scheduler's
        generator: one for all images, or one for each. A fresh one stands for the seed it was made with: the image is
                   `dualrate.sample`'s of that seed. One that was drawn from before gives its next number for a seed
        latents:   (B, C, H, W), the noise to start from
        output_type: pil, np (B, H, W, C) and pt (B, C, H, W) in [0, 1], latent: (B, C, H, W) what networks see
        callback_on_step_end: (pipeline, step, its time t, {"latents": z after it}) -> a dict, or None. Other latents
                   in it are taken over; a context of the old ones is dropped then, so the next step makes a heavy call.
                   Where it sets the pipeline's `_interrupt`, no step follows, and the images are of the latents so far
        Raises ValueError for a plan or labels that the model does not serve, and for numbers of images that disagree.
        """
        changed = call.changes_by(callback_on_step_end, self, callback_on_step_end_tensor_inputs)
        if output_type not in call.OUTPUTS:
            raise ValueError(f"output_type is one of {', '.join(call.OUTPUTS)}, got {output_type!r}")
        model, how, device = self.as_model(), self._how, self._execution_device
        labels: Any = class_labels.tolist() if isinstance(class_labels, (Tensor, np.ndarray)) else class_labels
        if isinstance(model.experiment.condition, Prompts):
            prompt, labels = labels if prompt is None else prompt, None
            if prompt is None:
                raise ValueError(f"{model.name} makes images of texts: pass prompt")
            prompt = call.texts_of(prompt, negative_prompt, num_images_per_prompt)
        elif prompt is not None or negative_prompt is not None or (call.has_texts(labels) and not model.num_classes):
            raise ValueError(f"{model.name} makes images of no prompts: drop the prompt")
        elif num_images_per_prompt != 1:
            raise ValueError(f"{model.name} makes images of no prompts: say how many by batch_size or class_labels")
        encoder = None if prompt is None else encoder_of(model.experiment)
        if encoder is not None and negative_prompt is not None:
            empty = encoder.negative(negative_prompt, device, self.transformer.dtype)
            model = dataclasses.replace(model, denoiser=negated(model.denoiser, empty))
        choice = how.asked(num_inference_steps, num_heavy, plan)
        drawer = choice.drawer(model, guidance=how.guided(guidance_scale), precision="float32")
        sources = torch.default_generator if generator is None else generator
        count = call.sample_count(batch_size, class_labels=labels, prompt=prompt, generator=sources, latents=latents)
        seeds = [call.next_seed(source) for source in call.each(sources, count)]
        numbers = drawer.labels(seeds) if labels is None else [*map(model.class_number, call.each(labels, count))]
        cond = Cond(
            None if numbers is None else torch.tensor(numbers, device=device),
            None if encoder is None else encoder.read(device, self.transformer.dtype)(call.each(prompt, 1)).to(device),
        )
        draws = Draws(0, torch.tensor(seeds, device=device))
        self.num_timesteps, self._guidance_scale, self._interrupt = drawer.plan.num_steps, drawer.guidance.weight, False
        with self.progress_bar(total=drawer.plan.num_steps) as bar:  # pyright: ignore[reportCallIssue]
            z = call.sampled(drawer, draws, cond, latents, bar.update, changed, lambda: self._interrupt)
        if output_type != "latent":
            z = decoded(drawer.model.codec, z, draws)
        self.maybe_free_model_hooks()
        images = call.OUTPUTS[output_type](z)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


Callback = Callable[[DualRatePipeline, int, float, dict[str, Tensor]], dict[str, Tensor]]


def calling(denoiser: Denoiser, networks: nn.ModuleDict, replacements: Mapping[str, DualRateNetwork]) -> Denoiser:
    """A copy of what calls `networks`, or parts of them, that calls the `replacements` in their place."""
    memo: dict[int, object] = {}
    for role, network in networks.items():
        for name, part in network.named_modules():
            memo[id(part)] = replacements[role].get_submodule(f"network.{name}") if name else replacements[role]
    return copy.deepcopy(denoiser, memo)
