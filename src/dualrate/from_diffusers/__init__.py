"""Models of diffusers as denoisers and as parts of runs."""
