// What a chunk of the covariance's backward knows by itself (covariance_prepare.py says what that is) on Hopper's tensor cores:
// one block of threads a (chunk, head), keys of bfloat16, gains as a pair, no gradient of the predictive variance.
//
// Matrices of tokens by tokens are made by columns, WIDTH a warpgroup, and meet in shared memory as operands. The inverse
// U = (I + X)^-1 begins with blocks of 16, which are substituted, a column a lane; then, as in unit_inverse, twice
//
//   U <- U - (U X) U  in the blocks that join two       X = slow(R/R K G^T)
//
// Kbar and alpha have channels for their rows, so that every warpgroup has 64:
//
//   Kbar = K^T (U R)^T     alpha = Y^T R + K^T ((c I - Ag U) R)^T
//
// Compiled with: KDIM (64 or 128: K), THREADS (2 KDIM), BLOCKS (that share a multiprocessor). Files before it:
// covariance_pairs_prelude.cu, covariance_pairs.cu.

#define BLOCK_SIZE 16

struct Shared {
  HALF k[GROUPS][64 * TOKENS];
  union {
    struct {
      HALF gain[2][GROUPS][64 * TOKENS];  // G
      HALF dgain[2][GROUPS][64 * TOKENS];
    };
    Square square[4];  // then operands
    struct {
      Square used[2];
      HALF read[2][KDIM * TOKENS];  // at last Kbar, a row a channel
    };
  };
  float block[TOKENS / BLOCK_SIZE][BLOCK_SIZE][BLOCK_SIZE + 1];
  float coarse[TOKENS], fine[TOKENS];  // the log of R_t, in two sums
  float since[TOKENS];                 // R_t
  float per_var[TOKENS];               // 1 / s_t
  float along[TOKENS];                 // sigma_t, then c_t
};

DEVICE float ratio(const Shared &s, int t, int u) {  // R_t / R_u
  return exponential((s.coarse[t] - s.coarse[u]) + (s.fine[t] - s.fine[u]));
}

// Sums over the tokens up to each of what two tokens a lane give.
DEVICE void running(float out[TOKENS], float x, float y, int lane) {
  float sum = x + y;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const float before = shuffle(sum, lane - step & 31);
    if (lane >= step) sum += before;
  }
  out[2 * lane] = sum - y, out[2 * lane + 1] = sum;
}

// What this warpgroup's columns are of a matrix product of tokens by tokens.
DEVICE void multiply(float out[WIDTH / 8][4], const Square &a, const Square &b) {
  hold_all<WIDTH / 8>(out);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) pair_product<WIDTH>(out, planes(a, c, 0), planes(b, c, WIDTH * (THREAD / 128)));
  finish<WIDTH / 8>(out);
}

