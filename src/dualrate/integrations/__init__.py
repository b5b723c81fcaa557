"""Where other libraries meet this one. Each module needs an extra of its own, and nothing else here imports one."""
