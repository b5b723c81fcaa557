"""Quality of what was drawn: distances of images in features, scores of ensembles and forecasts, of texts."""
