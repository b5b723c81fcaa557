"""Run directories: trained, loaded, released."""
