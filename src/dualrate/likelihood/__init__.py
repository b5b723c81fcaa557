"""The variational bound of a sampler's chain, and the variance that it likes best."""
