"""Models measured: one, or models, samplers and plans side by side, quality against cost, on one page."""
