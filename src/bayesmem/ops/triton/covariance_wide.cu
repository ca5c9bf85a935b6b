// The covariance pass, forward, 32 tokens a step: the same mathematics as covariance_shared.cu, whose legend holds here,
// for Hopper, one multiprocessor a covariance, keys of 16 bits. It is right and not chosen: slower than 16 tokens a step, so
// far (docs/notes/003-kernels.md).
//
// P is scaled, split and multiplied once for 32 tokens instead of twice, and nobody waits for all. The elimination of G
// is in two warps, each lane with a column of G and one of what is eliminated beside it:
//
//   the *whitening warp*  [G | I], which leaves U, and of it A and B, by which the matrix warps make W
//   the *crossing warp*   [G | C], which leaves X = W k' without A, B or W, and of it the next G:
//
//     C_j = R_C R_j Z_j + (R_C/R_j) c_j link_j,      X_s = sum_j U_sj C_j / sqrt(D_s)
//     G' = base - R' R'^T (X^T X),    base = R' R'^T (R_C^2 quad + c_C gram) + (R'_s/R'_j) c'_j gram + r'   (gate warp)
//
// Barriers, who arrives -> who waits (who waits arrives too). Every buffer that is written again is so after a barrier
// that its readers have arrived at; n is a step:
//
//   FACTORS(n)  whitening -> matrix        A, B, factor of step n
//   WRITTEN(n)  matrix, gate -> matrix, whitening   W is there, A and B are read, quad(n + 1) is read
//   CROSSED(n)  matrix, whitening -> crossing       Z of step n; the whitening warp has seen G(n)
//   SEEN(n)     crossing -> matrix         X of step n
//   QUAD(n)     matrix -> gate             quad of step n + 2, keys of step n + 3
//   BASE(n)     gate -> crossing           base of step n
//   JOINT(n)    crossing -> whitening, gate         G of step n; base(n) is read
//
// Of G, quad and X^T X rows i and columns j <= i count; the rest is not computed. Z and link stand turned: [k', k].
//
// Files, in this order: covariance_prelude.cu, covariance_wgmma.cu, covariance_halves.cu, this one, covariance_warpgroups.cu,
// covariance_wide_matrix.cu, covariance_wide_factor.cu.

#define TILE_ROW (STEP + 4)
#define TILE (STEP * TILE_ROW)
#define BUFFERS 3              // keys of this step and of the two next
#define SEEN_ROW 20            // padded rows of X: no two lanes that write meet in one bank
#define SEEN_TILE (8 * SEEN_ROW)
#if KDIM == 128 && !defined(MATRIX_REGISTERS)
#define MATRIX_REGISTERS 192   // a thread, of the 168 that each of 384 begins with
#define OTHER_REGISTERS 120
#endif
#define PAIRS (NT * (NT + 1) / 2)

#define FACTORS 1
#define WRITTEN 2
#define CROSSED 3
#define SEEN 4
#define QUAD 5
#define BASE 6
#define JOINT 7
#define START 8
#define MATRIX_AND(others) (2 * KDIM + 32 * (others))  // threads at a barrier

struct Shared {
  float key[BUFFERS][KEY_SIZE];
  float write[WRITE_SIZE], rest[WRITE_SIZE];  // W^T, its large and its small halves
  float cross[MATRIX_WARPS][TILE];            // Z and quad: partial sums over the channels of one warp
  float quad[MATRIX_WARPS][TILE];
  float base[TILE];                           // G but for X^T X
  float joint[2][TILE];                       // G; for steps of even and of odd number, as all pairs here
  float gram[TILE];
  float link[2][TILE];
  float fresh[2][TILE];                       // (R_s/R_j) c_j
  float beside[2][TILE];                      // U_sj / D_s; X_s / sqrt(D_s)
  float row[2][2][STEP];                      // of G, for the lanes of a factor warp
  float mix[2][PAIRS][128];                   // A and B of W = A P k + B k, split, as the right sides of products
  float seen[NT * NT][SEEN_TILE];             // X, likewise
  float since[2][STEP], left_over[2][STEP];   // R_s, R_C/R_s
  float reach[2][STEP], refill[2][STEP];      // R_C R_j, (R_C/R_j) c_j
  float roots[STEP];                          // sqrt(D_s), for X
  float factor[STEP];                         // (R_C/R_s) sqrt(D_s)
  float step[2][4];                           // R_C^2, c_C
};

// Where the tile of tokens 8 c .. 8 c + 7 (columns) and 8 m .. 8 m + 7 (rows) of a lower triangle stands.
DEVICE int lower(int c, int m) { return m * (m + 1) / 2 + c; }

// A condition whose value the compiler does not follow from one place to the next.
DEVICE bool is(int x) {
  hide(x);
  return x;
}
