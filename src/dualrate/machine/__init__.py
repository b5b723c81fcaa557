"""The computer: files and folders that outlive a kill, devices, threads, memory, locks, and what a run tells."""
