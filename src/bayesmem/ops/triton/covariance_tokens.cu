// The tokens of the covariance's backward (covariance_tokens.py says what they compute) on Hopper's tensor cores: one block
// of threads a (chunk, head), keys of bfloat16, no gradient of the predictive variance.
//
// All that has a column a token is made with channels for its rows, so that every warpgroup has 64 channels:
//
//   w^T = -2 (N U) e + Y^T (U R/R) + K^T D^T       D^T = 2 below(R/R U^T S U) - 2 direct
//   dk^T = R^2 (P_0 w^T) + c w^T + along K^T + G^T told^T
//
// U is Li, e_t = R_C / R_t, and told what tokens tell their own keys of w G^T. That and D^T (U^T S U is symmetric), with a
// row a token t and a column an earlier token u, are made by columns. What is read once is asked for a stage ahead,
// in registers where shared memory has no room for it; the covariance and the gains first of all from the second cache.
//
// Compiled with: KDIM (64 or 128: K), THREADS (2 KDIM), and what the prelude asks for. Files before it: what the machine gives
// (covariance_prelude.cu, covariance_wgmma.cu, hopper_prelude.cu), pairs as operands (covariance_pairs.cu), and
// covariance_tokens_parts.cu.

#define UNITS (TOKENS * EIGHTHS / THREADS)  // eighths of a row of U and of S that a thread brings
#define GATES (4 * TOKENS / THREADS)        // gates that it brings
#define AHEAD 4                             // steps of 16 channels of P_0 that registers hold

GLOBAL covariance_tokens(const HALF *k, const HALF *gain_high, const HALF *gain_low, const float *innovation_var,
                         const float *sums, const float *process_noise, const float *obs_noise, const float *floor,
                         const float *dgain, const float *dinnovation_var, const float *solve, const float *direct,
                         const float *along_key, const HALF *sent_high, const HALF *sent_low, const float *met,
                         const float *trace, const float *checkpoints, HALF *dk, float *dlog_retention, float *later,
                         float *dprocess_noise, float *dobs_noise, float *dfloor, const int *seq_start,
                         const int *chunk_seq, const int *chunk_first, int H, int G, int added) {
  SHARED_MEMORY(Shared, s);
  const int warp = THREAD / 32, lane = THREAD % 32, g = lane / 4, t = lane % 4, group = uniform(warp / 4);
  const int row = 16 * warp + g;                // channels: rows of w^T, dk^T
  const int token = 16 * (warp % 4) + g;        // rows of D^T, of w G^T
  const int column = WIDTH * group + 2 * t;     // the first of this thread's columns there; every 8th pair is its own too
  const int gap = token - column;               // to its row
  const int tile = lane >> 3, line = lane & 7;  // of four tiles that a warp stores, whose place this lane tells
  const int chunk = BLOCK / H, head = BLOCK % H, key_head = head / (H / G);
  const long long at = BLOCK;
  const HALF *const sent[2] = {sent_high, sent_low};

  // What lies by chunk: U, S, N^T and direct; half of U and of direct is zeros.
  float sum[2], u[UNITS][8], x[UNITS][8], straight[WIDTH / 8][4], least, lam_trace[KDIM / 32];
  const int own = THREAD % TOKENS, part = THREAD / TOKENS;  // of U^T: the token, and of its row every PARTS-th eighth
  fetch(sum[0], sums + at * 2 * TOKENS + own, true), fetch(sum[1], sums + at * 2 * TOKENS + TOKENS + own, true);
#pragma unroll
  for (int n = 0; n < UNITS; ++n) {
    const float *from = solve + at * SQUARE + 8 * part * TOKENS + own, *of = met + at * SQUARE + 8 * THREAD;
#pragma unroll
    for (int j = 8 * PARTS * n; j < 8 * PARTS * n + 8; ++j) fetch(u[n][j & 7], from + TOKENS * j, 8 * part - own >= -j);
    fetch4(x[n], of + 8 * THREADS * n), fetch4(x[n] + 4, of + 8 * THREADS * n + 4);
  }
  const int start = THREAD / TILES, eighth = THREAD % TILES, place = 64 * TOKENS * (eighth / 8) + swizzled(start, eighth % 8);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < TOKENS / ROWS; ++n)
      copy(s.sent[half][0] + place + 64 * ROWS * n, sent[half] + at * TOKENS * KDIM + 8 * THREAD + 8 * THREADS * n, true);
