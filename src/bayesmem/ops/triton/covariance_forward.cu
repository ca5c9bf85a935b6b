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
// as tensor core accumulators) do all products, the *factor warp* eliminates the 16 x 16 matrix G, and the *gate warp*
// prepares what it can of the next one. So that none waits for long, the next step's k P k is formed from the covariance
// before this step and corrected:
//
//   kPk = R_C^2 quad + c_C gram - X^T X,   quad = k P_before k,   gram = k.k,   X = W k          (cross)
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
// Compiled with: CLUSTER, K, KDIM (K padded to a multiple of 16), SPLIT_KEYS, KEY_KIND (0 bfloat16, 1 float16, 2 float32).

#define MATRIX_WARPS (KDIM / 16)
#define OWN_WARPS (MATRIX_WARPS / CLUSTER)
#define TILES (KDIM / 8)       // tiles of 8 columns in a row of P
#define KEY_ROW (KDIM + 8)     // padded rows: no two lanes of a fragment meet in one bank
#define WIDE_ROW 24
#define TILE_ROW 20
#define TILE (16 * TILE_ROW)
#define GROUP (TILES % 4 ? 2 : 4)  // tiles of P that are updated side by side
#define BUFFERS 4              // keys of this step and of the two next, and one to fill

struct Shared {
  float key[BUFFERS][16 * KEY_ROW];
  float write[KDIM * WIDE_ROW];        // W^T, its large halves: a row for every key channel
  float rest[KDIM * WIDE_ROW];         // its small halves
  float cross[MATRIX_WARPS][TILE];     // partial sums over the channels of one warp
  float quad[MATRIX_WARPS][TILE];
  float gram[MATRIX_WARPS][TILE];
  float total[TILE];                   // X, summed
  float base[2 * TILE];                // all of G but X^T X; below it the identity
  float whiten[16 * WIDE_ROW];         // U_sj / D_s
  float fresh[16 * WIDE_ROW];          // (R_s/R_j) c_j
  float since[16], left_over[16], factor[16];  // R_s, R_C/R_s, (R_C/R_s) sqrt(D_s)
  float step[4];                       // R_C^2, c_C
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

DEVICE void product_exact(float *c, const Left &a, float b0, float b1) {  // b needs no split
  mma(c, a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, as_bits(b0), as_bits(b1));
  mma(c, a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b0), as_bits(b1));
}

DEVICE void product(float *c, const Left &a, float b0, float b1) {
  const Split s0 = split(b0), s1 = split(b1);
  mma(c, a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, s0.hi, s1.hi);
  mma(c, a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, s0.lo, s1.lo);
  mma(c, a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, s0.hi, s1.hi);
}

