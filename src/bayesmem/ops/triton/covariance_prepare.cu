// What a chunk of the covariance's backward knows by itself (covariance_prepare.py says what that is) on Hopper's tensor cores:
// one block of threads a (chunk, head), keys of bfloat16, gains as a pair, no gradient of the predictive variance.
//
// Matrices of tokens by tokens are made by columns, WIDTH a warpgroup, and meet in shared memory as operands; they are lower
// triangles, of which products read no rows above a warpgroup's first column. The inverse U = (I + X)^-1,
// X = slow(R/R K G^T), is covariance_inverse.cu's.
//
// Kbar and alpha have channels for their rows, so that every warpgroup has 64:
//
//   Kbar = K^T (U R)^T     alpha = Y^T R + K^T ((c I - Ag U) R)^T
//
// Of five matrices those are free that come next, so that a barrier says that an operand is there, and none that it is no
// longer read. Left sides go through registers: shared memory, which is what all of this waits for most, gives them once
// for the products of a pair, and turned.
//
// Compiled with: KDIM (64 or 128: K), THREADS (2 KDIM), and what the prelude asks for. Files before it: what
// the machine gives (covariance_prelude.cu, covariance_wgmma.cu, hopper_prelude.cu), pairs as operands
// (covariance_pairs.cu), and covariance_inverse.cu.

#define COPIES (TOKENS / ROWS)
#define ONWARD 264  // blocks from one that runs to one that takes such a place

struct Shared {
  Rows k;
  union {
    struct { Rows gain[2], dgain[2]; };  // G and dgain
    Square square[5];                    // then operands
    struct {
      Square others[2];
      HALF read[2][KDIM * TOKENS];  // at last Kbar, a row a channel
    };
  };
  float block[TOKENS / SIDE][SIDE][SIDE + 4];  // by columns
  float coarse[TOKENS], fine[TOKENS];          // the log of R_t, in two sums
  float since[TOKENS];                         // R_t
  float per_var[TOKENS], over[TOKENS];         // 1 / s_t, R_t / s_t
  float along[TOKENS];                         // sigma_t, then c_t
  long long then;                              // the first token of the block to be announced, or none: -1
};

// What this warpgroup's columns are of a product of matrices of tokens by tokens, added to: one step of the contraction, on
// its way. Of b the lower triangle alone is read.
template <bool TURNED> DEVICE void multiply(float out[WIDTH / 8][4], const Square &a, const Square &b, int c, int group) {
  unsigned high[4], low[4];
  square_rows<TURNED>(high, low, a, c);
  group_begin();
  pair_product<WIDTH>(out, high, low, planes(b, c, WIDTH * group));
  group_commit();
}

