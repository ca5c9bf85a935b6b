// The covariance pass, forward: one block of threads a (sequence, head), or a segment of it, 16 tokens a step, exact.
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
// Products are 3xTF32: a float32 is split into two TF32 numbers, and only the product of the two small halves is left
// out. Keys of 16 bits are TF32 numbers already (SPLIT_KEYS 0), and then two products do.
//
// Fragments of mma.m16n8k8, lane = 4 g + t: an accumulator holds (row g and g + 8, columns 2t and 2t + 1). Slot t of the
// contraction stands for column 2t and slot t + 4 for 2t + 1, so that an accumulator is an A operand as it is.
//
// A covariance may be shared by CLUSTER blocks on as many multiprocessors (Hopper's thread block clusters), each with its
// share of the matrix warps; what all need (keys, W, partial sums) is written into the shared memory of every one.
//
// Gains are float32, or where gain_low is given pairs of bfloat16, of which gain takes the high halves; where both are one
// address, the high halves alone.
//
// P before every chunk of steps_a_chunk steps is kept for the backward pass (0: nothing is).
//
// Compiled with: CLUSTER, K, KDIM (K padded to a multiple of 16), SPLIT_KEYS, KEY_KIND (0 bfloat16, 1 float16, 2 float32),
// WARPGROUPS, BLOCKS (that share a multiprocessor), MEND (whether this is the kernel that mends segments). Files, in this order:
// what the machine gives (covariance_prelude.cu, covariance_wgmma.cu), covariance_keys.cu, covariance_cuts.cu (segments), this
// one, covariance_warps.cu or covariance_warpgroups.cu (how P is multiplied), covariance_matrix.cu (the matrix warps),
// covariance_factor.cu (the other two kinds of warps) and covariance_forward.cu (what a block filters, and the kernel).

#define MATRIX_WARPS (KDIM / 16)
#define OWN_WARPS (MATRIX_WARPS / CLUSTER)
#define TILES (KDIM / 8)       // tiles of 8 columns in a row of P
#define WIDE_ROW 24            // padded rows: no two lanes of a fragment meet in one bank
#define TILE_ROW 20
#define TILE (16 * TILE_ROW)
#define BUFFERS 4              // keys of this step and of the two next, and one to fill
#define CROSS (CLUSTER > 1 ? 2 : 1)  // another block's factor warp may still read Z: sync_total holds back its own alone

// How keys and W lie in shared memory: by rows for one warp's products, by blocks of 8 x 4 (each 128 bytes, what the
// tensor cores of a warpgroup read) for those of four. A plane holds every second column; planes and rows are padded.
#if WARPGROUPS
#define KEY_PLANE (16 * 4 + 4)
#define KEY_SIZE (2 * TILES * KEY_PLANE)
#define WRITE_PLANE (4 * KDIM + 4)
#define WRITE_SIZE (4 * WRITE_PLANE)
DEVICE int key_at(int token, int channel) {
  return (2 * (channel >> 3) + (channel & 1)) * KEY_PLANE + 4 * token + ((channel >> 1) & 3);
}
DEVICE int write_at(int channel, int token) {
  return (2 * (token >> 3) + (token & 1)) * WRITE_PLANE + 4 * channel + ((token >> 1) & 3);
}
#else
#define KEY_ROW (KDIM + 8)
#define KEY_SIZE (16 * KEY_ROW)
#define WRITE_SIZE (KDIM * WIDE_ROW)
DEVICE int key_at(int token, int channel) { return token * KEY_ROW + channel; }
DEVICE int write_at(int channel, int token) { return channel * WIDE_ROW + token; }
#endif

// What a block filters at once: tokens from `start`, of which the first `warm` leave nothing but the covariance after them.
struct Run {
  long long start;
  const float *from;         // the covariance before them; none: the guess
  float *kept, *to;          // where that after `warm` goes, if it does, and that after all
  int length, warm, segment;
};

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
  Run run;
  Cuts cuts;
  int told;                            // what one thread tells all
};