// c[i] += a b_i for several right sides that stand split, pass by pass: products on one accumulator wait for each other.
template <int COUNT>
DEVICE void products_split(float (*c)[4], const Left &a, const float *hi, const float *lo, int stride) {
  unsigned h[COUNT][2], l[COUNT][2];
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
#pragma unroll
    for (int n = 0; n < 2; ++n) h[i][n] = as_bits(hi[i * stride + n]), l[i][n] = as_bits(lo[i * stride + n]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mma(c[i], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, h[i][0], h[i][1]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mma(c[i], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, l[i][0], l[i][1]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mma(c[i], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, h[i][0], h[i][1]);
}

DEVICE void product_key(float *c, const Left &a, float b0, float b1) {
  if (SPLIT_KEYS) product(c, a, b0, b1);
  else product_exact(c, a, b0, b1);
}

// Keys are an exact A operand too, where they need no split.
DEVICE void key_product(float *c, float a0, float a1, float a2, float a3, float b0, float b1) {
  if (SPLIT_KEYS) product(c, left(a0, a2, a1, a3), b0, b1);
  else mma(c, as_bits(a0), as_bits(a1), as_bits(a2), as_bits(a3), as_bits(b0), as_bits(b1));
}

// The same two numbers into the shared memory of every block of the cluster.
DEVICE void share2(float *at, float x, float y) {
#pragma unroll
  for (int rank = 0; rank < CLUSTER; ++rank) store2(peer(at, rank), x, y);
}

// Eight channels of one key, as float32; zero beyond the end of the sequence or of the key.
DEVICE void load_keys(float *x, const KEY *row, int column, bool inside) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = 0.f;
  if (!inside || column >= K) return;
  if (KEY_KIND < 2 && (K & 7) == 0) {
    const uint4 raw = *(const uint4 *)(row + column);
    const unsigned word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = widen(word[i] & 0xffffu);
      x[2 * i + 1] = widen(word[i] >> 16);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (column + i < K) x[i] = to_float(row[column + i]);
  }
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

// quad and gram of one step over the channels of this warp; pk: [own channels, tokens].
DEVICE void score(Shared &s, const float *keys, const float pk[2][4], int warp, int g, int t, int own) {
  float *turned = s.cross[warp];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    store2(turned + g * TILE_ROW + 8 * m + 2 * t, pk[m][0], pk[m][1]);
    store2(turned + (g + 8) * TILE_ROW + 8 * m + 2 * t, pk[m][2], pk[m][3]);
  }
  sync_warp();
  float quad[2][4], gram[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) quad[m][i] = gram[m][i] = 0.f;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float *at = turned + (8 * c + 2 * t) * TILE_ROW + g;
    const float *k0 = keys + g * KEY_ROW + own + 8 * c + 2 * t, *k1 = k0 + 8 * KEY_ROW;
    const Left a = left(at[0], at[TILE_ROW], at[8], at[TILE_ROW + 8]);
    product_key(quad[0], a, k0[0], k0[1]);
    product_key(quad[1], a, k1[0], k1[1]);
    key_product(gram[0], k0[0], k1[0], k0[1], k1[1], k0[0], k0[1]);
    key_product(gram[1], k0[0], k1[0], k0[1], k1[1], k1[0], k1[1]);
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int at = g * TILE_ROW + 8 * m + 2 * t, below = at + 8 * TILE_ROW;
    share2(s.quad[warp] + at, quad[m][0], quad[m][1]);
    share2(s.quad[warp] + below, quad[m][2], quad[m][3]);
    share2(s.gram[warp] + at, gram[m][0], gram[m][1]);
    share2(s.gram[warp] + below, gram[m][2], gram[m][3]);
  }
}

DEVICE void matrix_warp(Shared &s, const KEY *k, const float *initial, float *gain, float *checkpoint, float *final,
                        int length, int first_chunk, int blocks_a_chunk, int bh, int head, int H, int G) {
  const int warp = RANK * OWN_WARPS + (THREAD >> 5), lane = THREAD & 31, g = lane >> 2, t = lane & 3, own = 16 * warp;
  const int loader = 32 * warp + lane;
  const int steps = (length + 15) / 16;
  const int key_token = loader / (KDIM / 8), key_column = (loader % (KDIM / 8)) * 8;
  const KEY *keys = k + (long long)(head / (H / G)) * K;

  float p[TILES][4];  // rows own + g and own + g + 8 of P
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = own + g + 8 * (i >> 1), column = 8 * j + 2 * t + (i & 1);
      p[j][i] = row < K && column < K ? initial[(long long)bh * K * K + row * K + column] : 0.f;
    }

#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float x[8];
    const int token = 16 * n + key_token;
    load_keys(x, keys + (long long)token * G * K, key_column, token < length);
#pragma unroll
    for (int i = 0; i < 8; i += 2) share2(s.key[n] + key_token * KEY_ROW + key_column + i, x[i], x[i + 1]);
  }
  sync_all(0);  // all keys are there

  float gains[2][4], y[2][4], ahead[2][4], w[2][4];  // the gains of this step; [own channels, tokens]: P k of this step and of the next, W^T
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) gains[n][i] = y[n][i] = w[n][i] = ahead[n][i] = 0.f;

  // Step -1 writes nothing: it only prepares step 0.
  for (int n = -1; n < steps; ++n) {
    const float *now = s.key[(n + BUFFERS) % BUFFERS], *next = s.key[(n + 1) % BUFFERS];
    const float *later = s.key[(n + 2) % BUFFERS];
    float coming[8];
    const int token = 16 * (n + 3) + key_token;
    load_keys(coming, keys + (long long)token * G * K, key_column, token < length);
    float keep = 1.f, add = 0.f;

    if (n >= 0) {
      sync_all(0);  // the factors of this step are there
      keep = s.step[0], add = s.step[1];
      float part[2][2][4];  // W^T from P k and from k: short chains of accumulation
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) w[m][i] = part[0][m][i] = part[1][m][i] = 0.f;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Left a = left(y[c][0], y[c][1], y[c][2], y[c][3]);
        const float *low = now + (8 * c + 2 * t) * KEY_ROW + own + g;
        const float from0 = s.since[8 * c + 2 * t], from1 = s.since[8 * c + 2 * t + 1];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int at = (8 * m + g) * WIDE_ROW + 8 * c + 2 * t;
          const float u0 = s.whiten[at], u1 = s.whiten[at + 1], reached = s.since[8 * m + g];
          const float f0 = u0 * s.fresh[at], f1 = u1 * s.fresh[at + 1];
          product(c ? part[0][m] : w[m], a, u0 * reached * from0, u1 * reached * from1);
          if (SPLIT_KEYS) {
            product(part[1][m], left(low[0], low[KEY_ROW], low[8], low[KEY_ROW + 8]), f0, f1);
          } else {
            const unsigned k0 = as_bits(low[0]), k1 = as_bits(low[8]);
            const unsigned k2 = as_bits(low[KEY_ROW]), k3 = as_bits(low[KEY_ROW + 8]);
            const Split s0 = split(f0), s1 = split(f1);
            mma(part[1][m], k0, k1, k2, k3, s0.lo, s1.lo);
            mma(part[1][m], k0, k1, k2, k3, s0.hi, s1.hi);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int row = 8 * m + 2 * t;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float whole = w[m][i] + (part[0][m][i] + part[1][m][i]);
          gains[m][i] = whole;
          w[m][i] = whole * s.factor[row + (i & 1)];
        }
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const Split s0 = split(w[m][i]), s1 = split(w[m][i + 1]);
          const int at = (own + g + 4 * i) * WIDE_ROW + row;
          share2(s.write + at, as_float(s0.hi), as_float(s1.hi));
          share2(s.rest + at, as_float(s0.lo), as_float(s1.lo));
        }
      }
      sync_warp();
      float x[2][2][4];
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) x[c][m][i] = 0.f;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = (own + 8 * c + 2 * t) * WIDE_ROW + g;
        const int place[4] = {at, at + 8, at + WIDE_ROW, at + WIDE_ROW + 8};
        Left a;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a.v[i].hi = as_bits(s.write[place[i]]);
          a.v[i].lo = as_bits(s.rest[place[i]]);
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const float *b = next + (8 * m + g) * KEY_ROW + own + 8 * c + 2 * t;
          product_key(x[c][m], a, b[0], b[1]);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        float *at = s.cross[warp] + g * TILE_ROW + 8 * m + 2 * t;
        share2(at, x[0][m][0] + x[1][m][0], x[0][m][1] + x[1][m][1]);
        share2(at + 8 * TILE_ROW, x[0][m][2] + x[1][m][2], x[0][m][3] + x[1][m][3]);
      }
    } else {  // before the first step: quad and gram of step 0
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
        const Left a = left(p[j][0], p[j][1], p[j][2], p[j][3]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const float *b = next + (8 * m + g) * KEY_ROW + 8 * j + 2 * t;
          product_key(ahead[m], a, b[0], b[1]);
        }
      }
      score(s, next, ahead, warp, g, t, own);
