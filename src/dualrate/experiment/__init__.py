"""Every choice of a run, and what a method needs of it."""
