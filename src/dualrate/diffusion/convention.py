"""What a network takes and predicts, in terms of (z, log_snr) and v:

    discrete   state z; time: a step of a table of betas; predicts eps, x or v
    flow       state x_r = s z; time: r, or 1 - r where data is at 1; predicts u = eps - x, or -u

Rectified flow and the variance-preserving process are one: the state differs by a factor, u and v by a linear map
(`prediction.py`). So a network of either kind trains and samples under any schedule of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from dualrate.config.ranges import Factor, Range, Ranged
from dualrate.diffusion.prediction import flow_scale, flow_time, v_from_eps, v_from_flow, v_from_x, x_from_v
from dualrate.diffusion.schedule import Betas
from dualrate.diffusion.values import expand

Prediction = Literal["epsilon", "sample", "v_prediction"]
TO_V: dict[Prediction, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": v_from_eps,
    "sample": v_from_x,
    "v_prediction": lambda z, v, log_snr: v,
}


@dataclass(frozen=True)
class Discrete(Ranged):
    """A network of a table of betas.

    clip: the range +-clip of the data, to which x_hat is clamped; None: it is not
    """

    betas: Betas
    predicts: Prediction = "epsilon"
    clip: Annotated[float, Range(0, 1_000_000, above=True)] | None = None

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """What the network is given for z, (B, C, H, W), at log_snr, (B,)."""
        return z

    def time(self, log_snr: Tensor) -> Tensor:
        """(B,): what it is given for its time.

        Looked up in float64: a step is 1e-2 in log-SNR. Rounding of log_snr in float32 is 1e-4 of a step at most.
        """
        index = self.betas.index(log_snr.double())
        whole = index.round()
        return index.where((index - whole).abs() > 1e-3, whole).to(log_snr.dtype)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """v, of what the network predicted."""
        v = TO_V[self.predicts](z, output, log_snr)
        return v if self.clip is None else v_from_x(z, x_from_v(z, v, log_snr).clamp(-self.clip, self.clip), log_snr)


@dataclass(frozen=True)
class Flow(Ranged):
    """A network of rectified flow; its methods are those of `Discrete`.

    units: the network's time at the end that is 1; noise_at: which end of time is noise
    """

    units: Factor = 1000.0
    noise_at: Literal[0, 1] = 1
    predicts: Literal["eps - x", "x - eps"] = "eps - x"

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return expand(flow_scale(log_snr), z) * z

    def time(self, log_snr: Tensor) -> Tensor:
        return self.units * flow_time(log_snr if self.noise_at == 1 else -log_snr)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        return v_from_flow(z, output if self.predicts == "eps - x" else -output, log_snr)


Convention = Discrete | Flow
REPA = Flow(units=1.0)
SIT = Flow(units=1.0, noise_at=0, predicts="x - eps")
