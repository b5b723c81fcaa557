"""Experiments: every choice of a run, as frozen dataclasses."""
