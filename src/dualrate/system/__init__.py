"""The machine: files, devices, progress, worker processes."""