#pragma unroll
  for (int i = 0; i < KDIM / 32; ++i) fetch(lam_trace[i], trace + at * KDIM + lane + 32 * i, warp == WARPS - 1);
  const float *const straight_at = direct + at * SQUARE + token * TOKENS + WIDTH * group + beside();
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    const int of = 8 * (j & 1), from = WIDTH * group + beside() + 8 * (j - (j & 1));
    fetch4(straight[j], straight_at + of * TOKENS + 8 * (j - (j & 1)), token + of > from);
  }
  const int sequence = chunk_seq[chunk];
  const long long first = seq_start[sequence] + (long long)TOKENS * (chunk - chunk_first[sequence]);
  const int live = seq_start[sequence + 1] - (int)first;
  if (THREAD < TOKENS) s.coarse[own] = sum[0], s.fine[own] = sum[1];
  sync_all();  // ratios can be made, and all of that is on its way before it is known where the tokens lie
  if (live <= 0) {  // a chunk made room for and not filled
    copies_wait();
    return;
  }

  // What lies by token, k first; tokens that do not exist are zeros.
  const long long own_row = ((first + start) * H + head) * KDIM + 8 * eighth, step = ROWS * KDIM * (long long)H;
  const auto bring = [&](Rows &to, const HALF *from, long long step) {  // from places that are counted once for all
#pragma unroll
    for (int n = 0; n < TOKENS / ROWS; ++n) copy(to[0] + place + 64 * ROWS * n, from + n * step, start + ROWS * n < live);
  };
  bring(s.k, k + ((first + start) * G + key_head) * KDIM + 8 * eighth, ROWS * KDIM * (long long)G);
  float gate[GATES][2];
#pragma unroll
  for (int n = 0; n < GATES; ++n) {
    const int which = part + PARTS * n;
    const float *from = which == 0 ? innovation_var : which == 1 ? process_noise : which == 2 ? obs_noise : along_key;
    fetch(gate[n][0], from + (first + own) * H + head, own < live);
    fetch(gate[n][1], dinnovation_var + (first + own) * H + head, which == 3 && own < live && dinnovation_var);
  }
  fetch(least, floor + head, true);
  if (THREAD == 0) announce(checkpoints + at * KDIM * KDIM, 4 * KDIM * KDIM);
  if (THREAD == 32) announce_own(dgain, gain_high, gain_low, added ? dk : nullptr, first, head, H, live);
  sync_warp();  // compilers would ask for the gates later

  // U^T, with R_u / R_t and without, and S, as pairs.
#pragma unroll
  for (int n = 0; n < UNITS; ++n) {
    const int from = part + PARTS * n, plane = THREAD % EIGHTHS, to = 8 * (THREAD / EIGHTHS) + THREADS * n;
    float y[8], coarse[8], fine[8];
    load4(coarse, s.coarse + 8 * from), load4(coarse + 4, s.coarse + 8 * from + 4);
    load4(fine, s.fine + 8 * from), load4(fine + 4, s.fine + 8 * from + 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float of[2] = {coarse[j], fine[j]};
      y[j] = u[n][j] * below(of, sum, 8 * part - own >= -8 * PARTS * n - j);
    }
    store_eight(s.turned[0][from] + 8 * own, s.turned[1][from] + 8 * own, u[n]);
    store_eight(s.rated[0][from] + 8 * own, s.rated[1][from] + 8 * own, y);
    store_eight(s.square[0][plane] + to, s.square[1][plane] + to, x[n]);
  }
  // The gates go where all can read them.
