"""Images on disk -> decoded once -> memory-mapped arrays -> stateless training batches."""
