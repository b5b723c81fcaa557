"""Run directories: stored, trained, measured, shown."""
