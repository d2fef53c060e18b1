"""Proofs by the scan: where nothing else has changed, its bits are those of every result (see paper.prove)."""

import json
from functools import cache
from threading import Lock

from kwslib.io import KwsError
from paper.trees import run_in

KERNELS = [f"kwslib/scan/{name}.py" for name in ("cpu", "cpu_kernels", "cpu_math")]
_one_at_a_time = Lock()  # two threads would both compute the bits


@cache
def scan_bits(tree):
    """SHA-256 of what a tree's scan for processors gives forward and backward, at the models' shapes. The second of two
    runs counts, in which no kernel is compiled.
    """
    run_in(tree, "the scan", "-c", BITS)
    return run_in(tree, "the scan", "-c", BITS).strip()


BITS = """
import hashlib, itertools, torch
from kwslib.scan import selective_scan
digest = hashlib.sha256()
shapes = itertools.product((1, 2), (1, 7, 64), (1, 31, 47, 63, 94), (128, 192, 256, 384))
for threads, batch, length, channels in shapes:
    torch.set_num_threads(threads)
    make = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(batch, length, channels, generator=make) for _ in range(3))
    B, C = (torch.randn(batch, length, 16, generator=make) for _ in range(2))
    A, h = -torch.rand(channels, 16, generator=make), torch.randn(batch, channels, 16, generator=make)
    D, bias = torch.randn(2, channels, generator=make)
    for more in ({}, dict(D=D, z=z, delta_bias=bias), dict(D=D, z=z, delta_bias=bias, initial_state=h)):
        given = {"u": u, "delta": delta, "A": A, "B": B, "C": C} | more
        given = {name: t.clone().requires_grad_() for name, t in given.items()}
        how = dict(delta_softplus=True, layout="bld", backend="cpu", return_last_state=True)
        with torch.no_grad():
            alone = selective_scan(**given, **how)
        y, last = selective_scan(**given, **how)
        for t in (*alone, y, last, *torch.autograd.grad(y.square().sum(), given.values())):
            digest.update(t.detach().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


def prove_by_scan(profile, kind, name, trees, root):
    """The proof of a stage of whose code only the scan for processors has changed: its bits, equal in both, where the
    kernels are loaded from the cache.
    """
    with _one_at_a_time:
        found = {"what": "bits of the scan"} | {when: scan_bits(tree) for when, tree in trees.items()}
    if found["before"] != found["after"]:
        raise KwsError(f"{profile} {name or kind}: the bits of the scan differ; run the stage again")
    return found


def prove_times(profile, kind, name, trees, root):
    """The proof of a benchmark: `prove_by_scan`, and the scan takes the same time.

    Both codes run in turns, five times; the time of each is its shortest, and their ratio must be within a tenth.
    """
    found = prove_by_scan(profile, kind, name, trees, root) | {"what": "bits and time of the scan"}
    runs = {when: [] for when in trees}
    for _ in range(5):
        for when, tree in trees.items():
            runs[when].append(json.loads(run_in(tree, "the scan", "-c", TIMES)))
    least = {when: [min(times) for times in zip(*all_runs)] for when, all_runs in runs.items()}
    found["ratio"] = [round(after / before, 3) for before, after in zip(least["before"], least["after"])]
    if not all(0.9 < ratio < 1.1 for ratio in found["ratio"]):
        raise KwsError(
            f"{profile} {name or kind}: the times of the scan differ ({found['ratio']}); run the stage again"
        )
    return found


TIMES = """
import json, time, torch
from kwslib.scan import selective_scan
ms = []
for batch, length, channels in ((1, 31, 128), (64, 31, 128), (64, 63, 384)):
    make = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(batch, length, channels, generator=make).requires_grad_() for _ in range(3))
    B, C = (torch.randn(batch, length, 16, generator=make).requires_grad_() for _ in range(2))
    A = -torch.rand(channels, 16, generator=make).requires_grad_()
    def scan():
        return selective_scan(u, delta, A, B, C, z=z, delta_softplus=True, layout="bld")
    def trained():
        torch.autograd.grad(scan().square().sum(), (u, delta, B, C, z))
    for run in (trained, torch.no_grad()(scan)):
        times = []
        for _ in range(30):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        ms.append(1000 * min(times))
print(json.dumps(ms))
"""
