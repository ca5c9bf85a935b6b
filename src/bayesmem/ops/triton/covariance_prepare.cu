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
// Of five matrices one is always free for what comes next, so that a barrier says that an operand is there, and none that
// it is no longer read.
//
// Compiled with: KDIM (64 or 128: K), THREADS (2 KDIM), and what the prelude asks for. Files before it: what the machine gives
// (covariance_prelude.cu, covariance_wgmma.cu, covariance_chain_prelude.cu) and pairs as operands (covariance_pairs.cu).

#define WARPS (THREADS / 32)
#define SIDE 16  // of a block that is substituted
#define COPIES (TOKENS / ROWS)

struct Shared {
  Rows k;
  union {
    struct { Rows gain[2], dgain[2]; };  // G and dgain
    Square square[5];                    // then operands
    struct {
      Square drive;
      HALF read[2][KDIM * TOKENS];  // at last Kbar, a row a channel
    };
  };
  float block[TOKENS / SIDE][SIDE][SIDE + 4];  // by columns
  float coarse[TOKENS], fine[TOKENS];          // the log of R_t, in two sums
  float since[TOKENS];                         // R_t
  float per_var[TOKENS];                       // 1 / s_t
  float along[TOKENS];                         // sigma_t, then c_t
};

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

// What this warpgroup's columns are of a product of matrices of tokens by tokens, added to; it is on its way.
DEVICE void multiply(float out[WIDTH / 8][4], const Square &a, const Square &b, int group) {
  hold_all<WIDTH / 8>(out);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) pair_product<WIDTH>(out, planes(a, c, 0), planes(b, c, WIDTH * group));
  group_commit();
}

// One column of the inverse of a block of 16, unit lower triangular, of which shared memory holds what is below.
DEVICE void substitute(float u[SIDE], const float (*below)[SIDE + 4], int own) {
#pragma unroll
  for (int i = 0; i < SIDE; ++i) u[i] = i == own ? 1.f : 0.f;
#pragma unroll
  for (int j = 0; j < SIDE - 1; ++j) {
    float x[SIDE];
#pragma unroll
    for (int i = j & ~3; i < SIDE; i += 4) load4(x + i, below[j] + i);
#pragma unroll
    for (int i = j + 1; i < SIDE; ++i) u[i] -= x[i] * u[j];
  }
}