GLOBAL covariance_prepare(const HALF *k, const HALF *gain_high, const HALF *gain_low, const float *innovation_var,
                          const float *log_retention, const float *dgain, const float *dinnovation_var, float *solve,
                          float *direct, float *alpha, HALF *read_high, HALF *read_low, float *to_end, float *along_key,
                          float *sums, const int *seq_start, const int *chunk_seq, const int *chunk_first, int H, int G) {
  SHARED_MEMORY(Shared, s);
  const int warp = THREAD / 32, lane = THREAD % 32, g = lane / 4, t = lane % 4, group = warp / 4;
  const int row = 16 * warp + g;           // channels: rows of Kbar and alpha
  const int token = 16 * (warp % 4) + g;   // rows of matrices of tokens by tokens
  const int column = WIDTH * group + 2 * t;  // the first of this thread's columns there; every 8th pair is its own too
  const int chunk = BLOCK / H, head = BLOCK % H, key_head = head / (H / G);
  const long long at = BLOCK;
  const int sequence = chunk_seq[chunk];
  const long long first = seq_start[sequence] + (long long)TOKENS * (chunk - chunk_first[sequence]);
  const int live = seq_start[sequence + 1] - (int)first;
  const HALF *const gain[2] = {gain_high, gain_low};

  // k and G as they lie in memory, and dgain as a pair; tokens that do not exist are zeros.
#pragma unroll 1
  for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS) {
    const int own = i / TILES, eighth = i % TILES, to = swizzled(own, eighth % 8);
    const bool there = own < live;
    const long long from = there ? ((first + own) * H + head) * KDIM + 8 * eighth : 0;
    copy(s.k[eighth / 8] + to, there ? k + ((first + own) * G + key_head) * KDIM + 8 * eighth : k, there);
#pragma unroll
    for (int half = 0; half < 2; ++half) copy(s.gain[half][eighth / 8] + to, gain[half] + from, there);
    float x[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    if (there) load4(x, dgain + from), load4(x + 4, dgain + from + 4);
    store_eight(s.dgain[0][eighth / 8] + to, s.dgain[1][eighth / 8] + to, x);
  }
  const bool mine = THREAD < TOKENS, there = mine && THREAD < live;
  const long long gate = (first + THREAD) * H + head;
  if (mine) {
    s.per_var[THREAD] = there ? 1.f / innovation_var[gate] : 1.f;
    s.along[THREAD] = there && dinnovation_var ? dinnovation_var[gate] : 0.f;
  }
  if (warp == 0) {  // logs in two: sums of multiples of 1/256 are exact
    float coarse[2], fine[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x = 2 * lane + i < live ? log_retention[(first + 2 * lane + i) * H + head] : 0.f;
      coarse[i] = round_down(x * 256.f + .5f) * 0.00390625f, fine[i] = x - coarse[i];
    }
    running(s.coarse, coarse[0], coarse[1], lane);
    running(s.fine, fine[0], fine[1], lane);
  }
  copies_wait();
  fence_for_groups();
  sync_all();
  if (mine) {
    const float coarse = s.coarse[THREAD], fine = s.fine[THREAD];
    sums[at * 2 * TOKENS + THREAD] = coarse, sums[at * 2 * TOKENS + TOKENS + THREAD] = fine;
    s.since[THREAD] = exponential(coarse + fine);
    if (there) to_end[gate] = exponential((s.coarse[TOKENS - 1] - coarse) + (s.fine[TOKENS - 1] - fine));
  }

  // X = slow(R/R K G^T), and Y G^T
  float x[WIDTH / 8][4], ag[WIDTH / 8][4], inverse[WIDTH / 8][4];
  clear<WIDTH / 8>(x), clear<WIDTH / 8>(ag);
  hold_all<WIDTH / 8>(x), hold_all<WIDTH / 8>(ag);
  group_begin();
#pragma unroll
  for (int c = 0; c < TILES; c += 2) {
    const int part = c / 8, from = 8 * (c % 8), rows = 64 * WIDTH * group + from;
    const Operand right = {s.gain[0][part] + rows, s.gain[1][part] + rows, 0};
    product<WIDTH>(x, s.k[part] + from, 0, right.low, 0);
    product<WIDTH>(x, s.k[part] + from, 0, right.high, 0);
    pair_product<WIDTH>(ag, Operand{s.dgain[0][part] + from, s.dgain[1][part] + from, 0}, right);
  }
  finish<WIDTH / 8>(x);
  hold_all<WIDTH / 8>(ag);
  sync_all();  // nobody reads G and dgain any more
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int to = token + 8 * (i >> 1), from = column + 8 * j + (i & 1);
      const float r = to > from ? ratio(s, to, from) : 0.f, y = ag[j][i] * s.per_var[to];
      if (to == from) s.along[to] -= y;
      x[j][i] *= r, ag[j][i] = r * y;
      if (to / BLOCK_SIZE == from / BLOCK_SIZE) s.block[to / BLOCK_SIZE][to % BLOCK_SIZE][from % BLOCK_SIZE] = x[j][i];
    }
  store_square_turned(s.square[0], x);
  sync_all();
  if (there) along_key[gate] = s.along[THREAD];
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) ag[j][i] += s.along[token + 8 * (i >> 1)] * x[j][i];

  // The inverse of blocks of 16: column `lane` of the block of this warp.
  if (warp < TOKENS / BLOCK_SIZE) {
    float u[BLOCK_SIZE];
    const int own = lane % BLOCK_SIZE;
#pragma unroll
    for (int i = 0; i < BLOCK_SIZE; ++i) {
      u[i] = i == own ? 1.f : 0.f;
#pragma unroll
      for (int j = 0; j < i; ++j) u[i] -= s.block[warp][i][j] * u[j];
    }
    sync_warp();
    if (lane < BLOCK_SIZE)
#pragma unroll
      for (int i = 0; i < BLOCK_SIZE; ++i) s.block[warp][i][own] = u[i];
  }
  sync_all();
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int to = token + 8 * (i >> 1), from = column + 8 * j + (i & 1);
      inverse[j][i] = to / BLOCK_SIZE == from / BLOCK_SIZE ? s.block[to / BLOCK_SIZE][to % BLOCK_SIZE][from % BLOCK_SIZE] : 0.f;
    }
