// The covariance pass, forward: one block of threads a (sequence, head), 16 tokens a step, exact.
//
// Legend (docs/math.md section 3): P covariance before the step, k keys, R_t product of retentions since the step
// began, c_t noise gathered since, L D L^T = G the joint covariance of the innovations, U = L^-1.
//
//   G_sj = R_s R_j k_s P k_j + (R_s/R_j) c_j k_s.k_j + [s = j] r_s                          j <= s
//   gain_s = sum_j U_sj (R_s R_j P k_j + (R_s/R_j) c_j k_j) / D_s
//   P <- R_C^2 P + c_C I - W^T W,      W_s = (R_C/R_s) sqrt(D_s) gain_s
//
// Three kinds of warps work side by side. The *matrix warps* (one for every 16 rows of P, which they hold in registers
// as tensor core accumulators) do all products with P, the *factor warp* eliminates the 16 x 16 matrix G, and the *gate
// warp* prepares what it can of the next one. So that none waits for long, the next step's k P k is formed from the
// covariance before this step and corrected by X, and X from what is known before this step's factors:
//
//   kPk = R_C^2 quad + c_C gram - X^T X,   quad = k' P_before k',  gram = k'.k'        (k' the keys of the next step)
//   X = W k' = (R_C/R_s) sqrt(D_s) (A Z + B link),   Z = k P k',     link = k.k'
//   gain_s = sum_j A_sj P k_j + B_sj k_j,  A_sj = (U_sj/D_s) R_s R_j,  B_sj = (U_sj/D_s) (R_s/R_j) c_j
//
// So the factor warp goes from G to the next G by itself, while the matrix warps write W into P. In a step all meet once
// (sync_all: factors and quad are there, and Z), and the matrix warps once more (meet: all of W is there; the gate warp
// says there that it has read quad). Besides, matrix warps wait for X (sync_total), the factor warp for base (sync_base).
//
// A covariance may be shared by CLUSTER blocks on as many multiprocessors (Hopper's thread block clusters), each with its
// share of the matrix warps; what all need (keys, W, partial sums) is written into the shared memory of every one.
//
// P before every chunk of steps_a_chunk steps is kept for the backward pass (0: nothing is).
//
// Compiled with: CLUSTER, K, KDIM (K padded to a multiple of 16), SPLIT_KEYS, KEY_KIND (0 bfloat16, 1 float16, 2 float32).
// Files, in this order: what the machine gives (covariance_prelude.cu, covariance_wgmma.cu), covariance_halves.cu (what the
// kernels share), this one, covariance_warps.cu or covariance_warpgroups.cu (how P is multiplied), covariance_matrix.cu (the
// matrix warps), covariance_forward.cu (the other two, and the kernel).

#define TILE_ROW 20  // padded rows: no two lanes of a fragment meet in one bank
#define TILE (16 * TILE_ROW)
#define BUFFERS 4              // keys of this step and of the two next, and one to fill
#define CROSS (CLUSTER > 1 ? 2 : 1)  // another block's factor warp may still read Z: sync_total holds back its own alone

struct Shared {
  float key[BUFFERS][KEY_SIZE];
  float write[WRITE_SIZE];             // W^T, its large halves
  float rest[WRITE_SIZE];              // its small halves
  float cross[CROSS][MATRIX_WARPS][TILE];  // Z and quad: partial sums over the channels of one warp
  float quad[MATRIX_WARPS][TILE];
  float total[TILE];                   // Z, X and X^T X, one after the other
  float base[2 * TILE];                // all of G but X^T X; below it the identity
  float gram[TILE];
  float link[2][TILE];                 // for steps of even and of odd number, as all pairs here
  float mix[2][2][4][128];             // A and B of W = A P k + B k, split, as the right sides of products
  float seen[4][128];                  // X, likewise
  float whiten[16 * WIDE_ROW];         // U_sj / D_s
  float fresh[16 * WIDE_ROW];          // (R_s/R_j) c_j
  float since[16], left_over[16], factor[2][16];  // R_s, R_C/R_s, (R_C/R_s) sqrt(D_s)
  float step[2][4];                    // R_C^2, c_C
};

