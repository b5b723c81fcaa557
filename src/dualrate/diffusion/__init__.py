"""Diffusion itself: noise schedule, forward process, predictions, loss weight, plans, keyed random numbers."""
