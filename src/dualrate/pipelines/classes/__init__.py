"""Classes of networks that are known, one a file: how each is called, and what it takes of a text."""
