"""256 factorisations of a 16 x 16 block in a chain, by one warp with shuffles, compiled by torch's own NVRTC."""

import torch

SRC = r"""
extern "C" __global__ void chain(const float* __restrict__ G0, float* __restrict__ Uout, float* __restrict__ Dout,
                                 int n) {
  // one warp a block: lane = row + 16 * half; half holds columns 8*half .. 8*half+7 of G and of U = L^{-1}
  const int lane = threadIdx.x, row = lane & 15, half = lane >> 4;
  float g[8], base[8], u[8];
  #pragma unroll
  for (int c = 0; c < 8; ++c) base[c] = G0[blockIdx.x * 256 + row * 16 + half * 8 + c];
  float d = 0.f, carry = 0.f;
  for (int it = 0; it < n; ++it) {
    #pragma unroll
    for (int c = 0; c < 8; ++c) { g[c] = base[c] + carry; u[c] = (half * 8 + c == row) ? 1.f : 0.f; }
    #pragma unroll
    for (int j = 0; j < 16; ++j) {
      const int jh = j >> 3, jc = j & 7;
      const float mine = __shfl_sync(0xffffffffu, g[jc], row + 16 * jh);   // G[row][j]
      const float pivot = __shfl_sync(0xffffffffu, g[jc], j + 16 * jh);    // G[j][j]
      if (row == j) d = pivot;
      const float f = (row > j) ? __fdividef(mine, pivot) : 0.f;
      #pragma unroll
      for (int c = 0; c < 8; ++c) {
        // columns of G right of j, columns of U up to j; each half needs one of the two at column half*8+c
        if (c > jc || jh == 0) {
          const float x = __shfl_sync(0xffffffffu, g[c], j + 16 * half);
          if (half * 8 + c > j) g[c] -= f * x;
        }
        if (c <= jc || jh == 1) {
          const float y = __shfl_sync(0xffffffffu, u[c], j + 16 * half);
          if (half * 8 + c <= j) u[c] -= f * y;
        }
      }
    }
    carry = u[7] * 1e-30f;   // the next factorisation waits for this one
  }
  #pragma unroll
  for (int c = 0; c < 8; ++c) Uout[blockIdx.x * 256 + row * 16 + half * 8 + c] = u[c];
  if (half == 0) Dout[blockIdx.x * 16 + row] = d;
}
"""


def measure() -> dict[str, float]:
    """Microseconds a factorisation in a chain of 256, 64 blocks of one warp, and the errors against float64."""
    kernel = torch.cuda._compile_kernel(SRC, "chain")
    blocks = 64
    a = torch.randn(blocks, 16, 32, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    G = (a @ a.mT / 16 + 0.1 * torch.eye(16, device="cuda")).contiguous()
    U, D = torch.empty_like(G), torch.empty(blocks, 16, device="cuda")
    medians = {}
    for count in (1, 257):
        times = []
        for _ in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            kernel((blocks, 1, 1), (32, 1, 1), (G, U, D, count))
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        medians[count] = sorted(times)[10]
    L = torch.linalg.cholesky(G.double())
    variances = torch.diagonal(L, dim1=-2, dim2=-1)
    inverse = torch.linalg.inv(L / variances[:, None, :])
    return {
        "microseconds": 1000 * (medians[257] - medians[1]) / 256,
        "error_inverse": ((U - inverse).norm() / inverse.norm()).item(),
        "error_variances": ((D - variances**2).norm() / (variances**2).norm()).item(),
    }
