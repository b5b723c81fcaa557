"""`dualrate serve`: a page to play with."""