#pragma unroll
  for (int n = 0; n < GATES; ++n) {
    const int which = part + PARTS * n;
    const float value = gate[n][0], sigma = gate[n][1];
    if (which == 0) {
      const float spread = own < live ? value : 1.f;
      s.spread[own] = spread, s.per_var[own] = reciprocal(spread);
    } else if (which == 1) {
      s.noise[own] = value;
    } else if (which == 2) {
      s.given[own] = own < live ? value : 1.f;
    } else {
      s.sigma[own] = sigma, s.half[own] = .5f * (value + sigma);
    }
  }
  if (THREAD < TOKENS) {
    s.scale[own] = -2.f * exponential((s.coarse[TOKENS - 1] - sum[0]) + (s.fine[TOKENS - 1] - sum[1]));
    s.since[own] = exponential(2.f * (sum[0] + sum[1]));
  }
  if (warp == WARPS - 1) {
    float whole = 0.f;
#pragma unroll
    for (int i = 0; i < KDIM / 32; ++i) whole += lam_trace[i];
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) whole += shuffle_xor(whole, mask);
    if (lane == 0) s.trace = whole, s.least = least;
  }
  fence_for_groups();
  sync_all();  // U, S and the gates are there

  // U^T S whole, and U^T S U of this warpgroup's columns
  float square[WIDTH / 8][4];
  {
    float half_way[EIGHTHS][4];
    clear<EIGHTHS>(half_way);
    hold_all<EIGHTHS>(half_way);
#pragma unroll
    for (int c = 0; c < EIGHTHS; c += 2) {
      unsigned high[4], low[4];
      square_rows<false>(high, low, s.turned, c);
      group_begin();
      pair_product<TOKENS>(half_way, high, low, planes(s.square, c, 0));
      group_commit();
      if (c >= 2) group_wait<1>();  // registers hold two steps' left sides
    }
    finish<EIGHTHS>(half_way);
    clear<WIDTH / 8>(square);
    hold_all<WIDTH / 8>(square);
    const auto step = [&](int c) {
      unsigned high[4], low[4];
      left_of(high, low, half_way[c], half_way[c + 1]);
      group_begin();
      pair_product<WIDTH>(square, high, low, planes(s.turned, c, WIDTH * group));
    };
    if (GROUPS == 1 || group == 0)  // U is a triangle
#pragma unroll
      for (int c = 0; c < WIDTH / 8; c += 2) step(c);
#pragma unroll
    for (int c = WIDTH / 8; c < EIGHTHS; c += 2) step(c);
    finish<WIDTH / 8>(square);
  }
  const float after[2][2] = {{s.coarse[token], s.fine[token]}, {s.coarse[token + 8], s.fine[token + 8]}};
#pragma unroll
  for (int j = 0; j < WIDTH / 8; j += 2) from_beside(straight[j], straight[j + 1]);
  make_drive(s, square, straight, after, column, gap, group, t, token);
  sync_all();  // nobody reads S any more
  store_square_turned(s.square, square);
  copies_wait();
  fence_for_groups();
  sync_warp();
  // dgain comes, as the left side of a product: after the fence, which may wait for what was asked for before it.
  float y[EIGHTHS][4];
  fetch_channels(y, dgain + (first * H + head) * KDIM, H * KDIM, live);
  sync_all();  // D, N^T and k are there

  // w^T
  float w[EIGHTHS][4];
  clear<EIGHTHS>(w);
  hold_all<EIGHTHS>(w);
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned high[4], low[4];
    turned_rows(high, s.sent[0], c), turned_rows(low, s.sent[1], c);
    group_begin();
    pair_product<TOKENS>(w, high, low, planes(s.turned, c, 0));
    group_commit();
    if (c >= 2) group_wait<1>();  // registers hold two steps' left sides
  }
  square_keys(s);
  unsigned y_high[EIGHTHS / 2][4], y_low[EIGHTHS / 2][4];
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float per_var[2];
      load2(per_var, s.per_var + 8 * (c + j) + 2 * t);
      turn_channels(y[c + j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) y[c + j][i] *= per_var[i & 1];
    }
    left_of(y_high[c / 2], y_low[c / 2], y[c], y[c + 1]);
  }
  group_wait<0>();
  hold_all<EIGHTHS>(w);
