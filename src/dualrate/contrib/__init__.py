"""What was tried and is not part of the core; tested, imported by nothing else."""
