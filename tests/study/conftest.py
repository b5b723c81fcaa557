"""The modules of studies/ by their names, and benchmarks."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT / "studies"), str(ROOT)]