// What blocks ONWARD from this one read lies together over all heads: every head tells of its part of the tokens.
DEVICE void announce_later(const Shared &s, const HALF *k, const HALF *gain_high, const HALF *gain_low, const float *dgain,
                          int H, int G) {
  if (THREAD || s.then < 0) return;
  const int part = (BLOCK + ONWARD) % H, keys = TOKENS * KDIM / (H / G) & ~7;
  const long long from = s.then * H * KDIM + (long long)part * TOKENS * KDIM;
  announce(dgain + from, 4 * TOKENS * KDIM);
  announce(gain_high + from, 2 * TOKENS * KDIM), announce(gain_low + from, 2 * TOKENS * KDIM);
  announce(k + s.then * G * KDIM + (long long)part * keys, 2 * keys);
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
  const auto bring = [&](Rows &to, const HALF *from, long long step) {  // from places that are counted for dgain anyway
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
  if (warp == WARPS - 1) sum_logs(s.coarse, s.fine, logs, lane);
  copies_wait();
  fence_for_groups();
  sync_all();

  // X = slow(R/R K G^T), and Y G^T
  float x[WIDTH / 8][4], ag[WIDTH / 8][4];
  clear<WIDTH / 8>(x), clear<WIDTH / 8>(ag);
  hold_all<WIDTH / 8>(x), hold_all<WIDTH / 8>(ag);
#pragma unroll
  for (int c = 0; c < TILES; c += 2) {
    const Operand right = rows_at(s.gain, c, WIDTH * group);
    unsigned keys[4], high[4], low[4];
    rows_of(keys, &s.k, c), rows_of(high, &s.dgain[0], c), rows_of(low, &s.dgain[1], c);
    group_begin();
    product<WIDTH>(x, keys, right.low, 0), product<WIDTH>(x, keys, right.high, 0);
    pair_product<WIDTH>(ag, high, low, right);
    group_commit();
    if (c >= 2) group_wait<1>();  // registers hold two steps' left sides
  }
  if (THREAD == THREADS - 32) {
    const int next = (BLOCK + ONWARD) / H, of = BLOCK + ONWARD < GRID ? chunk_seq[next] : sequence;
    const long long then = seq_start[of] + (long long)TOKENS * (next - chunk_first[of]);
    s.then = BLOCK + ONWARD < GRID && then + TOKENS <= seq_start[of + 1] ? then : -1;
  }
  if (THREAD < TOKENS) {
    const float coarse = s.coarse[own], fine = s.fine[own];
    sums[at * 2 * TOKENS + own] = coarse, sums[at * 2 * TOKENS + TOKENS + own] = fine;
    const float since = exponential(coarse + fine);
    s.since[own] = since, s.over[own] = since * s.per_var[own];
    if (own < live) to_end[gate] = exponential((s.coarse[TOKENS - 1] - coarse) + (s.fine[TOKENS - 1] - fine));
  }
  const float after[2][2] = {{s.coarse[token], s.fine[token]}, {s.coarse[token + 8], s.fine[token + 8]}};
  const float per_var[2] = {s.per_var[token], s.per_var[token + 8]};
  group_wait<0>();
  hold_all<WIDTH / 8>(x), hold_all<WIDTH / 8>(ag);
  // A warp's block of 16 of the diagonal, if it has it, is in the same two of its tiles of 8 columns for all of its threads.
  const bool has = 16 * side / WIDTH == group;
  float corner[2][4];
  corner_of(corner, ag, side - sides);
  if (has && own_diagonal(lane)) {
    float diagonal[2];
    diagonal_of(diagonal, corner, g);
    s.along[token] -= diagonal[0] * per_var[0], s.along[token + 8] -= diagonal[1] * per_var[1];
  }
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
    }
  }
  store_square_turned(s.square[3], x);
  store_square(s.square[0], ag);
  corner_of(corner, x, side - sides);
  float inverse[WIDTH / 8][4];
  clear<WIDTH / 8>(inverse);
  if (has) {
    float(*const block)[SIDE + 4] = s.block[side], u[SIDE];
#pragma unroll
    for (int n = 0; n < 8; ++n) block[8 * (n >> 2) + 2 * t + (n & 1)][g + 8 * (n >> 1 & 1)] = corner[n >> 2][n & 3];
    sync_warp();
    substitute(u, block, lane % SIDE);
    sync_warp();
    if (lane < SIDE)
#pragma unroll
      for (int i = 0; i < SIDE; i += 4) store4(block[lane] + i, u + i);
    sync_warp();
#pragma unroll
    for (int n = 0; n < 8; ++n) corner[n >> 2][n & 3] = block[8 * (n >> 2) + 2 * t + (n & 1)][g + 8 * (n >> 1 & 1)];
    set_corner(inverse, corner, side - sides);
  }
  store_square_turned(s.square[2], inverse);
  sync_all();
  if (has && (side & 1)) {
    join<SIDE>(corner, s.square[2], s.square[3], SIDE * (side - 1), side);
    set_corner(inverse, corner, side - 1 - sides);
  }
  sync_all();
  const long long square_at = at * SQUARE + token * TOKENS + WIDTH * group;
  float *const solve_at = solve + square_at, *const direct_at = direct + square_at;
  const auto keep = [&] {
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j += 2) store_beside(solve_at + 8 * j, TOKENS, inverse[j], inverse[j + 1]);
  };
  const bool joins = group == 0 && side >= 2;
  if (joins)
    join<2 * SIDE>(inverse, s.square[2], s.square[3], 0, side);
  else
    keep();
  fence_for_groups();
  sync_all();

  // direct = slow(R/R (U^T (Ag U + slow(Ag^T U)) / 2 - c U / 2))
  float drive[WIDTH / 8][4], mixed[WIDTH / 8][4];
  clear<WIDTH / 8>(drive), clear<WIDTH / 8>(mixed);
  hold_all<WIDTH / 8>(drive), hold_all<WIDTH / 8>(mixed);
  const auto both = [&](int c) {
    multiply<false>(drive, s.square[0], s.square[2], c, group), multiply<true>(mixed, s.square[0], s.square[2], c, group);
  };
  if (GROUPS == 1 || group == 0)
