"""What GPUs can do by their vendor's data sheets, and what an hour of one is assumed to cost.

Speeds are peaks: dense products of bfloat16 with sums in float32, without sparsity. Bandwidths are of one GPU in one
direction, half of what data sheets add up. `between`, to other machines, is no property of a GPU: it is what such
machines usually have, 400 Gb/s a GPU (H100 and later), 200 (A100), 100 a machine of eight (without NVLink).

Prices are assumptions, of November 2026, in US dollars for an hour on demand: between those of the cheapest clouds and
of the large ones, which differ by a factor of three. Give your own.

Sources, all by NVIDIA: data sheets of A100 (2021), H100 and H200 SXM (2024), DGX B200 (2025) and L40S (2024); the Ada
architecture's white paper for the GeForce RTX 4090.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """flops: a second, bfloat16; memory: bytes; within, between: bytes a second, in a machine and to others."""

    flops: float
    memory: float
    within: float
    between: float
    price: float

    @staticmethod
    def of(teraflops: float, gigabytes: float, within: float, between: float, price: float) -> Accelerator:
        """within, between: gigabytes a second; price: dollars an hour."""
        return Accelerator(teraflops * 1e12, gigabytes * 1e9, within * 1e9, between * 1e9, price)


ACCELERATORS = {
    "h100": Accelerator.of(989, 80, within=450, between=50, price=3.0),
    "h200": Accelerator.of(989, 141, within=450, between=50, price=3.8),
    "b200": Accelerator.of(2250, 180, within=900, between=50, price=5.5),
    "a100-80": Accelerator.of(312, 80, within=300, between=25, price=1.9),
    "a100-40": Accelerator.of(312, 40, within=300, between=25, price=1.4),
    "l40s": Accelerator.of(362, 48, within=32, between=1.6, price=1.2),
    "rtx4090": Accelerator.of(165, 24, within=32, between=1.6, price=0.5),
}
