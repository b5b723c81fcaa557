"""A page's server in a process of its own that may have 64 files open, and waits half a second for a client."""

import resource

from serving.made import model

from dualrate.serving import app
from dualrate.serving.offer import Limits, Offer

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    app.CLIENT = 0.5
    app.serve(Offer(model(), limits=Limits(steps=12, images=4)), "127.0.0.1", 0, lambda text: print(text, flush=True))