#pragma unroll
      for (int i = 2 * lane; i < TILE; i += 64) share2(s.cross[warp] + i, 0.f, 0.f);
      sync_all(0);
    }
    sync_all(1);  // all of W is there, and the factor warp may form the next G

    // P <- R_C^2 P + c_C I - W^T W
    if (n >= 0) {
      float *out = gain + (long long)(16 * n + 2 * t) * H * K + (long long)head * K + own + g;
      const int live = length - 16 * n - 2 * t;
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (8 * m + (i & 1) < live && own + g + 8 * (i >> 1) < K)
            out[(long long)(8 * m + (i & 1)) * H * K + 8 * (i >> 1)] = gains[m][i];
      Left a[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) a[c] = left(-w[c][0], -w[c][1], -w[c][2], -w[c][3]);
#pragma unroll
      for (int j = 0; j < TILES; j += GROUP) {
#pragma unroll
        for (int m = j; m < j + GROUP; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) p[m][i] *= keep;
          if (m >> 1 == warp) {  // the diagonal: row own + g is column 8 m + 2 t + i
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (own + g + 8 * (i >> 1) == 8 * m + 2 * t + (i & 1)) p[m][i] += add;
          }
        }
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int at = (8 * j + g) * WIDE_ROW + 8 * c + 2 * t;
          products_split<GROUP>(p + j, a[c], s.write + at, s.rest + at, 8 * WIDE_ROW);
        }
      }
    }
    const int done = n + 1;  // P now stands before this step
    if (done % blocks_a_chunk == 0 && done < steps) {
      store_rows(checkpoint + ((long long)(first_chunk + done / blocks_a_chunk) * H + head) * K * K, p, own + g, 2 * t);
    }
    sync_total();  // X is summed
    if (n == steps - 1) break;

    // P k of the next step, from that before the write: Y = R_C^2 Y + c_C k - W^T X
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        y[m][i] = keep * ahead[m][i] + add * next[(8 * m + 2 * t + (i & 1)) * KEY_ROW + own + g + 8 * (i >> 1)];
    if (n >= 0) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Left a = left(-w[c][0], -w[c][1], -w[c][2], -w[c][3]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const float *b = s.total + (8 * c + 2 * t) * TILE_ROW + 8 * m + g;
          product(y[m], a, b[0], b[TILE_ROW]);
        }
      }
    }
    // P k, quad and gram of the step after it
    float small[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) ahead[m][i] = small[m][i] = 0.f;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      const Left a = left(p[j][0], p[j][1], p[j][2], p[j][3]);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float *b = later + (8 * m + g) * KEY_ROW + 8 * j + 2 * t;
        if (SPLIT_KEYS) {
          product(ahead[m], a, b[0], b[1]);
        } else {  // two chains of accumulation, half as long
          mma(ahead[m], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[0]), as_bits(b[1]));
          mma(small[m], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, as_bits(b[0]), as_bits(b[1]));
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) ahead[m][i] += small[m][i];
    score(s, later, ahead, warp, g, t, own);
    float *fill = s.key[(n + 3) % BUFFERS] + key_token * KEY_ROW + key_column;