#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j) {
    float scale[2];
    load2(scale, s.scale + 8 * j + 2 * t);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[j][i] *= scale[i & 1];
  }
  hold_all<EIGHTHS>(w);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    pair_product<TOKENS>(w, y_high[c / 2], y_low[c / 2], planes(s.rated, c, 0));
    unsigned keys[4];
    turned_rows(keys, s.k, c);
    product<TOKENS>(w, keys, s.square[1][c], TOKEN_PLANE);
    product<TOKENS>(w, keys, s.square[0][c], TOKEN_PLANE);
  }
  finish<EIGHTHS>(w);

#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j) {
    unsigned tiles[4];
    pair_of(tiles, w[j]);
    const int of = 2 * warp + (tile & 1);
    store_turned(s.w[tile >> 1][of / 8] + swizzled(8 * j + line, of % 8), tiles);
  }
  fence_for_groups();
  sync_all();  // w is there, and nobody reads U and D any more
  bring(s.gain[0], gain_high + own_row, step), bring(s.gain[1], gain_low + own_row, step);
  times_keys(s, w, warp, lane);
  copies_wait();
  fence_for_groups();
  sync_all();  // G is there

  // w G^T, of this warpgroup's columns
  clear<WIDTH / 8>(square);
  hold_all<WIDTH / 8>(square);
#pragma unroll
  for (int c = 0; c < TILES; c += 2) {
    unsigned high[4], low[4];
    rows_of(high, &s.w[0], c), rows_of(low, &s.w[1], c);
    group_begin();
    pair_product<WIDTH>(square, high, low, rows_at(s.gain, c, WIDTH * group));
    group_commit();
    if (c >= 2) group_wait<1>();
  }
  // P_0 comes, AHEAD steps before it is used, and beside what follows.
  const float *cov = checkpoints + at * KDIM * KDIM + row * KDIM + beside();
  float p[AHEAD][2][4];
#pragma unroll
  for (int c = 0; c < 2 * AHEAD; c += 2) fetch4(p[c / 2][0], cov + 8 * c), fetch4(p[c / 2][1], cov + 8 * KDIM + 8 * c);
  if (THREAD < TOKENS) {
    float w_k = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) w_k += s.part[i][own];
    s.w_k[own] = w_k;
  }
  group_wait<0>();
  hold_all<WIDTH / 8>(square);
  if (16 * (warp % 4) / WIDTH == group) {  // a block of 16 of the diagonal is in the same two tiles for all of a warp
    float corner[2][4];
    corner_of(corner, square, warp % 4 - WIDTH / 16 * group);
    float diagonal[2];
    diagonal_of(diagonal, corner, g);
    if (own_diagonal(lane)) s.heard[token] = diagonal[0], s.heard[token + 8] = diagonal[1];
  }
  sync_all();  // w . g is there

  // told, and the gradients of gates
  const bool mine = THREAD < TOKENS;
  Told one = {0.f, 0.f, 0.f, false};
  if (mine) {
    one = told_by(s, own);
    s.along[own] = one.binds ? 2.f * s.least * one.ds : 0.f;
  }
  make_told(s, square, after, column, gap, group, warp, lane);
  store_square(s.square, square);
  fence_for_groups();
  sync_all();  // told is there, and of dn every warp's rows

  // dk^T, at first P_0 w^T
  float total[EIGHTHS][4];
  clear<EIGHTHS>(total);
  hold_all<EIGHTHS>(total);
