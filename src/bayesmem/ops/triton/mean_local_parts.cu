// What threads of mean_local.cu do between its products, and what they share.


typedef HALF Values[VDIM / 64][64 * TOKENS];  // tokens by values, 64 values after 64
typedef HALF State[VDIM / 64][64 * KDIM];     // channels by values
typedef HALF Tile[64 * TOKENS];               // tokens by tokens

struct Shared {
  union {
    Values d_out;
    Rows k;
  };
  union {
    Values dv;
    Rows made;                  // dQ, then dK: a warp reads again what it wrote
    float told[WARPS][8 * 64];  // then, in its place, of its channels: db of its 16 tokens, and what they sent
  };
  union {
    Values error;
    Rows q;
  };
  union {
    State mean;
    float carried[8][THREADS][4];  // E dM^T, then, as threads hold it
  };
  union {
    State d_mean;
    struct {
      Rows gain;
      Tile seen, reads;  // dA, -dX
    };
  };
  float factors[2][TOKENS];  // R_t, R_C / R_t
  union {
    float sum[2][TOKENS];  // the log of R_t, in two sums
    struct {
      float itself[TOKENS], part[WARPS];  // a token's own score; of <M_0, dM>, by warp
      long long row, key_row;             // of the first token, of [N, H] and [N, G]
      int live;
    };
  };
};

// So many rows and columns on their way into shared memory, 64 columns after 64; zeros from row `live` on.
template <int COLUMNS, int COUNT> DEVICE void bring(HALF *to, const HALF *from, long long stride, int live) {
  const int step = 8 * THREADS / COLUMNS, start = THREAD / (COLUMNS / 8), eighth = THREAD % (COLUMNS / 8);
  from += start * stride + 8 * eighth, to += 64 * COUNT * (eighth / 8);
#pragma unroll
  for (int n = 0; n < COUNT; n += step) copy(to + swizzled(start + n, eighth % 8), from + n * stride, start + n < live);
}

// <M_0, dM>, summed over a warp, of what this thread has brought itself.
DEVICE float overlap(const HALF *mean, const HALF *d_mean) {
  const int step = 8 * THREADS / VDIM, start = THREAD / (VDIM / 8), eighth = THREAD % (VDIM / 8);
  float sum = 0.f;
#pragma unroll
  for (int n = 0; n < KDIM; n += step) {
    const int place = 64 * KDIM * (eighth / 8) + swizzled(start + n, eighth % 8);
    unsigned x[4], y[4];
    load16(x, mean + place), load16(y, d_mean + place);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sum += as_float(x[i] << 16) * as_float(y[i] << 16) + as_float(x[i] & 0xffff0000u) * as_float(y[i] & 0xffff0000u);
  }
#pragma unroll
  for (int mask = 16; mask; mask >>= 1) sum += shuffle_xor(sum, mask);
  return sum;
}

// Eighths c and c + 1 of an operand's contraction, from a row on.
template <int COUNT, int SIZE> DEVICE const HALF *eighth_of(const HALF (&x)[COUNT][SIZE], int c, int row) {
  return x[c / 8] + 64 * row + 8 * (c % 8);
}

// Where this lane's row of four tiles lies: of its warp's 16 tokens, eighths c (even) and c + 1.
DEVICE int four_tiles(int c) {
  const int tile = THREAD % 32 >> 3, line = THREAD & 7;
  return swizzled(16 * (THREAD / 32 % 4) + 8 * (tile & 1) + line, tile >> 1) ^ 8 * c;
}

DEVICE void keep_tiles(HALF *to, int c, const float x[8][4]) {
  const unsigned tiles[4] = {bfloat16s(x[c][0], x[c][1]), bfloat16s(x[c][2], x[c][3]), bfloat16s(x[c + 1][0], x[c + 1][1]),
                             bfloat16s(x[c + 1][2], x[c + 1][3])};
  store_tiles(to + four_tiles(c), tiles);
}

// A warp's 16 tokens of 64 channels to memory.
DEVICE void send_rows(HALF *x, const Shared &s, int group, int H) {
  const int start = 16 * (THREAD / 32 % 4) + THREAD % 32 / 8, eighth = THREAD % 8;
  sync_warp();
  HALF *to = x + (s.row + (long long)start * H) * KDIM + 64 * group + 8 * eighth;
#pragma unroll
  for (int n = 0; n < 16; n += 4) {
    unsigned part[4];
    load16(part, s.made[group] + swizzled(start + n, eighth));
    send16(to + (long long)n * H * KDIM, part, start + n < s.live);
  }
  sync_warp();
}

// Log decays of two tokens a lane of one warp, on their way.
DEVICE void decays(float x[2], const float *log_decay, int live, int H, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) fetch(x[i], log_decay + (2ll * lane + i) * H, 2 * lane + i < live);
}

// dA and -dX of this thread, rounded as operands are, from the products; and what stands on the diagonal.
DEVICE void rate(unsigned (*seen)[4], unsigned (*reads)[4], float itself[2], const float (*d_seen)[4],
                 const float (*d_reads)[4], const float (*sum)[TOKENS], int token, int column, int gap) {
  const float after[2][2] = {{sum[0][token], sum[1][token]}, {sum[0][token + 8], sum[1][token + 8]}};
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float coarse[2], fine[2], ratio[4];
    load2(coarse, sum[0] + column + 8 * j), load2(fine, sum[1] + column + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int on = 8 * j + (i & 1) - 8 * (i >> 1);
      const float before[2] = {coarse[i & 1], fine[i & 1]};
      ratio[i] = below(after[i >> 1], before, gap > on);
      if (gap == on) itself[i >> 1] = d_seen[j][i];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int to = 2 * (j & 1) + i;
      seen[j / 2][to] = bfloat16s(ratio[2 * i] * d_seen[j][2 * i], ratio[2 * i + 1] * d_seen[j][2 * i + 1]);
      reads[j / 2][to] = bfloat16s(ratio[2 * i] * d_reads[j][2 * i], ratio[2 * i + 1] * d_reads[j][2 * i + 1]);
    }
  }
}

// Of two tokens a lane of one warp: the sums of db over tokens from each on, and of what those before it sent. No sum is made
// by a difference, which strong decays would leave errors in.
DEVICE void gather(const Shared &s, float *d_log_decay, int live, int H, int lane) {
  float db[2] = {0.f, 0.f}, sent[2] = {0.f, 0.f}, kept = 0.f;
#pragma unroll
  for (int i = 0; i < GROUPS; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float *told = s.told[4 * i + lane / 8] + 2 * (lane % 8) + j;
      db[j] += told[0], sent[j] += told[16];
    }
#pragma unroll
  for (int i = 0; i < WARPS; ++i) kept += s.part[i];
  kept *= s.factors[0][TOKENS - 1];
  float on = db[0] + db[1], up_to = sent[0] + sent[1];
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const float more = shuffle(on, lane + step & 31), less = shuffle(up_to, lane - step & 31);
    if (lane + step < 32) on += more;
    if (lane >= step) up_to += less;
  }
  const float next = shuffle(on, lane + 1 & 31), last = shuffle(up_to, lane - 1 & 31);
  const float after = db[1] + (lane < 31 ? next : 0.f), before = lane ? last : 0.f;
  if (2 * lane < live) d_log_decay[2ll * lane * H] = db[0] + after + (before + kept);
  if (2 * lane + 1 < live) d_log_decay[(2ll * lane + 1) * H] = after + (before + sent[0] + kept);
}
