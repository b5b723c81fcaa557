"""The trainer, which knows no method."""