GLOBAL covariance_prepare(const HALF *k, const HALF *gain_high, const HALF *gain_low, const float *innovation_var,
                          const float *log_retention, const float *dgain, const float *dinnovation_var, float *solve,
                          float *direct, float *alpha, HALF *read_high, HALF *read_low, float *to_end, float *along_key,
                          float *sums, const int *seq_start, const int *chunk_seq, const int *chunk_first, int H, int G) {
  SHARED_MEMORY(Shared, s);
  const int warp = THREAD / 32, lane = THREAD % 32, g = lane / 4, t = lane % 4, group = uniform(warp / 4);
  const int row = 16 * warp + g;              // channels: rows of Kbar and alpha
  const int token = 16 * (warp % 4) + g;      // rows of matrices of tokens by tokens
  const int column = WIDTH * group + 2 * t;   // the first of this thread's columns there; every 8th pair is its own too
  const int gap = token - column;             // to its row
  const int side = warp % 4, sides = WIDTH / SIDE * group;  // blocks of 16: this warp's row of them, its first column
  const int tile = lane >> 3, line = lane & 7;  // of four tiles that a warp stores, whose place this lane tells
  const int chunk = BLOCK / H, head = BLOCK % H, key_head = head / (H / G);
  const long long at = BLOCK;
  const int sequence = chunk_seq[chunk];
  const long long first = seq_start[sequence] + (long long)TOKENS * (chunk - chunk_first[sequence]);
  const int live = seq_start[sequence + 1] - (int)first;

  // k, G and dgain; tokens that do not exist are zeros.
  const int start = THREAD / TILES, eighth = THREAD % TILES, place = 64 * TOKENS * (eighth / 8) + swizzled(start, eighth % 8);
  const long long own_row = ((first + start) * H + head) * KDIM + 8 * eighth, step = ROWS * KDIM * (long long)H;
  const auto bring = [&](Rows &to, const HALF *from, long long step) {
#pragma unroll
    for (int n = 0; n < COPIES; ++n) copy(to[0] + place + 64 * ROWS * n, from + n * step, start + ROWS * n < live);
  };
  float y[COPIES][8];
#pragma unroll
  for (int n = 0; n < COPIES; ++n) {
    const float *from = dgain + own_row + n * step;
    const bool is = start + ROWS * n < live;
    fetch4(y[n], from, is), fetch4(y[n] + 4, from + 4, is);
  }
  bring(s.k, k + ((first + start) * G + key_head) * KDIM + 8 * eighth, ROWS * KDIM * (long long)G);
  bring(s.gain[0], gain_high + own_row, step), bring(s.gain[1], gain_low + own_row, step);
  const int own = THREAD % TOKENS, part = THREAD / TOKENS;  // of gates: the token, and which
  const long long gate = (first + own) * H + head;
  float value, logs[2];
  const float *const from = part ? dinnovation_var : innovation_var;
  fetch(value, from + gate, part < 2 && own < live && from);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    fetch(logs[i], log_retention + (first + 2 * lane + i) * H + head, warp == WARPS - 1 && 2 * lane + i < live);
  sync_warp();  // compilers would ask for them later
#pragma unroll
  for (int n = 0; n < COPIES; ++n)
    store_eight(s.dgain[0][0] + place + 64 * ROWS * n, s.dgain[1][0] + place + 64 * ROWS * n, y[n]);
  if (part == 0) s.per_var[own] = own < live ? reciprocal(value) : 1.f;
  if (part == 1) s.along[own] = value;
  if (warp == WARPS - 1) {  // logs in two: sums of multiples of 1/256 are exact
    float coarse[2], fine[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) coarse[i] = round_down(logs[i] * 256.f + .5f) * 0.00390625f, fine[i] = logs[i] - coarse[i];
    running(s.coarse, coarse[0], coarse[1], lane);
    running(s.fine, fine[0], fine[1], lane);
  }
  copies_wait();
  fence_for_groups();
  sync_all();

  // X = slow(R/R K G^T), and Y G^T
  float x[WIDTH / 8][4], ag[WIDTH / 8][4], inverse[WIDTH / 8][4], made[WIDTH / 8][4];
  clear<WIDTH / 8>(x), clear<WIDTH / 8>(ag);
  hold_all<WIDTH / 8>(x), hold_all<WIDTH / 8>(ag);
  group_begin();
#pragma unroll
  for (int c = 0; c < TILES; c += 2) {
    const Operand right = rows_at(s.gain, c, WIDTH * group);
    product<WIDTH>(x, s.k[c / 8] + 8 * (c % 8), 0, right.low, 0);
    product<WIDTH>(x, s.k[c / 8] + 8 * (c % 8), 0, right.high, 0);
    pair_product<WIDTH>(ag, rows_at(s.dgain, c, 0), right);
  }
  group_commit();
  if (THREAD < TOKENS) {
    const float coarse = s.coarse[own], fine = s.fine[own];
    sums[at * 2 * TOKENS + own] = coarse, sums[at * 2 * TOKENS + TOKENS + own] = fine;
    s.since[own] = exponential(coarse + fine);
    if (own < live) to_end[gate] = exponential((s.coarse[TOKENS - 1] - coarse) + (s.fine[TOKENS - 1] - fine));
  }
  const float after[2][2] = {{s.coarse[token], s.fine[token]}, {s.coarse[token + 8], s.fine[token + 8]}};
  const float per_var[2] = {s.per_var[token], s.per_var[token + 8]};
  group_wait<0>();
  hold_all<WIDTH / 8>(x), hold_all<WIDTH / 8>(ag);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (gap == 8 * j + (i & 1) - 8 * (i >> 1)) s.along[token + 8 * (i >> 1)] -= ag[j][i] * per_var[i >> 1];
  sync_all();  // nobody reads G and dgain any more, and c is there
  if (THREAD < TOKENS && own < live) along_key[gate] = s.along[own];
  const float along[2] = {s.along[token], s.along[token + 8]};
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float coarse[2], fine[2];
    load2(coarse, s.coarse + column + 8 * j), load2(fine, s.fine + column + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int on = 8 * j + (i & 1) - 8 * (i >> 1);
      const float before[2] = {coarse[i & 1], fine[i & 1]}, r = below(after[i >> 1], before, gap > on);
      x[j][i] *= r, ag[j][i] = r * (ag[j][i] * per_var[i >> 1]) + along[i >> 1] * x[j][i];
      if (sides + j / 2 == side) s.block[side][8 * (j & 1) + 2 * t + (i & 1)][g + 8 * (i >> 1)] = x[j][i];
    }
  }
  store_square_turned(s.square[0], x);
  // The inverse of the block of 16 that this warp has of the diagonal, if it has: column `lane`.
  const bool has = 16 * side / WIDTH == group;
  float u[SIDE];
  sync_warp();
  if (has) substitute(u, s.block[side], lane % SIDE);
  sync_warp();
  if (has && lane < SIDE)
