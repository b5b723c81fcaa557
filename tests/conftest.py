"""Settings of the whole suite: hypothesis draws the same examples every time, and has no deadline on a busy machine."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")
