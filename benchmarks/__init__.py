"""Costs of the networks and the sampler, as ratios of measurements taken in turn on one machine."""
