"""`dualrate serve`: a page to play with, and a Hugging Face Space of it."""
