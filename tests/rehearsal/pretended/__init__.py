"""A CUDA device without a GPU: tensors say `cuda:0` and hold CPU values, so that control flow and numbers are real.

    from pretended import LEDGER, install
    install()                       # in a process of its own: it patches torch for good
    ... any of our code with execution.device=cuda ...
    report = LEDGER.take()          # what the host and the device did to each other since the last `take`
    report.syncs                    # times that the host waited for the device
    report.copies                   # copies to the device
    report.slow_copies              # those that are blocking, or not from pinned memory
    print(*report.lines(), sep="\\n")  # each kind of event, with the file, line and function of our code

In the tests this runs in a process of the fork server, see `rehearsals.py` beside this package. By hand, from the
root of the project, `python tests/rehearsal/rehearsals.py [KEY=VALUE ...]` trains a tiny model and prints what each
part cost.

Errors, as on a GPU:
- an operation on tensors of both devices (a CPU tensor without dimensions passes as a number), `numpy()`;
- a collective of NCCL over a CPU tensor or one that is not contiguous; groups are gloo's below and say `nccl`;
- types or borders that a fused kernel would not take;
- waiting for the device while a CUDA graph is captured; a capture computes nothing, a replay computes on its memory;
- writing to pinned memory that a non-blocking copy still reads.

The result of a non-blocking copy to the host is NaN (-77 for integers) until the host has waited for it: with an
event, a blocking copy, `item()`. Memory that nothing was written to is NaN too. `torch.cuda.memory_allocated` counts
the bytes of the tensors that are alive.

Not covered: races between streams, the kernels themselves, Transformer Engine. Indices that `torch.vmap` makes inside
(`create_block_mask`) are on the CPU here, which is no event.
"""

from functools import cache

from pretended import collectives, libraries, moves, runtime
from pretended.ledger import LEDGER, Report
from pretended.tensor import CUDA, CudaTensor


@cache
def install() -> None:
    """Pretends for the rest of this process. Calling it again changes nothing."""
    runtime.install()
    moves.install()
    collectives.install()
    libraries.install()


__all__ = ["CUDA", "LEDGER", "CudaTensor", "Report", "install"]
