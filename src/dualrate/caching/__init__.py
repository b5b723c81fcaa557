"""Reuse of one trained network across steps, without training, behind the `Denoiser` protocol."""
