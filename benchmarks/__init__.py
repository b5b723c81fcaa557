"""What the networks and the sampler cost, as ratios of measurements taken in turn on one machine."""
