"""Training methods, one a file: a loss, and the networks it trains."""
