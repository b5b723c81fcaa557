"""Classes of our own that a file may name before anything imports them, and where they are.

A file names a class by its bare name, so classes may move. `serial.from_plain` imports the module of this table that
has it, and no other: what a file names beside the table is not imported for it.
"""

from __future__ import annotations

from dualrate.config.imports import import_module

OF_MODULES = {
    "dualrate.codecs.diffusion": ("DiffusionDecoding",),
    "dualrate.methods.early_exit": ("EarlyExitNetwork", "EarlyExitConfig"),
    "dualrate.data.pairs": ("Pairs",),
    "dualrate.diffusion.categorical": ("Masked", "Uniform"),
    "dualrate.forecasts.clip_networks": (
        "ClipEncoderConfig",
        "ClipLatents",
        "ClipPrior",
        "OneClipDecoder",
        "TwoClipDecoders",
        "TwoClipPriors",
    ),
    "dualrate.forecasts.condition": ("Forecast",),
    "dualrate.forecasts.externals": ("Externals",),
    "dualrate.forecasts.latent_forecast": ("LatentForecast",),
    "dualrate.forecasts.refiner": ("AtLevels", "Levels", "RefinerConfig", "Refinement"),
    "dualrate.forecasts.rolling": ("RollingConfig",),
    "dualrate.forecasts.rolling_process": ("Rolling", "SharedNoise"),
    "dualrate.forecasts.seasons": ("Anomalies",),
    "dualrate.methods.consistency": ("ConsistencyConfig",),
    "dualrate.methods.crps": ("OneCallConfig",),
    "dualrate.methods.denoising": ("DenoisingConfig",),
    "dualrate.methods.em_distillation": ("EMDistillationConfig",),
    "dualrate.methods.glance": ("AdaptedNetwork", "GlanceConfig"),
    "dualrate.methods.moment_matching": ("MomentMatchingConfig",),
    "dualrate.methods.residual": ("ResidualNetworks", "ResidualConfig"),
    "dualrate.methods.times": ("TimeSampler", "BothTimes", "SingleTime", "GivenTimes"),
    "dualrate.methods.unified_latents": ("LatentNetworks", "UnifiedLatentsConfig"),
    "dualrate.networks.concatenated": ("ConcatenatedConfig",),
    "dualrate.networks.sid2": ("SiD2Config",),
    "dualrate.networks.dis": ("DiSConfig",),
    "dualrate.networks.dit": ("DiTConfig",),
    "dualrate.networks.image_encoder": ("EncoderConfig",),
    "dualrate.pipelines.condition": ("Prompts",),
    "dualrate.pipelines.retrofitted": ("OneForeign", "Retrofitted", "OwnBlocks"),
    "dualrate.texts.codec": ("GreyLevels", "ColourLevels", "Characters"),
    "dualrate.texts.noise_planes": ("NoisePlanes",),
    "dualrate.texts.networks": ("OneTransformer", "TwoTransformers"),
    "dualrate.texts.transformer": ("TokensConfig",),
}
CLASSES = {name: module for module, names in OF_MODULES.items() for name in names}
MOVED = {"dualrate.integrations.diffusers": "dualrate.pipelines.export"}  # modules that saved pipelines name


def import_class(name: str) -> None:
    """Import the module of ours that has the class of this name, if one has."""
    if name in CLASSES:
        import_module(CLASSES[name])


def import_classes() -> None:
    """Import all of them, to say which there are."""
    for module in OF_MODULES:
        import_module(module)
