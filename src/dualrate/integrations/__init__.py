"""Paths that stand in saved pipelines of before. What they lead to is in `pipelines`."""
