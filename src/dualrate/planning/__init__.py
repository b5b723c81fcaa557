"""Where heavy calls go: the best plan for a budget."""
