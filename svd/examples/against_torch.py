"""Makes a matrix of known singular values and times torch's decompositions of it on one thread, in seconds of CPU time.

Called by against_torch.rs: FOLDER ROWS COLS POWER EXACT, where the singular values are 1 / i^POWER; EXACT is 0 or 1.
"""
import json
import sys
import time

import torch

torch.set_num_threads(1)
folder, rows, cols, power, exact = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5] == "1"
torch.manual_seed(0)
n = min(rows, cols)
sigmas = torch.arange(1, n + 1, dtype=torch.float64) ** -power
left = torch.linalg.qr(torch.randn(rows, n))[0]
right = torch.linalg.qr(torch.randn(cols, n))[0]
matrix = ((left * sigmas.float()) @ right.T).contiguous()
del left, right
matrix.numpy().tofile(f"{folder}/matrix.f32")
sigmas.numpy().tofile(f"{folder}/sigmas.f64")
energy = float(matrix.double().square().sum())


def timed(run, times):
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return best, result


def report(what, rank, seconds, u, s, v):
    error = float((matrix - (u * s) @ v.T).double().square().sum().sqrt()) / energy**0.5
    print(json.dumps({"what": what, "rank": rank, "seconds": seconds, "error": error}), flush=True)


for rank in (16, 32, 64, 128):
    seconds, (u, s, v) = timed(lambda: torch.svd_lowrank(matrix, q=rank + 8, niter=4), 3)
    report("torch.svd_lowrank(q=k+8, niter=4)", rank, seconds, u[:, :rank], s[:rank], v[:, :rank])
if exact:
    seconds, (u, s, vh) = timed(lambda: torch.linalg.svd(matrix, full_matrices=False), 1)
    for rank in (16, 32, 64, 128):
        report("torch.linalg.svd", rank, seconds, u[:, :rank], s[:rank], vh[:rank].T)
