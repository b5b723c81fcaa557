"""Experiments that are not part of the core: tested, and imported by nothing else."""
