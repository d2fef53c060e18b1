"""The selective scan, for anybody's Mamba: `from kwslib.scan import selective_scan`.

    reference.py      what the scan is: symbols, equations, the plain loop; and the choice of a backend
    operator.py       a forward and a backward pass as one differentiable PyTorch operator
    cpu.py            the fused scan for processors; its loops are in cpu_kernels.py, their arithmetic in cpu_math.py
    triton.py         the fused scan for GPUs
    patch.py          Hugging Face's Mamba models on this scan

Imports nothing else of kwslib: copy the folder into another project, rename the imports, and it works.
A change here must leave the results equal bit for bit, or every trained number of the repository is out of date."""

from kwslib.scan.patch import patch_transformers
from kwslib.scan.reference import BACKENDS, reference_scan, selective_scan, use_backend

__all__ = ["BACKENDS", "patch_transformers", "reference_scan", "selective_scan", "use_backend"]
