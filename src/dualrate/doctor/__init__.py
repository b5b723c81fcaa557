"""What is wrong with an installation, a machine, a run or a data set, and what to do about it."""