#pragma unroll
    for (int i = 0; i < SIDE; i += 4) store4(s.block[side][lane] + i, u + i);
  sync_warp();
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      inverse[j][i] = sides + j / 2 == side ? s.block[side][8 * (j & 1) + 2 * t + (i & 1)][g + 8 * (i >> 1)] : 0.f;
#pragma unroll
  for (int round = 0; round < 2; ++round) {
    Square &turned = s.square[round ? 4 : 2];
    store_square(s.square[1], inverse), store_square_turned(turned, inverse);
    fence_for_groups();
    sync_all();
    clear<WIDTH / 8>(made);
    multiply(made, s.square[1], s.square[0], group);
    finish<WIDTH / 8>(made);
    store_square(s.square[3], made);
    fence_for_groups();
    sync_all();
    clear<WIDTH / 8>(made);
    multiply(made, s.square[3], turned, group);
    finish<WIDTH / 8>(made);
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j) {
      const int other = sides + j / 2;
      const bool joins = round ? side / 2 != other / 2 : side / 2 == other / 2 && side != other;
#pragma unroll
      for (int i = 0; i < 4; ++i) inverse[j][i] -= joins ? made[j][i] : 0.f;
    }
  }

  // direct = slow(R/R (U^T (Ag U + slow(Ag^T U)) / 2 - c U / 2))
  store_square(s.square[0], ag), store_square_turned(s.square[1], ag), store_square_turned(s.square[2], inverse);
  fence_for_groups();
  sync_all();
  float drive[WIDTH / 8][4], mixed[WIDTH / 8][4];
  clear<WIDTH / 8>(drive), clear<WIDTH / 8>(mixed);
  multiply(drive, s.square[0], s.square[2], group);
  multiply(mixed, s.square[1], s.square[2], group);
  float *const solve_at = solve + at * SQUARE + token * TOKENS + column, *const direct_at = direct + at * SQUARE + token * TOKENS + column;
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) store2(solve_at + 8 * TOKENS * i + 8 * j, inverse[j][2 * i], inverse[j][2 * i + 1]);
  group_wait<0>();
  hold_all<WIDTH / 8>(drive), hold_all<WIDTH / 8>(mixed);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      mixed[j][i] = .5f * (drive[j][i] + (gap > 8 * j + (i & 1) - 8 * (i >> 1) ? mixed[j][i] : 0.f));
  store_square_turned(s.square[3], mixed);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float since[2];
    load2(since, s.since + column + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      mixed[j][i] = -.5f * along[i >> 1] * inverse[j][i];
      inverse[j][i] *= since[i & 1];
      drive[j][i] = (gap == 8 * j + (i & 1) - 8 * (i >> 1) ? along[i >> 1] : -drive[j][i]) * since[i & 1];
    }
  }
  store_square(s.square[4], inverse);
  fence_for_groups();
  sync_all();  // nobody reads Ag any more
  multiply(mixed, s.square[2], s.square[3], group);
  store_square(s.drive, drive);
  finish<WIDTH / 8>(mixed);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float coarse[2], fine[2];
    load2(coarse, s.coarse + column + 8 * j), load2(fine, s.fine + column + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float before[2] = {coarse[i & 1], fine[i & 1]};
      mixed[j][i] *= below(after[i >> 1], before, gap > 8 * j + (i & 1) - 8 * (i >> 1));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) store2(direct_at + 8 * TOKENS * i + 8 * j, mixed[j][2 * i], mixed[j][2 * i + 1]);
  }
  fence_for_groups();
  sync_warp();
  // dgain again, after the fence, which may wait for it: Y^T R is what alpha begins with.
  float made_read[EIGHTHS][4], made_alpha[EIGHTHS][4];
  const float *d = dgain + ((first + 2 * t) * H + head) * KDIM + row;
  const int next = H * KDIM;
