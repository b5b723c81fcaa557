"""Training methods: networks, and phases with a loss."""
