"""Folders of diffusers: that of a pipeline (model_index.json), or of a network alone (config.json).

Only JSON and safetensors are read: no code of a folder is run, and no pickle is loaded.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from torch import nn

from dualrate.diffusion.prediction import Convention
from dualrate.diffusion.schedule import Schedule
from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.prompts import COMPONENTS
from dualrate.pipelines.schedulers import NO_MEAN, read_scheduler
from dualrate.system.files import blaming, check_regular, read_header, read_json, shown
from dualrate.system.folders import some_of

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
CODECS = ("vae", "vqvae")
WEIGHTS = "diffusion_pytorch_model"
VARIANT = re.compile(rf"{WEIGHTS}(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
PICKLES = (".bin", ".ckpt", ".pt")
PRECISIONS = {"fp16", "bf16", "fp32"}  # of variants that are read, in float32, where they are the only weights
READ = (*COMPONENTS, *CODECS, "text_encoder", "tokenizer", "scheduler")  # parts of a pipeline, as their names begin
KNOWN = ("diffusers", "transformers", None)  # libraries of these
EXPORT = "dualrate.pipelines.export"  # reads those that dualrate exported
LORA = re.compile(r"\.base_layer\.|\.lora_[AB]\.")  # in a weight's name
FUSE = "make it a part of them before (pipe.fuse_lora(), then pipe.unload_lora_weights()), and save again"
DISTILLED = {"schnell", "turbo", "lcm", "lightning", "sprint", "dmd", "distill", "distilled", "hyper", "tcd"}


@dataclass(frozen=True)
class Folder:
    """A network's folder, and what stands beside it.

    name, config: the network's class and configuration
    scheduler:    the scheduler's configuration, None if there is none; beside: its file
    codec:        of the pipeline's VAE, None if it has none: then an image is of latents
    class_names:  as of `class_names_of`
    """

    place: Path
    name: str
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    codec: Path | None
    class_names: tuple[str, ...] = ()
    beside: Path | None = None

    def network(self) -> nn.Module:
        """The network with its weights. Raises what `class_named` and `read_weights` raise."""
        return read_weights(class_named(self.name), self.place)

    def schedule(self, tokens: int) -> tuple[Schedule, Convention]:
        """As of `read_scheduler`; there is a scheduler."""
        assert self.scheduler is not None
        assert self.beside is not None
        with blaming(self.beside):
            return read_scheduler(self.scheduler, tokens)

    @property
    def fingerprint(self) -> str:
        """sha256 of the configuration and the weights' files."""
        return digest_of(self.place, [self.place / NETWORK, *sorted(self.place.glob("*.safetensors"))])


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """sha256 of files in a folder and of their places there."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(file.relative_to(folder).as_posix().encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def read_weights(kind: Any, place: Path) -> nn.Module:
    """A model of a class of diffusers, with the weights of its folder.

    Raises OSError where there are none in safetensors, as `_variant`; ValueError where some lack, or are whole numbers,
    and for a configuration that the class does not take. Warns of weights that the class does not have.
    """
    from diffusers.utils.import_utils import is_accelerate_available

    name = kind.__name__
    variant = _variant(place, name)
    check_weights(place)
    with blaming(place / NETWORK):
        net, info = kind.from_pretrained(
            place,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=is_accelerate_available(),  # without it diffusers asks for it at length
            output_loading_info=True,
        )
    if wrong := [key for keys in ("missing_keys", "mismatched_keys") for key in info[keys]]:
        raise ValueError(f"{place} lacks weights of its {name}, {min(wrong)} the first of {len(wrong)}: fetch it again")
    if more := info["unexpected_keys"]:
        warnings.warn(
            f"{place} has weights that a {name} of its {NETWORK} does not have, {min(more)} the first of {len(more)}: "
            "they are left out. If they belong to it, its configuration is another's",
            stacklevel=2,
        )
    return cast(nn.Module, net)


def _variant(place: Path, name: str) -> str | None:
    """The variant of a folder's weights to read: None for the plain ones; else the only one, if it says a precision.

    Raises OSError, which lists what is there and says what to do, where there are neither.
    """
    names = sorted(file.name for file in place.glob("*") if file.suffix in (".safetensors", *PICKLES))
    variants = {match[1] for file_name in names if (match := VARIANT.fullmatch(file_name))}
    if None in variants:
        return None
    if len(variants) == 1 and variants <= PRECISIONS:
        return variants.pop()
    way = "fetch it"
    if names:
        how = f"variant={min(variants)!r}" if variants else "use_safetensors=False"
        way = f"write it by diffusers.{name}.from_pretrained({str(place)!r}, {how}).save_pretrained(FOLDER)"
        way += "" if variants else ", if you trust its origin: a pickle can run any code, and is never read here"
    raise OSError(f"{place} has no {WEIGHTS}.safetensors, it has {some_of(names) or 'no weights'}: {way}")


def is_diffusers(path: Path) -> bool:
    """Whether a folder looks like one of theirs."""
    return (path / INDEX).is_file() or (path / NETWORK).is_file()


def read_folder(path: Path) -> Folder:
    """Raises ValueError for a folder that is none of theirs, or of a distilled model; OSError if it cannot be read."""
    if not is_diffusers(path):
        raise ValueError(f"{path} is no folder of diffusers: it has neither {INDEX} nor {NETWORK}")
    index = settings_in(path / INDEX) if (path / INDEX).is_file() else {}
    check_own(path, index)
    role = next((role for role in COMPONENTS if index.get(role)), None)
    if index and role is None:
        raise ValueError(f"{path} has no {' or '.join(COMPONENTS)}; its {INDEX} lists {', '.join(index)}")
    place = path / role if role and (path / role).is_dir() else path  # of old pipelines the pipeline's own
    check_files(place)  # their library would wait for a pipe
    config = settings_in(place / NETWORK)
    beside = next((file for file in (path / "scheduler" / SCHEDULER, path / SCHEDULER) if file.is_file()), None)
    check_name(path, config)
    check_config(place, config)
    codec = next((role for role in CODECS if index.get(role)), None)
    return Folder(
        place,
        str(config.get("_class_name")),
        config,
        None if beside is None else settings_in(beside),
        path / codec if codec else None,
        class_names_of(index.get("id2label")),
        beside,
    )


def way_to_load(path: Path) -> str:
    """Words for what to do with a folder, or the name of one on a hub, where a pipeline in memory is wanted."""
    index = path / INDEX
    if (path / "experiment.json").is_file():
        return f"this is a model of dualrate, which dr.sample(dr.load({str(path)!r}), 16) draws from"
    if index.is_file() and "DualRatePipeline" in index.read_text("utf-8", errors="replace"):
        return f"dualrate exported this; DualRatePipeline.from_pretrained({str(path)!r}) of {EXPORT} draws from it"
    if (path / NETWORK).is_file() and not index.is_file():
        return f"pass the network in it, diffusers.AutoModel.from_pretrained({str(path)!r}), and scheduler="
    return f"pass diffusers.DiffusionPipeline.from_pretrained({str(path)!r})"


def check_own(path: Path, index: Mapping[str, Any]) -> None:
    """Raises ValueError for a pipeline with code of its own, by its model_index.json, in a part that is read."""
    read = {name: part for name, part in index.items() if name.startswith(READ) and isinstance(part, list)}
    if any(str(part[0]).startswith("dualrate.") for part in read.values() if part):
        raise ValueError(
            f"{path} is a pipeline that dualrate exported: DualRatePipeline.from_pretrained({str(path)!r}) of {EXPORT} "
            "reads it, or name the run that it was made of"
        )
    foreign = [
        f"its {name} is of {shown(part[0], 60)}"
        for name, part in read.items()
        if part and not _known(part[0], path / name)
    ]
    foreign += ["its class is in a file of the folder"] * isinstance(index.get("_class_name"), list)
    if foreign:
        raise ValueError(
            f"the pipeline in {path} has code of its own ({foreign[0]}), which may do anything and is never run: pass "
            "its network and scheduler in Python (dualrate.from_diffusers), or take a pipeline of diffusers' own"
        )


def _known(library: object, place: Path) -> bool:
    """Whether parts of a library are no code of their folder: a pipeline of diffusers may have some in its own module.

    A file there that is named like the library would be read in place of it, where diffusers lacks that module.
    """
    homes = getattr(find_spec("diffusers"), "submodule_search_locations", None) or ()
    modules = (Path(home, "pipelines", str(library), "__init__.py") for home in homes)
    listed = library in KNOWN or (str(library).isidentifier() and any(module.is_file() for module in modules))
    return listed and not (place / f"{library}.py").exists()


def check_config(place: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for a model in a folder that is quantised, or larger than any."""
    with blaming(place / NETWORK):
        check_sizes(config)
    if config.get("quantization_config"):
        raise ValueError(
            f"the model in {place} is quantised: take one in float32, float16 or bfloat16, or load it so "
            "(torch_dtype=torch.bfloat16, without quantization_config), and save that"
        )


