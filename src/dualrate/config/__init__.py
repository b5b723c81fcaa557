"""Configuration: what numbers may be, and frozen dataclasses to JSON and back."""
