"""`python -m dualrate`: the command, in a process whose threads are settled before torch is loaded."""

import os
import sys

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "dualrate_command", *sys.argv[1:]])