LARGEST, LAYERS = 10_000_000, 1000  # numbers in a configuration, and those of layers or blocks


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises ValueError for numbers with which another library would build a network for ever."""
    for name, value in config.items():
        most = LAYERS if re.search("layer|block|depth", name) and "channel" not in name else LARGEST
        if any(abs(number) > most for number in _whole_numbers(value)):
            raise ValueError(f"its {name} is {shown(value, 60)}, expected at most {most:,}")


def _whole_numbers(value: object) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _whole_numbers(item)


def class_names_of(labels: object) -> tuple[str, ...]:
    """The classes' names, by number, of a pipeline's `id2label`: {"0": name, "1": name, ...}; none if it is no such."""
    by_number: Mapping[str, object] = labels if isinstance(labels, dict) else {}
    names = [name for number in range(len(by_number)) if isinstance(name := by_number.get(str(number)), str)]
    return tuple(names) if len(names) == len(by_number) else ()


def settings_in(path: Path) -> dict[str, Any]:
    """Reads a file of settings. Raises ValueError, naming it, for anything but a JSON object."""
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings: expected a JSON object, got {shown(settings, 60)}")
    return settings


def check_name(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError where a name says that a model is distilled. path: it is from; config: of its network."""
    names = []
    for place in (path.resolve(), Path(str(config.get("_name_or_path") or ""))):
        place = place.parent if place.name in COMPONENTS else place
        names.append((place.parents[1] if place.parent.name == "snapshots" else place).name)  # in the Hub's cache
    if words := DISTILLED & set(re.split(r"[^a-z]+", " ".join(names).lower())):
        names = ", ".join(sorted(words))
        raise ValueError(f"{path} is a distilled model, by its name ({names}): {NO_MEAN}. If it is none, rename it")


