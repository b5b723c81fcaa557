"""Where other libraries meet this one. Each module needs an extra of its own, and nothing else here imports one.

`diffusers.py` gives a model of ours to diffusers. The way in, models of theirs, is `from_diffusers`.
"""