#pragma unroll
    for (int i = 0; i < 8; i += 2) share2(fill + i, coming[i], coming[i + 1]);
  }

  store_rows(final + (long long)bh * K * K, p, own + g, 2 * t);
}

// Eight entries of a sum over the matrix warps: row `lane >> 1`, columns from `8 * (lane & 1)`.
DEVICE void gather(float *x, const float (*partial)[TILE], int lane) {
  const int at = (lane >> 1) * TILE_ROW + 8 * (lane & 1);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = 0.f;
#pragma unroll
  for (int w = 0; w < MATRIX_WARPS; ++w) {
    float part[8];
    load4(part, partial[w] + at);
    load4(part + 4, partial[w] + at + 4);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += part[i];
  }
}

// Decays, noises and all of G that does not wait for the write before it.
DEVICE void gate_warp(Shared &s, const float *log_retention, const float *process_noise, const float *obs_noise,
                      float floor, int length, int H) {
  const int lane = THREAD & 31, c = lane & 15, row = lane >> 1, left_column = 8 * (lane & 1);
  const int steps = (length + 15) / 16;
  float keep = 1.f, add = 0.f;  // R_C^2 and c_C of the step before
  float coming[3] = {0.f, 0.f, 1.f};
  if (c < length) coming[0] = log_retention[c * H], coming[1] = process_noise[c * H], coming[2] = obs_noise[c * H];

  sync_all(0);
  for (int n = 0; n <= steps; ++n) {  // prepares step n; the matrix warps stand at step n - 1
    const float kept = expf(coming[0]), noise = coming[1], given = coming[2];
    const int later = 16 * (n + 1) + c;
    const bool inside = later < length;
    coming[0] = inside ? log_retention[(long long)later * H] : 0.f;
    coming[1] = inside ? process_noise[(long long)later * H] : 0.f;
    coming[2] = inside ? obs_noise[(long long)later * H] : 1.f;
    float rho[16], since = 1.f, gathered = 0.f, mine = 1.f, behind = 0.f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      rho[i] = shuffle(kept, i);
      since *= rho[i];
      gathered = rho[i] * rho[i] * gathered + shuffle(noise, i);
      if (i == c) mine = since, behind = gathered;
    }
    float left_over = 1.f;  // R_C / R_c
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (i > c) left_over *= rho[i];
    float fresh[8], together[8], ratio = 1.f;  // R_row / R_j c_j, its mirror image above the diagonal; R_row R_j
    const float here = shuffle(mine, row), noise_here = shuffle(behind, row);
#pragma unroll
    for (int j = 15; j >= 0; --j) {  // on and below the diagonal
      const float value = ratio * shuffle(behind, j), product = here * shuffle(mine, j);
      if (j >= left_column && j < left_column + 8) fresh[j & 7] = value, together[j & 7] = product;
      if (j <= row) ratio *= rho[j];
    }
    ratio = 1.f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      if (j > row) ratio *= rho[j];
      if (j > row && j >= left_column && j < left_column + 8) fresh[j & 7] = ratio * noise_here;
    }
    const float r = shuffle(given, row);

    sync_all(0);
    if (n == steps) {
      sync_all(1);
      break;
    }
    float base[8], gram[8];
    gather(base, s.quad, lane);
    gather(gram, s.gram, lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      base[i] = together[i] * (keep * base[i] + add * gram[i]) + fresh[i] * gram[i];
      if (left_column + i == row) base[i] += fmaxf(r, floor * gram[i]);
    }
    keep = since * since, add = gathered;
    sync_all(1);  // the matrix warps have read the tables of the step before
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      store4(s.base + row * TILE_ROW + left_column + i, base + i);
      store4(s.fresh + row * WIDE_ROW + left_column + i, fresh + i);
    }
    if (lane < 16) s.since[c] = mine, s.left_over[c] = left_over;
    if (lane == 0) s.step[0] = keep, s.step[1] = add;
    arrive_base();
  }
}

