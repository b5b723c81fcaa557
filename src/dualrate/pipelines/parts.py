"""Parts of a `DualRatePipeline`, its networks and its scheduler, each in a folder with a manifest of its files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from dualrate.config.serial import from_plain
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Process
from dualrate.drawing.choice import Choice, Places
from dualrate.drawing.drawer import UNGUIDED, Guidance
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.upgrade import upgraded
from dualrate.networks.blocks import blocks_of, cast_layers
from dualrate.pipelines.folder import check_files, check_weights, settings_in
from dualrate.system.files import blaming
from dualrate.system.folders import MANIFEST, Damaged, Manifest


def seal(folder: Path) -> None:
    """Write the manifest of a folder's files. Weights get the mode of the others: diffusers makes them private."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)
    Manifest.write(folder, {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST})


def check_sealed(folder: Path, required: str) -> None:
    """Raises OSError, naming the file, unless all that the manifest lists is what it says; warns where there is none.

    required: a file that it lists in any case
    Raises ValueError for a pipe, a socket or a device among the folder's files.
    """
    check_files(folder)
    try:
        manifest = Manifest.read(folder, [required])
        if manifest is not None:
            for name in manifest.entries:
                manifest.content(name)
    except Damaged as error:
        raise OSError(
            f"{folder} is damaged ({error}): fetch it again, or export it again from its run. If it was changed on "
            f"purpose, remove its {MANIFEST}"
        ) from error
    if manifest is None:
        warnings.warn(
            f"{folder} has no {MANIFEST}, so nothing tells whether it is what was saved: save or export it again",
            stacklevel=2,
        )


