"""Denoisers, what a sampler calls: one network, two at two rates, guided, metered, cached."""
