"""Models of diffusers, taken in: as denoisers (`diffusers_folder.py`) and as parts of runs (`retrofitted.py`)."""