#pragma unroll
  for (int size = BLOCK_SIZE; size < TOKENS; size *= 2) {
    float made[WIDTH / 8][4];
    store_square(s.square[1], inverse), store_square_turned(s.square[2], inverse);
    fence_for_groups();
    sync_all();
    clear<WIDTH / 8>(made);
    multiply(made, s.square[1], s.square[0]);
    store_square(s.square[3], made);
    fence_for_groups();
    sync_all();
    clear<WIDTH / 8>(made);
    multiply(made, s.square[3], s.square[2]);
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int to = token + 8 * (i >> 1), from = column + 8 * j + (i & 1);
        if (to / (2 * size) == from / (2 * size) && to / size != from / size) inverse[j][i] -= made[j][i];
      }
    sync_all();  // nobody reads the operands any more
  }
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      store2(solve + at * SQUARE + (token + 4 * i) * TOKENS + column + 8 * j, inverse[j][i], inverse[j][i + 1]);

  // direct = slow(R/R (U^T (Ag U + slow(Ag^T U)) / 2 - c U / 2))
  store_square(s.square[0], ag), store_square_turned(s.square[1], ag), store_square_turned(s.square[2], inverse);
  fence_for_groups();
  sync_all();
  float drive[WIDTH / 8][4], mixed[WIDTH / 8][4];
  clear<WIDTH / 8>(drive), clear<WIDTH / 8>(mixed);
  multiply(drive, s.square[0], s.square[2]);
  multiply(mixed, s.square[1], s.square[2]);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      mixed[j][i] = .5f * (drive[j][i] + (token + 8 * (i >> 1) > column + 8 * j + (i & 1) ? mixed[j][i] : 0.f));
  store_square_turned(s.square[3], mixed);
  fence_for_groups();
  sync_all();  // nobody reads Ag any more
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int to = token + 8 * (i >> 1), from = column + 8 * j + (i & 1);
      mixed[j][i] = -.5f * s.along[to] * inverse[j][i];
      inverse[j][i] *= s.since[from], drive[j][i] = (to == from ? s.along[to] : -drive[j][i]) * s.since[from];
    }
  store_square(s.square[0], inverse), store_square(s.square[1], drive);
  multiply(mixed, s.square[2], s.square[3]);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int to = token + 4 * i, from = column + 8 * j;
      const float one = to > from ? ratio(s, to, from) * mixed[j][i] : 0.f;
      const float other = to > from + 1 ? ratio(s, to, from + 1) * mixed[j][i + 1] : 0.f;
      store2(direct + at * SQUARE + to * TOKENS + from, one, other);
    }
  fence_for_groups();
  sync_all();

  // Kbar, and alpha
  float made[EIGHTHS][4];
  const int tile = lane >> 3, line = lane & 7;  // of four tiles that a warp stores, whose place this lane tells
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    clear<EIGHTHS>(made);
    if (which)
#pragma unroll
      for (int j = 0; j < EIGHTHS; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int of = 8 * j + 2 * t + (i & 1);
          const float *from = dgain + ((first + of) * H + head) * KDIM + row + 8 * (i >> 1);
          if (of < live) made[j][i] = *from * (s.since[of] * s.per_var[of]);
        }
    hold_all<EIGHTHS>(made);
    group_begin();
#pragma unroll
    for (int c = 0; c < EIGHTHS; c += 2) {
      unsigned keys[4];
      turned_rows(keys, s.k, c);
      product<TOKENS>(made, keys, s.square[which][1][c], TOKEN_PLANE);
      product<TOKENS>(made, keys, s.square[which][0][c], TOKEN_PLANE);
    }
    finish<EIGHTHS>(made);
    float *to = alpha + at * KDIM * TOKENS + row * TOKENS + 2 * t;
#pragma unroll
    for (int j = 0; j < EIGHTHS; ++j)
      if (which) {
        store2(to + 8 * j, made[j][0], made[j][1]), store2(to + 8 * TOKENS + 8 * j, made[j][2], made[j][3]);
      } else {
        unsigned tiles[4];
        pair_of(tiles, made[j]);
        store_tiles(s.read[tile >> 1] + swizzled(16 * warp + 8 * (tile & 1) + line, j), tiles);
      }
  }
  sync_all();
#pragma unroll
  for (int i = THREAD; i < THREAD + KDIM * EIGHTHS; i += THREADS) {
    move16(read_high + at * KDIM * TOKENS + 8 * i, s.read[0] + swizzled(i / EIGHTHS, i % EIGHTHS));
    move16(read_low + at * KDIM * TOKENS + 8 * i, s.read[1] + swizzled(i / EIGHTHS, i % EIGHTHS));
  }
}
