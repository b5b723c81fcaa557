"""Models, samplers and plans side by side: quality against counted and measured cost, on one page."""
