"""Peak arithmetic of known devices."""

from __future__ import annotations

import torch

# Dense bf16 tensor-core peaks in TFLOP/s, from the vendors' data sheets (without sparsity).
_PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "GB200": 2500.0,
    "B200": 2250.0,
}


def peak_flops(device: torch.device, given_tflops: float | None) -> float | None:
    """Peak floating-point operations per second of one device, or None where it is not known (on a CPU, say).

    Args:
        device: of this process.
        given_tflops: the key `logging.peak_tflops`, which overrides the table.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for key, tflops in _PEAKS.items() if key in name), None)