#pragma unroll
    for (int c = 0; c < WIDTH / 8; c += 2) both(c), group_wait<2>();
#pragma unroll
  for (int c = WIDTH / 8; c < EIGHTHS; c += 2) both(c), group_wait<2>();
  if (joins) keep();
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
  store_square(s.square[4], inverse), store_square(s.square[1], drive);
  fence_for_groups();
  sync_warp();
  // dgain again, after the fence, which may wait for it: Y^T R is what alpha begins with.
  float made_read[EIGHTHS][4], made_alpha[EIGHTHS][4];
  fetch_channels(made_alpha, dgain + (first * H + head) * KDIM, H * KDIM, live);
  sync_all();
  hold_all<WIDTH / 8>(mixed);
  if (GROUPS == 1 || group == 0)
#pragma unroll
    for (int c = 0; c < WIDTH / 8; c += 2) multiply<false>(mixed, s.square[2], s.square[3], c, group), group_wait<1>();
#pragma unroll
  for (int c = WIDTH / 8; c < EIGHTHS; c += 2) multiply<false>(mixed, s.square[2], s.square[3], c, group), group_wait<1>();
  group_wait<0>();
  hold_all<WIDTH / 8>(mixed);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float coarse[2], fine[2];
    load2(coarse, s.coarse + column + 8 * j), load2(fine, s.fine + column + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float before[2] = {coarse[i & 1], fine[i & 1]};
      mixed[j][i] *= below(after[i >> 1], before, gap > 8 * j + (i & 1) - 8 * (i >> 1));
    }
    if (j & 1) store_beside(direct_at + 8 * (j - 1), TOKENS, mixed[j - 1], mixed[j]);
  }

  // Kbar, and alpha while Kbar is stored
  unsigned keys[EIGHTHS / 2][4];
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) turned_rows(keys[c / 2], s.k, c);
  clear<EIGHTHS>(made_read);
  hold_all<EIGHTHS>(made_read);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    product<TOKENS>(made_read, keys[c / 2], s.square[4][1][c], TOKEN_PLANE);
    product<TOKENS>(made_read, keys[c / 2], s.square[4][0][c], TOKEN_PLANE);
  }
  group_commit();
#pragma unroll
  for (int c = 0; c < EIGHTHS; ++c) {
    float over[2];
    load2(over, s.over + 8 * c + 2 * t);
    turn_channels(made_alpha[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) made_alpha[c][i] *= over[i & 1];
  }
  hold_all<EIGHTHS>(made_alpha);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    product<TOKENS>(made_alpha, keys[c / 2], s.square[1][1][c], TOKEN_PLANE);
    product<TOKENS>(made_alpha, keys[c / 2], s.square[1][0][c], TOKEN_PLANE);
  }
  group_commit();
  group_wait<1>();
  hold_all<EIGHTHS>(made_read);
  sync_all();  // nobody reads U any more
  announce_later(s, k, gain_high, gain_low, dgain, H, G);
#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j) {
    unsigned tiles[4];
    pair_of(tiles, made_read[j]);
    store_tiles(s.read[tile >> 1] + swizzled(16 * warp + 8 * (tile & 1) + line, j), tiles);
  }
  sync_warp();  // every warp has its own rows of Kbar
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int mine = 16 * warp + 4 * n + lane / EIGHTHS, from = swizzled(mine, lane % EIGHTHS);
    const long long there = (at * KDIM + mine) * TOKENS + 8 * (lane % EIGHTHS);
    move16(read_high + there, s.read[0] + from), move16(read_low + there, s.read[1] + from);
  }
  group_wait<0>();
  hold_all<EIGHTHS>(made_alpha);
  float *const to = alpha + (at * KDIM + row) * TOKENS;
#pragma unroll
  for (int j = 0; j < EIGHTHS; j += 2) store_beside(to + 8 * j, TOKENS, made_alpha[j], made_alpha[j + 1]);
}