DEVICE void factor_warp(Shared &s, float *innovation_var, int length, int H) {
  const int lane = THREAD & 31, c = lane & 15, half = lane >> 4;
  const int steps = (length + 15) / 16;
  if (half)
    for (int i = 0; i < 16; ++i) s.base[TILE + c * TILE_ROW + i] = i == c ? 1.f : 0.f;
  sync_all(0);
  for (int n = 0; n <= steps; ++n) {  // factorises step n
    sync_all(0);
    sync_all(1);
    float x[8];
    gather(x, s.cross, lane);
    const int at = (lane >> 1) * TILE_ROW + 8 * (lane & 1);
    store4(s.total + at, x);
    store4(s.total + at + 4, x + 4);
    sync_warp();
    arrive_total();
    if (n == steps) break;
    float fallen[16], across[16];  // X^T X: the halves of the warp take half of the sum each
#pragma unroll
    for (int i = 0; i < 16; ++i) fallen[i] = 0.f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float *line = s.total + (8 * half + j) * TILE_ROW;
      const float own = line[c];
#pragma unroll
      for (int i = 0; i < 16; i += 4) load4(across + i, line + i);
#pragma unroll
      for (int i = 0; i < 16; ++i) fallen[i] += across[i] * own;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) fallen[i] += shuffle_xor(fallen[i], 16);
    // Lanes 0 to 15 hold the columns of G, of which rows i <= c count, lanes 16 to 31 those of the identity.
    sync_base();
    float a[16], since[16];
    const float mine = half ? 0.f : s.since[c];
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      load4(a + i, s.base + lane * TILE_ROW + i);
      load4(since + i, s.since + i);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) a[i] -= mine * since[i] * fallen[i];
    float pivot = 1.f;  // D_c
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float d = shuffle(a[j], j);
      if (j == c) pivot = d;
      const float scaled = a[j] * reciprocal(d);
#pragma unroll
      for (int i = j + 1; i < 16; ++i) a[i] -= shuffle(a[j], i) * scaled;
    }
    // U stands in lanes 16 to 31.
    const float inverse = reciprocal(pivot);
    if (half == 0) {
      const int token = 16 * n + c;
      s.factor[c] = s.left_over[c] * sqrtf(pivot);
      if (token < length && RANK == 0) innovation_var[(long long)token * H] = pivot;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float share = a[i] * shuffle(inverse, i);
      if (half) s.whiten[i * WIDE_ROW + c] = share;
    }
  }
}

GLOBAL covariance_forward(const KEY *k, const float *log_retention, const float *process_noise,
                                          const float *obs_noise, const float *floor, const float *initial,
                                          const int *seq_start, const int *chunk_first, float *gain,
                                          float *innovation_var, float *checkpoint, float *final, int H, int G,
                                          int blocks_a_chunk) {
  SHARED_MEMORY(Shared, s);
  const int bh = BLOCK / CLUSTER, sequence = bh / H, head = bh % H;
  const long long start = seq_start[sequence];
  const int length = seq_start[sequence + 1] - (int)start;
  const long long gates = start * H + head;
  if (THREAD < 32 * OWN_WARPS)
    matrix_warp(s, k + start * G * K, initial, gain + start * H * K, checkpoint, final, length, chunk_first[sequence],
                blocks_a_chunk, bh, head, H, G);
  else if (THREAD < 32 * OWN_WARPS + 32)
    gate_warp(s, log_retention + gates, process_noise + gates, obs_noise + gates, floor[head], length, H);
  else
    factor_warp(s, innovation_var + gates, length, H);
}
