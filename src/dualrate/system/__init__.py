"""The machine: files, devices, progress, blocks of work."""