#pragma unroll
  for (int c = 0; c < TILES; c += 2) {
    float(*of)[4] = p[c / 2 % AHEAD];
    unsigned high[4], low[4];
    from_beside(of[0], of[1]);
    left_of(high, low, of[0], of[1]);
    if (c + 2 * AHEAD < TILES)
      fetch4(of[0], cov + 8 * (c + 2 * AHEAD)), fetch4(of[1], cov + 8 * KDIM + 8 * (c + 2 * AHEAD));
    group_begin();
    pair_product<TOKENS>(total, high, low, rows_at(s.w, c, 0));
    group_commit();
    if (c >= 2) group_wait<1>();
  }
  finish<EIGHTHS>(total);
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {  // R^2 (P_0 w^T) + c w^T
    unsigned high[4], low[4];
    turned_rows(high, s.w[0], c), turned_rows(low, s.w[1], c);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float since[2], c_t[2], other[2];
      load2(since, s.since + 8 * (c + j) + 2 * t), load2(c_t, s.added[0] + 8 * (c + j) + 2 * t);
      if (GROUPS > 1) load2(other, s.added[GROUPS - 1] + 8 * (c + j) + 2 * t), c_t[0] += other[0], c_t[1] += other[1];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        total[c + j][i] = since[i & 1] * total[c + j][i] + c_t[i & 1] * (one_of(high, j, i) + one_of(low, j, i));
    }
  }
  sync_all();  // nobody reads w any more
  if (added) bring(s.dk[0], dk + own_row, step);
  hold_all<EIGHTHS>(total);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned high[4], low[4];
    turned_rows(high, s.gain[0], c), turned_rows(low, s.gain[1], c);
    pair_product<TOKENS>(total, high, low, planes(s.square, c, 0));
  }
  group_commit();
  if (mine) {
    const float scale = s.scale[own];
    float d_noise = .25f * scale * scale * s.trace;
#pragma unroll
    for (int i = 0; i < 4; ++i) d_noise += s.part[i][own];
    s.gathered[own] = s.sigma[own] * s.spread[own] - one.ds * one.used - s.noise[own] * d_noise;
    s.bound[own] = one.binds && own < live ? one.ds * s.k_k[own] : 0.f;
    const long long to = (first + own) * H + head;
    if (own < live) dprocess_noise[to] = d_noise, dobs_noise[to] = one.binds ? 0.f : one.ds;
  }
  copies_wait();
  group_wait<0>();
  hold_all<EIGHTHS>(total);
  sync_all();  // what dk is added to is there, and what is gathered
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned keys[4], old[4] = {0, 0, 0, 0};
    turned_rows(keys, s.k, c);
    if (added) turned_rows(old, s.dk[0], c);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float along[2];
      load2(along, s.along + 8 * (c + j) + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) total[c + j][i] += along[i & 1] * one_of(keys, j, i) + one_of(old, j, i);
    }
    const unsigned tiles[4] = {bfloat16s(total[c][0], total[c][1]), bfloat16s(total[c][2], total[c][3]),
                               bfloat16s(total[c + 1][0], total[c + 1][1]), bfloat16s(total[c + 1][2], total[c + 1][3])};
    const int of = 2 * warp + (tile & 1);
    store_turned(s.dk[1][of / 8] + swizzled(8 * c + 8 * (tile >> 1) + line, of % 8), tiles);
  }
  sync_all();
#pragma unroll
  for (int n = 0; n < TOKENS / ROWS; ++n)
    if (start + ROWS * n < live) move16(dk + own_row + n * step, s.dk[1][0] + place + 64 * ROWS * n);
  if (warp == WARPS - 1) gather(s, dlog_retention + first * H + head, later + at, dfloor + at, live, H, lane);
}
