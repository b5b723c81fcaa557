"""Measuring a model: images, scores, likelihoods, errors, costs."""
