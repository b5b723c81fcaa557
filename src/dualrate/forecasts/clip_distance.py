"""A Frechet distance of clips: the known frames with those that were made, beside windows of the training data.

Its network is trained on these windows (metrics/features.py), and its name is that of the data: it compares with no
other distance.
"""

from __future__ import annotations

import numpy as np

from dualrate.data.images import ImageSet
from dualrate.drawing.drawer import spread
from dualrate.drawing.evaluators import feature_net
from dualrate.experiment.model import Model
from dualrate.forecasts.condition import Forecast, Windows
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.film import pixels_of
from dualrate.forecasts.model import Frame, forecast_of
from dualrate.forecasts.starts import Starts
from dualrate.metrics.distances import PER_FEATURE
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import Architecture
from dualrate.metrics.quality import QualityScore
from dualrate.system.progress import Reporter

MOST = 2000  # windows of a split


def clip_distance(model: Model, starts: Starts, x: Frame, progress: Reporter) -> QualityScore | str:
    """The distance of members x (N, M, T, C, H, W) from these starts, one window each; or why there is none, in words.

    Raises what reading the held-out clips raises.
    """
    least, (count, members) = PER_FEATURE * Architecture.features, x.shape[:2]
    if count * members < least:
        return f"no Frechet distance: it needs {least} clips, got {count * members}: more starts or members"
    forecast = forecast_of(model)
    if starts.training is None:
        return "no Frechet distance: the training clips are not known"
    test = forecast.read_fields(model.experiment.data, "test", forecast.statistics)
    reference, held_out = (windows_of(part, forecast) for part in (starts.training, test))
    try:
        net = feature_net(reference, held_out, progress=progress)
        net.card.check_accuracy()
    except ValueError as error:  # of clips that are not square, or too few to learn from
        return f"no Frechet distance: {error}"
    past = np.broadcast_to(starts.past[:, None], (count, members, *starts.past.shape[1:]))
    clips = pixels_of(np.concatenate([past, x], 2)).reshape(count * members, *reference.shape)
    features, seeds = net.features(clips), f"0-{count - 1}"
    return Evaluator(net, reference, held_out).score_features(features, seeds=seeds, labels="none")


def windows_of(fields: Fields, forecast: Forecast) -> ImageSet:
    """Windows of a past and what came, as images (N, T C, H, W): at most MOST, spread evenly."""
    windows, frames = Windows(fields, forecast), forecast.past + forecast.frames
    some = spread(min(len(windows), MOST), len(windows))
    parts = [
        pixels_of(forecast.statistics.restored(windows.frames(part)).numpy())
        for part in np.array_split(some, -(-len(some) // 64))
    ]
    clips = np.concatenate(parts)
    name = f"{fields.name.partition('/')[0]}-{frames}-frames/{fields.name.rpartition('/')[2]}"
    return ImageSet(clips.reshape(len(clips), -1, *clips.shape[3:]), None, (), name, frames_each=frames)
