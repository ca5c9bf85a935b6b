"""The least arithmetic and traffic of an op, which its time is set against.

Arithmetic is that of the equations token by token, nothing that a chunk form adds: per token and head, in
multiplications and additions, M^T k, M^T q and the write of M are 2 K V each; P k and the write of P 2 K^2 each;
q^T P q is 2 K^2; a step of MesaNet's conjugate gradients 2 K^2. Backward is taken as twice the forward pass.
Traffic is every input read once and every output written once; backward reads inputs and the gradient of o, and
writes a gradient for every input. A decoding step reads and writes the state.
"""

from bayesmem.experiments.bench_config import Job, Shape
from bayesmem.experiments.bench_peers import CG_STEPS


def flops(job: Job) -> float | int:
    """Least multiplications and additions of a job."""
    assert job.shape
    s = job.shape
    tokens = 1 if job.what == "decode" else s.T
    return s.B * s.H * tokens * _per_token(job.contender, job.what, s) * (3 if job.what == "backward" else 1)


def _per_token(contender: str, what: str, s: Shape) -> float | int:
    if contender == "attention":
        seen = s.T if what == "decode" else (s.T + 1) / 2
        return 2 * seen * (s.K + s.V)
    if contender == "mamba2":
        return 4 * s.K * s.V
    if contender == "mesanet":
        return 4 * s.K * s.V + 2 * s.K**2 * (1 + CG_STEPS)
    full = contender.startswith("bayesian") and not contender.startswith(("bayesian_reset", "bayesian_diagonal"))
    variance = 2 * s.K**2 if contender == "bayesian_var" else 0
    return 6 * s.K * s.V + (4 * s.K**2 if full else 0) + variance


def traffic(job: Job, inputs: dict[str, int], outputs: int) -> int:
    """Least bytes of a job.

    Args:
        job: the job.
        inputs: bytes of each input.
        outputs: bytes of what the op returns, without the state.
    """
    read = sum(inputs.values())
    if job.what == "backward":
        return 3 * read + 2 * outputs
    state = sum(inputs.get(name, 0) for name in ("mean", "cov", "channel_cov"))
    return read + outputs + (state if job.what == "decode" else 0)
