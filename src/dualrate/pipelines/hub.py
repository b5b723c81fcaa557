"""A run as a folder for the Hub: the pipeline, and a card whose every figure is from the run's records.

Nothing is sent anywhere but by `push`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData

from dualrate.config.ranges import as_path, many
from dualrate.data.source import printable
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import UNGUIDED, Drawer, Guidance
from dualrate.experiment.model import Model
from dualrate.metrics.store import Fingerprint
from dualrate.pipelines.export import ROLES, TEXTS, TOP, VAE, DualRatePipeline
from dualrate.runs.release import CARD, check_target, facts, history, rows
from dualrate.runs.store import Note, StoredModel, read_stored
from dualrate.system.files import naming, read_json
from dualrate.system.folders import MANIFEST, new_folder

TASK = "unconditional-image-generation"
UNKNOWN = "unknown"  # the Hub's word for weights without a licence that is known
UNSCORED = "Not measured: `dualrate evaluate RUN --json > score.json`, then export with `--score score.json`."
LOADING = """```python
from dualrate.pipelines.export import DualRatePipeline  # pip install "dualrate[diffusers]"

images = DualRatePipeline.from_pretrained("{address}")({labels}).images
```

{where}By diffusers' own loader, of a folder on this machine, which then runs the folder's `pipeline.py`; from the Hub
that is `huggingface_hub.snapshot_download("{repository}")`:
`DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`."""


def export_pipeline(
    run: str | Path,
    out: str | Path,
    choice: Choice = Choice(),  # noqa: B008  # a frozen value
    guidance: Guidance = UNGUIDED,
    *,
    license: str = UNKNOWN,
    score: str | Path | None = None,
    name: str | None = None,
    note: Note | None = None,
) -> None:
    """Write a run's averaged weights, or released ones, as a pipeline of diffusers, in float32, with a card.

    out:     new, empty, or such a pipeline, which is then replaced as a whole
    choice, guidance: how it draws where a call does not say
    license: as the Hub names it, such as apache-2.0
    score:   what `dualrate evaluate RUN --json` printed, for the card
    name:    the repository of the Hub that it is loaded from; None: the card says FOLDER, or OWNER/NAME
    note:    as of `load` and of `Choice.step_plan`
    Raises what `load` and `DualRatePipeline.of` raise; ValueError for a score of other weights, and any other `out`.
    """
    out = as_path(out)
    target = check_target(out, TOP, {*TOP, *ROLES, VAE, TEXTS, "scheduler", CARD, MANIFEST}, "a pipeline")
    stored = read_stored(run, note)
    model = stored.model()
    scored = None if score is None else read_score(as_path(score), model)
    pipeline = DualRatePipeline.of(model, choice, guidance, note or warnings.warn)
    drawer = pipeline.scheduler.choice.drawer(model, guidance=guidance)
    before = _plan_and_licence(target)
    with new_folder(target, replace=True) as folder:
        pipeline.save_pretrained(folder)
        card = pipeline_card(stored, drawer, license=license, scored=scored, name=target.name, repository=name)
        with naming(folder / CARD):
            (folder / CARD).write_text(card)
    if before and note:
        plan, licence = before
        drawn = f"{drawer.plan.num_steps}/{drawer.plan.num_heavy}"
        note(f"replaced {out}: {drawn} steps (was {plan}), licence {license} (was {licence})")


def _plan_and_licence(folder: Path) -> tuple[str, str] | None:
    """Steps and heavy calls, and the licence, that the card of a pipeline says; None where there is no pipeline."""
    if not (folder / TOP[0]).is_file():
        return None
    with naming(folder / CARD):
        card = (folder / CARD).read_text(errors="replace") if (folder / CARD).is_file() else ""
    plan = re.search(r"^\| plan \| ([\d,]+) steps?, ([\d,]+) heavy", card, re.MULTILINE)
    licence = re.search(r"^license: (.+)$", card, re.MULTILINE)
    return f"{plan[1]}/{plan[2]}".replace(",", "") if plan else UNKNOWN, printable(licence[1]) if licence else UNKNOWN


def read_score(file: Path, model: Model) -> dict[str, Any]:
    """A report of `dualrate evaluate --json` on this model. Raises ValueError for other weights or files."""
    scored = read_json(file)
    try:
        weights, _ = scored["weights"], (scored["score"]["fingerprint"], scored["command"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no score: make it by `dualrate evaluate RUN --json > {file}`") from error
    if weights != model.weights_hash:
        raise ValueError(f"{file} is a score of other weights than {model}: evaluate these")
    return scored


def pipeline_card(
    stored: StoredModel,
    drawer: Drawer,
    *,
    license: str,
    scored: Mapping[str, Any] | None,
    name: str,
    repository: str | None = None,
) -> str:
    """README.md of a repository of the Hub: metadata as YAML, then what is known of the model."""
    name = repository or name
    model, plan = drawer.model, drawer.plan
    task = "text-to-image" if model.experiment.condition.labelled else TASK
    result, quality = (None, [UNSCORED]) if scored is None else _quality(scored, task)
    data = ModelCardData(
        license=license,
        library_name="dualrate",
        pipeline_tag=task,
        tags=["diffusers", "diffusion", "dual-rate-diffusion"],
        model_name=name,
        eval_results=None if result is None else [result],
    )
    about = facts(model) | {
        "weights": f"averaged, float32, sha256 {model.weights_hash}, of iteration {stored.iteration}",
        "sampler": drawer.sampler,
        "plan": plan.counts,
        "cost of an image": f"{drawer.cost.macs / 1e9:.4g} GMACs, {drawer.cost.flops / 1e9:.4g} GFLOPs",
        "licence": f"{UNKNOWN}: ask who made it" if license == UNKNOWN else license,
    }
    arguments = "class_labels=[0]" if model.num_classes else "batch_size=4"
    loading = LOADING.format(
        address=repository or "FOLDER",
        where="" if repository else "FOLDER is this folder, or OWNER/NAME once it is on the Hub.\n\n",
        repository=repository or "OWNER/NAME",
        labels='"a red circle"' if model.experiment.condition.labelled else arguments,
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {name}", "", *rows(about), "", loading, "", "## Quality", ""]
    lines += [*quality, "", "## Made by, in order", "", *history(stored.path), ""]
    lines += ["Every file but this card has its sha256 in a `MANIFEST.json` beside it, which loading checks.", ""]
    return printable("\n".join(lines))


def _quality(scored: Mapping[str, Any], task: str) -> tuple[EvalResult, list[str]]:
    """A score for the card's metadata, of a task of the Hub, and as rows of its table."""
    score, fingerprint = scored["score"], Fingerprint(**scored["score"]["fingerprint"])
    how = f"{many(scored['num_steps'], 'step')}, {many(scored['num_heavy'], 'heavy call')}, {scored['sampler']}"
    measured = {
        score["metric"]: f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}] at {100 * score['level']:g}%",
        "of": f"{fingerprint.count} images, {how}",
        "floor": f"{score['floor']:.4g} for {score['floor_count']} held-out images" if score["floor_count"] else "none",
        "fingerprint": f"{fingerprint.short()}: {fingerprint.json()}",
        "command": f"`{scored['command']}`",
    }
    result = EvalResult(
        task_type=task,
        dataset_type=fingerprint.reference.split(":")[0],
        dataset_name=fingerprint.reference,
        metric_type=score["metric"],
        metric_value=score["value"],
    )
    return result, rows(measured)


def push(folder: str | Path, repository: str, *, license: str) -> str:
    """Send a folder that `export_pipeline` wrote to the Hub; the address of the commit.

    repository: OWNER/NAME, made private if there is none: who owns it opens it there
    Raises ValueError without a licence, and what the library of the Hub raises. The folder stays as it is.
    """
    if license == UNKNOWN:
        raise ValueError("what others shall use has a licence: say which, such as --license apache-2.0")
    api = HfApi()
    api.create_repo(repository, private=True, exist_ok=True)
    message = f"{as_path(folder).name}, by dualrate export"
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
