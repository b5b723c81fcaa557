"""Measured rows as tables, figures, grids and pages."""
