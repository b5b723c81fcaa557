"""`dualrate demo`: a page that shows dual-rate diffusion at work in minutes."""
