"""Several processes of one command: how they start, and share out its work."""
