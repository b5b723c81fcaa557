"""Work that is worth ten minutes of one GPU: `python -m tools.gpu` lists the pieces and prints the next command."""
