"""Samplers: update rules, time grids, the one loop over a plan, and what an image costs."""