class Checked:
    """Compares a folder of ours with its manifest before another library reads it."""

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Raises OSError for a damaged folder, naming the file."""
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_sealed(folder, cls.config_name)  # pyright: ignore[reportAttributeAccessIssue]
            check_weights(folder, ours=True)
            settings_in(folder / cls.config_name)  # pyright: ignore[reportAttributeAccessIssue]
        return super().load_config(pretrained_model_name_or_path, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def experiment_in(plain: Mapping[str, Any]) -> Experiment:
    """The experiment in the configuration of a network."""
    return from_plain(Experiment, upgraded(dict(plain)), "experiment in config.json")


LAYOUT = ("grid", "places", "switch_at")  # of a `Choice` without a plan
COMPUTES_IN = {torch.float32, torch.float16, torch.bfloat16}


class DualRateNetwork(Checked, ModelMixin, ConfigMixin):
    """One network of a model. role: in its experiment's networks; experiment: as `to_plain` writes it.

    In another dtype than float32 it runs under autocast; weights are cast as in all sampling in bfloat16.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, role: str, experiment: dict[str, Any]) -> None:
        super().__init__()
        self.computes_in: torch.dtype | None = None
        self.network = experiment_in(experiment).build()[0][role]

    @staticmethod
    def of(network: nn.Module, role: str, experiment: dict[str, Any]) -> DualRateNetwork:
        """Wrap a network that is built already."""
        with torch.device("meta"):
            wrapped = DualRateNetwork(role, experiment)
        wrapped.network = network
        return wrapped.eval()

    @property
    def _repeated_blocks(self) -> list[str]:
        """Names of the classes that `compile_repeated_blocks` compiles once."""
        return sorted({type(block).__name__ for block in blocks_of(self.network)})

    def forward(self, z: Tensor, *args: Any) -> Any:
        """Call the network; z: (B, C, H, W)."""
        with torch.autocast(z.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(z, *args)

    def to(self, *args: Any, dtype: Any = None, **kwargs: Any) -> DualRateNetwork:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Move and cast, as any module, but for what a dtype casts. Raises ValueError for any but `COMPUTES_IN`."""
        dtypes = [dtype] * (dtype is not None) + [value for value in args if isinstance(value, torch.dtype)]
        if wrong := [value for value in dtypes if value not in COMPUTES_IN]:
            raise ValueError(f"dtype is torch.float32, torch.float16 or torch.bfloat16, got {wrong[0]!r}")
        super().to(*(value for value in args if not isinstance(value, torch.dtype)), **kwargs)
        for dtype in dtypes:
            in_float32 = experiment_in(self.config["experiment"]).networks.bfloat16_weights
            self.computes_in = None if in_float32 or dtype == torch.float32 else dtype
            for part in [self] if dtype == torch.float32 else cast_layers(self.network) if in_float32 else ():
                nn.Module.to(part, dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in, even where its weights stay in float32."""
        return self.computes_in or super().dtype

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Any:
        """Load a network as any model, cast as `to` does; dtype "auto": as saved, in float32.

        Raises as `to`, and OSError for a damaged folder, naming the file.

        Weights are copied to where and as `dualrate.load` has them: else products differ in their last bits.
        """
        dtypes = [value for name in ("dtype", "torch_dtype") if (value := kwargs.pop(name, None)) not in (None, "auto")]
        kwargs.pop("use_safetensors", None)  # no pickle, whatever is asked for
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        with blaming(folder / cls.config_name):
            network = super().from_pretrained(pretrained_model_name_or_path, use_safetensors=True, **kwargs)
        for weight in network.parameters():
            form = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
            weight.data = weight.data.clone(memory_format=form)
        return network.to(dtype=dtypes[0]) if dtypes else network

    @wraps(ModelMixin.save_pretrained)  # whose parameters a pipeline looks at
    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().save_pretrained(save_directory, **{**kwargs, "safe_serialization": True})  # never a pickle
        seal(Path(save_directory))


def levels_of(process: Process) -> list[float]:
    """The log-SNRs at three times, by which schedules are told apart."""
    return process.pace.log_snr(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()


class DualRateScheduler(Checked, SchedulerMixin, ConfigMixin):
    """When networks run and how a step is made: a `Choice` and a `Guidance` in a file. It takes no steps itself.

    plan: a StepPlan, or as of its `to_json`, as the file has it; sampler, gamma, eta: as of `Choice`
    grid, places, switch_at: as of `Choice`, of plans of other numbers of steps
    log_snr: as of `levels_of`, of the process that the plan is for; None: any
    """

    @register_to_config
    def __init__(
        self,
        plan: StepPlan | dict[str, Any] | None = None,
        sampler: str | None = None,
        gamma: float | None = None,
        eta: float | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        grid: str | None = None,
        places: Places | None = None,
        switch_at: float | None = None,
        log_snr: Sequence[float] | None = None,
    ) -> None:
        with blaming("the settings of a DualRateScheduler"):
            step_plan = plan if isinstance(plan, StepPlan | None) else StepPlan.from_json(json.dumps(plan))
            self.choice = Choice(sampler=sampler, gamma=gamma, eta=eta, plan=step_plan)
            _ = self.guided(guidance_scale), self.asked(1, None, None)
        plain = None if step_plan is None else json.loads(step_plan.to_json())
        self.register_to_config(plan=plain, _use_default_values=[])  # else from_config drops what stands without names

    @classmethod
    def of(cls, choice: Choice, guidance: Guidance = UNGUIDED, other: Choice = Choice(), process: Any = None) -> Self:  # noqa: B008  # a frozen value
        """A scheduler that draws by a choice with a plan, such as a `settled` one.

        other: what lays out plans of other numbers of steps; process: that the plan is for, None: any
        """
        settings = choice.plan, choice.sampler, choice.gamma, choice.eta, guidance.weight, guidance.interval
        levels = None if process is None else levels_of(process)
        return cls(*settings, **{name: getattr(other, name) for name in LAYOUT}, log_snr=levels)

    def check(self, process: Process) -> None:
        """Raises ValueError where its plan is of other noise levels than this process has."""
        if (levels := self.config["log_snr"]) is not None and not np.allclose(levels, levels_of(process), atol=0.01):
            raise ValueError(
                "the plan of this scheduler is of another model's noise levels: take that of this model's folder"
            )

    def asked(self, steps: int | None, heavy: int | None, plan: StepPlan | None) -> Choice:
        """Its choice, but for what a call says. Raises ValueError for a plan beside steps or heavy calls."""
        if steps is plan is None and self.choice.plan is not None:
            if heavy is None:
                return self.choice
            steps = self.choice.plan.num_steps
        layout = {name: self.config[name] for name in LAYOUT if plan is None}
        return dataclasses.replace(self.choice, **{"steps": steps, "heavy": heavy, "plan": plan, **layout})

    def guided(self, weight: float | None) -> Guidance:
        """Its guidance, or of another weight."""
        scale: float = self.config["guidance_scale"] if weight is None else weight
        with blaming("guidance_scale"):
            return Guidance(scale, None if scale == 1 else self.config["guidance_interval"])

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().save_pretrained(save_directory, **kwargs)
        seal(Path(save_directory))