#pragma unroll
  for (int c = 0; c < EIGHTHS; ++c, d += 8ll * next)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool is = 8 * c + 2 * t + i < live;
      fetch(made_alpha[c][i], d + i * next, is), fetch(made_alpha[c][i + 2], d + i * next + 8, is);
    }
  sync_all();

  // Kbar, and alpha
  clear<EIGHTHS>(made_read);
  hold_all<EIGHTHS>(made_read);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned keys[4];
    turned_rows(keys, s.k, c);
    product<TOKENS>(made_read, keys, s.square[4][1][c], TOKEN_PLANE);
    product<TOKENS>(made_read, keys, s.square[4][0][c], TOKEN_PLANE);
  }
  group_commit();
#pragma unroll
  for (int c = 0; c < EIGHTHS; ++c) {
    float since[2], over[2];
    load2(since, s.since + 8 * c + 2 * t), load2(over, s.per_var + 8 * c + 2 * t);
#pragma unroll
    for (int i = 0; i < 4; ++i) made_alpha[c][i] *= since[i & 1] * over[i & 1];
  }
  group_wait<0>();
  hold_all<EIGHTHS>(made_read), hold_all<EIGHTHS>(made_alpha);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned keys[4];
    turned_rows(keys, s.k, c);
    product<TOKENS>(made_alpha, keys, s.drive[1][c], TOKEN_PLANE);
    product<TOKENS>(made_alpha, keys, s.drive[0][c], TOKEN_PLANE);
  }
  group_commit();
#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j) {
    unsigned tiles[4];
    pair_of(tiles, made_read[j]);
    store_tiles(s.read[tile >> 1] + swizzled(16 * warp + 8 * (tile & 1) + line, j), tiles);
  }
  group_wait<0>();
  hold_all<EIGHTHS>(made_alpha);
  float *const to = alpha + at * KDIM * TOKENS + row * TOKENS + 2 * t;
#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j)
    store2(to + 8 * j, made_alpha[j][0], made_alpha[j][1]), store2(to + 8 * TOKENS + 8 * j, made_alpha[j][2], made_alpha[j][3]);
  sync_warp();  // every warp has its own rows of Kbar
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int mine = 16 * warp + 4 * n + lane / EIGHTHS, from = swizzled(mine, lane % EIGHTHS);
    const long long there = (at * KDIM + mine) * TOKENS + 8 * (lane % EIGHTHS);
    move16(read_high + there, s.read[0] + from), move16(read_low + there, s.read[1] + from);
  }
}
