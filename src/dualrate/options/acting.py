"""Options that act on some runs alone: a line a kind of runs. Nothing here needs torch.

Help leaves out what cannot act on a run, and a command that is given it refuses. What a run is, its experiment.json
says, or the model_index.json of a folder of diffusers; of any other folder all options are shown, and none is refused.
A run that is yet to be trained is what its recipe says.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dualrate.experiment.upgrade import upgraded

Run = Mapping[str, Any]  # an experiment, as plain values
OPTIONS = Path(__file__).with_name("options.json")  # of all commands: `python tests/test_dualrate_command.py` writes it
TOKENS = ("GreyLevels", "ColourLevels", "Characters")  # codecs
STEPS = re.compile("--(nfe|(n|num|sampling|inference|num[-_]inference|diffusion)[-_]steps)")  # as others call them
FORECASTS = ("Forecast", "LatentForecast")  # conditions
NO_PICTURE = ("", "Unconditional", *FORECASTS, "Prompts", "Latent")


class Runs(NamedTuple):
    """A kind of runs. called: in words; options: that act on these alone, of one command alone with its name"""

    called: str
    options: tuple[str, ...]
    includes: Callable[[Run], bool]


def _type(run: Run, part: str) -> str:
    value = run.get(part)
    return str(value.get("type", "")) if isinstance(value, dict) else ""


def _of_forecasts(run: Run) -> bool:
    return _type(run, "condition") in FORECASTS


def _of_clips(run: Run) -> bool:
    """Whether frames are pictures of clips; true where no source is named yet, which may be of clips."""
    return _of_forecasts(run) and re.match("clips:|$", str((run.get("data") or {}).get("source", ""))) is not None


def _of_leads(run: Run) -> bool:
    networks = run.get("networks", {"leads": "any"})
    return _of_forecasts(run) and isinstance(networks, dict) and bool(networks.get("leads"))


def _of_places(run: Run) -> bool:
    """Whether fields have two axes with coordinates, which may be latitudes and longitudes."""
    geometry = run.get("condition", {}).get("geometry") or {}
    axes = [axis for axis in geometry.get("axes", ()) if axis.get("values")]
    return _of_forecasts(run) and (len(axes) == 2 or "networks" not in run)


def _of_images(run: Run) -> bool:
    return not _of_forecasts(run) and _type(run, "codec") != "Characters"


def _of_conditions(run: Run) -> bool:
    return _type(run, "condition") not in ("", "Unconditional")


def _of_classes(run: Run) -> bool:
    """Whether samples are of a class, or of a prompt; true where the file does not say."""
    condition, counts = _type(run, "condition"), re.findall(r'"num_classes": (\d+)', json.dumps(run.get("networks")))
    of_class = not _of_conditions(run) and (not counts or any(map(int, counts)))
    return of_class or condition == "Prompts" or ":" in condition


def _of_latents(run: Run) -> bool:
    of_codec = _type(run, "codec") not in ("", "NoCodec", *TOKENS)
    return of_codec or _type(run, "condition") in ("Latent", "LatentForecast")


TRAINING = ("train", "retrofit", "adapt")  # commands that make a run; their options are those of train
OF_IMAGES = "train --data.label", "train --data.augment"
OF_PICTURES = "train --data.channels", "train --data.on-bad", "train --codec"
SCORING = ("--features", "--reference", "--keep", "--details", "--equal-classes")
COMPARING = ("--baselines", "--mixed", "--screen")
KINDS = (
    Runs("runs that make images", ("--npz", *SCORING, *OF_IMAGES), _of_images),
    Runs("runs that make images or texts", (*COMPARING, "train --eval-every"), lambda run: not _of_forecasts(run)),
    Runs("images, texts or clips", ("train --data.size",), lambda run: not _of_forecasts(run) or _of_clips(run)),
    Runs("images or clips", OF_PICTURES, lambda run: _of_images(run) or _of_clips(run)),
    Runs("forecasts of clips", ("train --data.fps",), _of_clips),
    Runs("runs with classes or prompts", ("--label", "--guidance", "--interval"), _of_classes),
    Runs("text-to-image runs", ("--prompt",), lambda run: _type(run, "condition") == "Prompts"),
    Runs("runs whose condition is a picture", ("--given",), lambda run: _type(run, "condition") not in NO_PICTURE),
    Runs("runs with a condition", ("--members",), _of_conditions),
    Runs("runs without a condition", ("--bound",), lambda run: not _of_conditions(run)),
    Runs("forecasts", ("train --data.variables", "train --data.levels"), _of_forecasts),
    Runs("forecasts trained with --window leads", ("--stride",), _of_leads),
    Runs("forecasts over latitudes and longitudes", ("--region",), _of_places),
    Runs("runs of latents", ("--codec", "--codec-sampler", "--codec-steps"), _of_latents),
    Runs("runs of Gaussian noise", ("--gamma", "--eta"), lambda run: _type(run, "codec") not in TOKENS),
)
OF_RUNS = ("sample", "forecast", "evaluate", "compare", "plan", "cost", "export")  # commands
OF_OPTION = {option: kind for kind in KINDS for option in kind.options}
USUAL: Mapping[str, Run] = {"forecast": {"condition": {"type": "Forecast"}}}  # runs that a command takes alone


def runs_of(command: str, option: str) -> Runs | None:
    """The kind of runs on which an option acts; None: it acts on all."""
    option = re.sub("^--no-", "--", option)
    if command in TRAINING:
        option = re.sub("^--data.augment.*", "--data.augment", option)
        return OF_OPTION.get(f"train {option}")
    if command not in OF_RUNS:
        return None
    return OF_OPTION.get(f"{command} {option}", OF_OPTION.get(option))


def acts(command: str, option: str, run: Run) -> bool:
    kind = runs_of(command, option)
    return kind is None or kind.includes(run)


def named_runs(command: str, arguments: Sequence[str]) -> Iterator[tuple[str, Run]]:
    """The runs among the words after a command that are no values of options, with their folders."""
    if command not in OF_RUNS:
        return
    options = json.loads(OPTIONS.read_text())[command]["options"]  # by name, the number of values first
    for before, word in zip(("", *arguments), arguments, strict=False):
        value = options.get(option_name(before), "0")[0] != "0" and "=" not in before
        if word.startswith("-") or value:
            continue
        for folder in dict.fromkeys((word, re.split("[+:@]", word.partition("=")[2] or word)[0])):
            if (run := _read(folder)) is not None:
                yield folder, run
                break


def options_here(name: str, arguments: Sequence[str], command: Mapping[str, Any]) -> list[str]:
    """The options that act on the runs among the arguments of a command, or that its recipe has.

    name: of the command, with its recipe's; command: in options.json
    """
    recipe = name.rpartition(" ")[2]
    group = next((str(i) for i, names in enumerate(command.get("groups", ())) if recipe in names.split()), None)
    lacks = {option for option, groups in command.get("of", {}).items() if group and group not in groups.split()}
    runs = [run for _, run in named_runs(name, arguments)]
    return [
        option for option in command["options"] if option not in lacks and all(acts(name, option, run) for run in runs)
    ]


def near_options(name: str, names: Sequence[str]) -> list[str]:
    """The options that may be meant by a name that is none of them, the nearest first; those of its last word first."""
    last = name.replace("--", ".").rpartition(".")[2]
    ends = [option for option in names if option.replace("--", ".").endswith(f".{last}")]
    if "--steps" in names and STEPS.fullmatch(name):
        return ["--steps"]
    return ends[:3] or difflib.get_close_matches(name, names, 3, 0.7)


def option_name(word: str) -> str:
    """The option that a word of a command line names."""
    return re.sub(r"\.\d+\.", ".N.", word.partition("=")[0].replace("_", "-"))


def _read(folder: str) -> Run | None:
    for name, read in (("experiment.json", upgraded), ("model_index.json", _of_pipeline)):
        file = Path(folder, name)
        try:
            if file.is_file():
                return read(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # said where the run is loaded
            continue
    return None


def _of_pipeline(index: dict[str, Any]) -> Run:
    of_texts = any(name.startswith("text_encoder") and all(part) for name, part in index.items())
    latents = any(index.get(name) for name in ("vae", "vqvae"))
    return {"condition": {"type": "Prompts" if of_texts else ""}, "codec": {"type": "CodecFolder" if latents else ""}}


def refusal(command: str, arguments: Sequence[str], runs: Iterable[tuple[str, Run]] | None = None) -> str | None:
    """Says in one line which options cannot act on the runs of a command, and what to do; None: all of them can.

    runs: by default those among the arguments
    """
    named = dict.fromkeys(option_name(word) for word in arguments if word.startswith("--"))
    hint = "" if command in TRAINING else ", or name such a run"
    for folder, run in named_runs(command, arguments) if runs is None else runs:
        if command in USUAL and not _of_forecasts(run):  # so is the run
            continue
        for kind in dict.fromkeys(runs_of(command, option) for option in named):
            if kind is not None and not kind.includes(run):
                idle = " and ".join(option for option in named if runs_of(command, option) is kind)
                return f"{idle}: only for {kind.called}, and {folder} is none of these: drop {idle}{hint}"
    return None
