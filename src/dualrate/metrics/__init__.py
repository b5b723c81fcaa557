"""Quality of generated images: Frechet distance in a data set's own features."""