struct Split { unsigned hi, lo; };

DEVICE Split split(float x) {
  Split s;
  s.hi = (as_bits(x) + 0x1000u) & 0xffffe000u;
  s.lo = as_bits(x - as_float(s.hi));
  return s;
}

struct Left { Split v[4]; };

// The A operand whose accumulator form is c: rows g, g + 8, columns 2t, 2t + 1.
DEVICE Left left(float c0, float c1, float c2, float c3) {
  Left a;
  a.v[0] = split(c0), a.v[1] = split(c2), a.v[2] = split(c1), a.v[3] = split(c3);
  return a;
}

// Products on one accumulator wait for each other, so that every kind of half gets its own: c[0], c[1] small, c[2] large.
DEVICE void product_apart(float (*c)[4], const Left &a, const float *b) {  // b: both large halves, both small ones
  mma(c[0], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, as_bits(b[0]), as_bits(b[1]));
  mma(c[1], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[2]), as_bits(b[3]));
  mma(c[2], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[0]), as_bits(b[1]));
}

DEVICE void split_pair(float *halves, float x, float y) {
  const Split s0 = split(x), s1 = split(y);
  halves[0] = as_float(s0.hi), halves[1] = as_float(s1.hi), halves[2] = as_float(s0.lo), halves[3] = as_float(s1.lo);
}

template <int COUNT> DEVICE void clear(float (*c)[4]) {
#pragma unroll
  for (int n = 0; n < COUNT; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0.f;
}

DEVICE void product(float *c, const Left &a, float b0, float b1) {
  const Split s0 = split(b0), s1 = split(b1);
  mma(c, a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, s0.hi, s1.hi);
  mma(c, a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, s0.lo, s1.lo);
  mma(c, a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, s0.hi, s1.hi);
}

// With keys on the right, which need no split if they have 16 bits: c[0] small, c[1] large.
DEVICE void product_key(float (*c)[4], const Left &a, float b0, float b1) {
  if (SPLIT_KEYS) {
    const Split s0 = split(b0), s1 = split(b1);
    mma(c[0], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, s0.lo, s1.lo);
    b0 = as_float(s0.hi), b1 = as_float(s1.hi);
  }
  mma(c[0], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, as_bits(b0), as_bits(b1));
  mma(c[1], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b0), as_bits(b1));
}

// Keys are an exact A operand too, where they need no split.
DEVICE void key_product(float *c, float a0, float a1, float a2, float a3, float b0, float b1) {
  if (SPLIT_KEYS) product(c, left(a0, a2, a1, a3), b0, b1);
  else mma(c, as_bits(a0), as_bits(a1), as_bits(a2), as_bits(a3), as_bits(b0), as_bits(b1));
}

// The same numbers into the shared memory of every block of the cluster.
DEVICE void share(float *at, float x) {
#pragma unroll
  for (int rank = 0; rank < CLUSTER; ++rank) *peer(at, rank) = x;
}

DEVICE void share4(float *at, const float *x) {
#pragma unroll
  for (int rank = 0; rank < CLUSTER; ++rank) store4(peer(at, rank), x);
}

DEVICE void share2(float *at, float x, float y) {
#pragma unroll
  for (int rank = 0; rank < CLUSTER; ++rank) store2(peer(at, rank), x, y);
}

// P out to memory: rows `row` and `row + 8`, columns `column + 8 j` and the next.
DEVICE void store_rows(float *to, const float p[TILES][4], int row, int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= K) return;
    float *at = to + (row + 8 * half) * K + column;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      if (K % 2 == 0) {
        if (8 * j + column < K) store2(at + 8 * j, p[j][2 * half], p[j][2 * half + 1]);
      } else {
        if (8 * j + column < K) at[8 * j] = p[j][2 * half];
        if (8 * j + column + 1 < K) at[8 * j + 1] = p[j][2 * half + 1];
      }
    }
  }
}
