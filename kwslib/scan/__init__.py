"""The selective scan, for anybody's Mamba: `from kwslib.scan import selective_scan`.

    reference.py    what the scan is: symbols, equations, the plain loop
    operator.py     a forward and a backward pass as one differentiable PyTorch operator
    cpu*.py         the fused scan for processors (Numba)
    triton.py       the fused scan for GPUs

Imports nothing else of kwslib: the folder may be lifted out.
"""

from kwslib.scan.reference import BACKENDS, reference_scan, selective_scan

__all__ = ["BACKENDS", "reference_scan", "selective_scan"]
