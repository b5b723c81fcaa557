"""Options that commands share, how they are parsed, and what is refused, in one line."""