def class_named(name: str, classes: Collection[str] = KINDS) -> Any:
    """The class of diffusers. Raises ValueError for one that is not known, and without diffusers."""
    if name not in classes:
        raise ValueError(f"no {shown(name, 60)} is known; known are {', '.join(classes)}")
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"{name} is of diffusers, which is not here: pip install 'dualrate[diffusers]'") from error
    return getattr(diffusers, name)


def check_weights(folder: Path, *, ours: bool = False) -> None:
    """Raises ValueError for weights in a folder, by their files' headers, that are whole numbers, or of a LoRA beside
    others where they are not ours.

    Counters, of 64 bits, may be among them.
    """
    for file in sorted(folder.glob("*.safetensors")):
        check_regular(file)
        with blaming(file), file.open("rb") as opened:
            header = read_header(opened)
        if not ours and any(map(LORA.search, header)):
            raise ValueError(f"{folder} was saved with a LoRA beside its weights: {FUSE}")
        for name, entry in header.items():
            dtype = entry.get("dtype") if isinstance(entry, dict) and name != "__metadata__" else "F32"
            if dtype != "I64" and not str(dtype).startswith(("F", "BF")):
                raise ValueError(f"{file} has {name} as {dtype}, expected F32, F16 or BF16: fetch the file again")


def check_files(folder: Path) -> None:
    """Before another library opens the files of a folder: raises ValueError for a pipe, a socket or a device there."""
    for file in sorted(folder.iterdir()):
        if file.exists() and not file.is_dir():
            check_regular(file)
