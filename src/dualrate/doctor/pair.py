"""One of two processes that meet and add 1 and 1 (processes.py): exits with 0 if that makes 2."""

from __future__ import annotations

import os
import sys

import torch

from dualrate.training.distributed import LOST, Lost, joined, own_device


def main(kind: str) -> int:
    """kind: of device, whose group is tried."""
    os.environ.setdefault("DUALRATE_TIMEOUT", "60")
    device = own_device(torch.device(kind))
    try:
        with joined(device) as world:
            total = torch.ones((), device=device)
            world.add_up([total])
            return int(total.item() != world.size)
    except Lost as error:
        print(f"dualrate: {error}", file=sys.stderr)
        return LOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
