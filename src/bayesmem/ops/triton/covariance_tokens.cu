// The tokens of the covariance's backward (covariance_tokens.py says what they compute) on Hopper's tensor cores: one block
// of threads a (chunk, head), keys of bfloat16, no gradient of the predictive variance.
//
// All that has a column a token is made with channels for its rows, so that every warpgroup has 64 channels:
//
//   w^T = -2 (N U) e + Y^T (U R/R) + K^T D^T       D = 2 above(R/R U^T S U) - 2 direct^T
//   dk^T = R^2 (P_0 w^T) + c w^T + along K^T + G^T told^T
//
// U is Li, e_t = R_C / R_t, and told what tokens tell their own keys of w G^T, which is made by columns of tokens, as D is.
//
// Compiled with: KDIM (64 or 128: K), THREADS (2 KDIM), BLOCKS (that share a multiprocessor). Files before it:
// covariance_pairs_prelude.cu, covariance_pairs.cu.

#define WARPS (THREADS / 32)

struct Shared {
  union {
    struct {
      Square turned;  // U^T, a row for every token t, and U^T R_u / R_t
      Square rated;
    };
    HALF gain[2][GROUPS][64 * TOKENS];  // then G
  };
  union {
    HALF sent[2][GROUPS][64 * TOKENS];  // N^T
    HALF w[2][TILES][TOKEN_PLANE];      // then w
    HALF dk[2][GROUPS][64 * TOKENS];    // then dk: what it is added to, what it becomes
  };
  HALF k[GROUPS][64 * TOKENS];
  Square square;                         // S, then D, then told
  float coarse[TOKENS], fine[TOKENS];    // the log of R_t, in two sums
  float left[TOKENS], since[TOKENS];     // R_C / R_t, R_t^2
  float spread[TOKENS], noise[TOKENS];   // innovation variance, added noise
  float heard[TOKENS];                   // w_t . g_t
  float power[TOKENS], twice[TOKENS], along[TOKENS], gathered[TOKENS];
  float added[TOKENS], d_noise[TOKENS];  // c_t, dn_t
  float part[WARPS][2][TOKENS];          // w_t . k_t and |k_t|^2 of a warp's channels
};

DEVICE float ratio(const Shared &s, int t, int u) {  // R_t / R_u
  return exponential((s.coarse[t] - s.coarse[u]) + (s.fine[t] - s.fine[u]));
}

// Sums over the rows of a warp's 16 channels of what is given by column, 2t and 2t + 1 of every 8: half of the columns go to
// the other half of the lanes, three times over.
DEVICE void sum_rows(float *out, float x[16], int lane) {
#pragma unroll
  for (int mask = 16, count = 8; mask >= 4; mask >>= 1, count >>= 1)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) {
        const bool upper = lane & mask;
        const float away = upper ? x[i] : x[i + count], mine = upper ? x[i + count] : x[i];
        x[i] = mine + shuffle_xor(away, mask);
      }
  const int j = (lane & 16 ? 4 : 0) + (lane & 8 ? 2 : 0) + (lane & 4 ? 1 : 0);
  out[8 * j + 2 * (lane & 3)] = x[0], out[8 * j + 2 * (lane & 3) + 1] = x[1];
}

GLOBAL covariance_tokens(const HALF *k, const HALF *gain_high, const HALF *gain_low, const float *innovation_var,
                         const float *sums, const float *process_noise, const float *obs_noise, const float *floor,
                         const float *dgain, const float *dinnovation_var, const float *solve, const float *direct,
                         const float *along_key, const HALF *sent_high, const HALF *sent_low, const float *met,
                         const float *trace, const float *checkpoints, HALF *dk, float *dlog_retention, float *turned,
                         float *dprocess_noise, float *dobs_noise, float *dfloor, const int *seq_start,
                         const int *chunk_seq, const int *chunk_first, int H, int G, int added) {
  SHARED_MEMORY(Shared, s);
  const int warp = THREAD / 32, lane = THREAD % 32, g = lane / 4, t = lane % 4, group = warp / 4;
  const int own = 16 * warp, row = own + g;     // channels: rows of w^T, dk^T
  const int token = 16 * (warp % 4) + g;        // rows of D, of G w^T
  const int tile = lane >> 3, line = lane & 7;  // of four tiles that a warp loads or stores, whose place this lane tells
  const int chunk = BLOCK / H, head = BLOCK % H, key_head = head / (H / G);
  const long long at = BLOCK;
  const int sequence = chunk_seq[chunk];
  const long long first = seq_start[sequence] + (long long)TOKENS * (chunk - chunk_first[sequence]);
  const int live = seq_start[sequence + 1] - (int)first;
  if (live <= 0) return;  // a chunk made room for and not filled
  const HALF *const sent[2] = {sent_high, sent_low}, *const gain[2] = {gain_high, gain_low};

  // What comes as it lies in memory: N^T and k.
#pragma unroll
  for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS) {
    const int own_token = i / TILES, eighth = i % TILES, to = swizzled(own_token, eighth % 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) copy(s.sent[half][eighth / 8] + to, sent[half] + at * TOKENS * KDIM + 8 * i, true);
    const bool there = own_token < live;
    copy(s.k[eighth / 8] + to, there ? k + ((first + own_token) * G + key_head) * KDIM + 8 * eighth : k, there);
  }
  // Of one token a thread.
  const bool mine = THREAD < TOKENS, there = mine && THREAD < live;
  const long long gate = (first + THREAD) * H + head;
  float given = 1.f, along = 0.f, sigma = 0.f, lam_trace = 0.f;
  if (mine) {
    const float *coarse = sums + at * 2 * TOKENS, *fine = coarse + TOKENS;
    s.coarse[THREAD] = coarse[THREAD], s.fine[THREAD] = fine[THREAD];
    s.left[THREAD] = exponential((coarse[TOKENS - 1] - coarse[THREAD]) + (fine[TOKENS - 1] - fine[THREAD]));
    s.since[THREAD] = exponential(2.f * (coarse[THREAD] + fine[THREAD]));
    s.spread[THREAD] = there ? innovation_var[gate] : 1.f;
    s.noise[THREAD] = there ? process_noise[gate] : 0.f;
    if (there) given = obs_noise[gate], along = along_key[gate];
    if (there && dinnovation_var) sigma = dinnovation_var[gate];
    for (int i = lane; i < KDIM; i += 32) lam_trace += trace[at * KDIM + i];
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) lam_trace += shuffle_xor(lam_trace, mask);
  }
  sync_all();

  // U^T, with R_u / R_t and without, and S, as pairs.
#pragma unroll
  for (int i = THREAD; i < THREAD + TOKENS * EIGHTHS; i += THREADS) {
    const int column = i % TOKENS, eighth = i / TOKENS;
    float x[8], y[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = solve[at * SQUARE + (8 * eighth + j) * TOKENS + column];
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] = 8 * eighth + j >= column ? x[j] * ratio(s, 8 * eighth + j, column) : 0.f;
    store_eight(s.turned[0][eighth] + 8 * column, s.turned[1][eighth] + 8 * column, x);
    store_eight(s.rated[0][eighth] + 8 * column, s.rated[1][eighth] + 8 * column, y);
    load4(x, met + at * SQUARE + 8 * i), load4(x + 4, met + at * SQUARE + 8 * i + 4);
    store_eight(s.square[0][i % EIGHTHS] + i / EIGHTHS * 8, s.square[1][i % EIGHTHS] + i / EIGHTHS * 8, x);
  }
  fence_for_groups();
  sync_all();

  // U^T S U, of this warpgroup's columns; U^T S whole.
  float square[WIDTH / 8][4];
  {
    float half_way[EIGHTHS][4];
    clear<EIGHTHS>(half_way);
    hold_all<EIGHTHS>(half_way);
    group_begin();
#pragma unroll
    for (int c = 0; c < EIGHTHS; c += 2)
      pair_product<TOKENS>(half_way, planes(s.turned, c, 0), planes(s.square, c, 0));
    finish<EIGHTHS>(half_way);
    clear<WIDTH / 8>(square);
    hold_all<WIDTH / 8>(square);
    group_begin();
#pragma unroll
    for (int c = 0; c < EIGHTHS; c += 2) {
      unsigned x[4], y[4];
      pair_of(x, half_way[c]), pair_of(y, half_way[c + 1]);
      const unsigned high[4] = {x[0], x[1], y[0], y[1]}, low[4] = {x[2], x[3], y[2], y[3]};
      pair_product<WIDTH>(square, high, low, planes(s.turned, c, WIDTH * group));
    }
    finish<WIDTH / 8>(square);
  }
  sync_all();  // nobody reads S any more
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int to = token + 8 * (i >> 1), u = WIDTH * group + 8 * j + 2 * t + (i & 1);
      square[j][i] = u > to ? 2.f * (ratio(s, u, to) * square[j][i] - direct[at * SQUARE + u * TOKENS + to]) : 0.f;
    }
  }
  store_square(s.square, square);
  copies_wait();
  fence_for_groups();
  sync_all();  // D, N^T and k are there

  // w^T
  float w[EIGHTHS][4];
  clear<EIGHTHS>(w);
  hold_all<EIGHTHS>(w);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned high[4], low[4];
    turned_rows(high, s.sent[0], c), turned_rows(low, s.sent[1], c);
    pair_product<TOKENS>(w, high, low, planes(s.turned, c, 0));
  }
  finish<EIGHTHS>(w);
#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) w[j][i] *= -2.f * s.left[8 * j + 2 * t + (i & 1)];
  hold_all<EIGHTHS>(w);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned x[4], y[4];
    float value[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int from = 8 * (c + j) + 2 * t + (i & 1);
        const float *d = dgain + ((first + from) * H + head) * KDIM + row + 8 * (i >> 1);
        value[j][i] = from < live ? *d / s.spread[from] : 0.f;
      }
    pair_of(x, value[0]), pair_of(y, value[1]);
    const unsigned high[4] = {x[0], x[1], y[0], y[1]}, low[4] = {x[2], x[3], y[2], y[3]};
    pair_product<TOKENS>(w, high, low, planes(s.rated, c, 0));
    unsigned keys[4];
    turned_rows(keys, s.k, c);
    product<TOKENS>(w, keys, s.square[1][c], TOKEN_PLANE);
    product<TOKENS>(w, keys, s.square[0][c], TOKEN_PLANE);
  }
  finish<EIGHTHS>(w);

  // w . k and |k|^2
  {
    float w_k[16], k_k[16];
#pragma unroll
    for (int c = 0; c < EIGHTHS; c += 2) {
      unsigned keys[4];
      turned_rows(keys, s.k, c);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const unsigned upper = keys[2 * j], lower = keys[2 * j + 1];
          const float x = as_float(i ? upper & 0xffff0000u : upper << 16), y = as_float(i ? lower & 0xffff0000u : lower << 16);
          w_k[2 * (c + j) + i] = w[c + j][i] * x + w[c + j][2 + i] * y, k_k[2 * (c + j) + i] = x * x + y * y;
        }
    }
    sum_rows(s.part[warp][0], w_k, lane);
    sum_rows(s.part[warp][1], k_k, lane);
  }
  sync_all();  // nobody reads N^T, U^T and D any more

  // G comes; w as the right side of two products.
#pragma unroll
  for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS) {
    const int own_token = i / TILES, eighth = i % TILES;
    const bool is = own_token < live;
    const long long from = is ? ((first + own_token) * H + head) * KDIM + 8 * eighth : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) copy(s.gain[half][eighth / 8] + swizzled(own_token, eighth % 8), gain[half] + from, is);
  }
#pragma unroll
  for (int j = 0; j < EIGHTHS; ++j) {
    unsigned tiles[4];
    pair_of(tiles, w[j]);
    store_turned(s.w[tile >> 1][2 * warp + (tile & 1)] + 8 * (8 * j + line), tiles);
  }
  fence_for_groups();
  sync_all();  // w is there

  // P_0 w^T
  float total[EIGHTHS][4];
  clear<EIGHTHS>(total);
  hold_all<EIGHTHS>(total);
  const float *cov = checkpoints + at * KDIM * KDIM + row * KDIM + 2 * t;
#pragma unroll
  for (int c = 0; c < TILES; c += 2) {
    float p[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) load2(p[j], cov + 8 * (c + j)), load2(p[j] + 2, cov + 8 * KDIM + 8 * (c + j));
    unsigned x[4], y[4];
    pair_of(x, p[0]), pair_of(y, p[1]);
    const unsigned high[4] = {x[0], x[1], y[0], y[1]}, low[4] = {x[2], x[3], y[2], y[3]};
    group_begin();
    pair_product<TOKENS>(total, high, low, planes(s.w, c, 0));
    group_commit();
    if (c >= 2) group_wait<1>();
  }
  copies_wait();
  fence_for_groups();
  sync_all();  // G is there
  // G w^T, of this warpgroup's columns: rows s, columns t
  clear<WIDTH / 8>(square);
  hold_all<WIDTH / 8>(square);
  group_begin();
#pragma unroll
  for (int c = 0; c < TILES; c += 2)
    pair_product<WIDTH>(square, Operand{s.gain[0][c / 8] + 8 * (c % 8), s.gain[1][c / 8] + 8 * (c % 8), 0},
                        planes(s.w, c, WIDTH * group));
  finish<WIDTH / 8>(square);
  hold_all<EIGHTHS>(total);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int to = WIDTH * group + 8 * j + 2 * t + (i & 1);
      if (token + 8 * (i >> 1) == to) s.heard[to] = square[j][i];
    }
  sync_all();  // nobody reads w any more

  // What dk is added to comes; the gradients of gates.
  if (added)
#pragma unroll
    for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS) {
      const int own_token = i / TILES, eighth = i % TILES;
      const bool is = own_token < live;
      copy(s.dk[0][eighth / 8] + swizzled(own_token, eighth % 8), is ? dk + ((first + own_token) * H + head) * KDIM + 8 * eighth : dk, is);
    }
  float ds = 0.f, k_k = 0.f, gathered = 0.f;
  bool binds = false;
  if (mine) {
    float w_k = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) w_k += s.part[i][0][THREAD], k_k += s.part[i][1][THREAD];
    const float spread = s.spread[THREAD], least = floor[head];
    ds = .5f * (along - s.heard[THREAD]) + .5f * sigma;
    binds = least * k_k > given;
    gathered = sigma * spread - ds * (binds ? least * k_k : given);
    s.power[THREAD] = w_k + ds * k_k, s.twice[THREAD] = 2.f * ds * spread;
    s.along[THREAD] = binds ? 2.f * least * ds : 0.f;
  }
  sync_all();
  {
    const int shares = THREADS / TOKENS, to = THREAD / shares;  // threads a token
    float c = 0.f, d = 0.f;
    for (int u = THREAD % shares; u < TOKENS; u += shares) {
      const float r = u > to ? ratio(s, u, to) : ratio(s, to, u);
      if (u <= to) c += r * r * s.noise[u];
      if (u >= to) d += r * r * s.power[u];
    }
#pragma unroll
    for (int mask = 1; mask < shares; mask <<= 1) c += shuffle_xor(c, mask), d += shuffle_xor(d, mask);
    if (THREAD % shares == 0) s.added[to] = c, s.d_noise[to] = d;
  }
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = token + 8 * (i >> 1), to = WIDTH * group + 8 * j + 2 * t + (i & 1);
      const float r = to > from ? ratio(s, to, from) : 0.f;
      square[j][i] = to == from ? s.twice[to] : -r * r * square[j][i] * s.spread[from];
    }
  }
  store_square_turned(s.square, square);
  fence_for_groups();
  sync_all();  // told is there, and c and dn
  if (mine) {
    const float left = s.left[THREAD], d_noise = left * left * lam_trace + s.d_noise[THREAD];
    gathered -= s.noise[THREAD] * d_noise;
    s.gathered[THREAD] = gathered, s.power[THREAD] = binds && there ? ds * k_k : 0.f;
    if (there) dprocess_noise[gate] = d_noise, dobs_noise[gate] = binds ? 0.f : ds;
  }

  // dk^T
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned keys[4];
    turned_rows(keys, s.k, c);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned two = keys[2 * j + (i >> 1)];
        const int to = 8 * (c + j) + 2 * t + (i & 1);
        const float key = as_float(i & 1 ? two & 0xffff0000u : two << 16);
        total[c + j][i] = s.since[to] * total[c + j][i] + (s.added[to] * w[c + j][i] + s.along[to] * key);
      }
  }
  hold_all<EIGHTHS>(total);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned high[4], low[4];
    turned_rows(high, s.gain[0], c), turned_rows(low, s.gain[1], c);
    pair_product<TOKENS>(total, high, low, planes(s.square, c, 0));
  }
  group_commit();
  copies_wait();
  group_wait<0>();
  hold_all<EIGHTHS>(total);
  sync_all();  // what dk is added to is there, and what is gathered
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    if (added) {
      unsigned old[4];
      turned_rows(old, s.dk[0], c);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned two = old[2 * j + (i >> 1)];
          total[c + j][i] += as_float(i & 1 ? two & 0xffff0000u : two << 16);
        }
    }
    const unsigned tiles[4] = {pack(total[c][0], total[c][1]), pack(total[c][2], total[c][3]),
                               pack(total[c + 1][0], total[c + 1][1]), pack(total[c + 1][2], total[c + 1][3])};
    const int to = 8 * c + 8 * (tile >> 1) + line, eighth = own / 8 + (tile & 1);
    store_turned(s.dk[1][eighth / 8] + swizzled(to, eighth % 8), tiles);
  }
  if (warp == 0) {  // sums over the tokens after each: two tokens a lane
    const float one = s.gathered[2 * lane], other = s.gathered[2 * lane + 1];
    float later = one + other, bound = s.power[2 * lane] + s.power[2 * lane + 1];
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      const float more = shuffle(later, lane + step & 31);
      if (lane + step < 32) later += more;
      bound += shuffle_xor(bound, step);
    }
    if (2 * lane < live) dlog_retention[(first + 2 * lane) * H + head] = 2.f * later;
    if (2 * lane + 1 < live) dlog_retention[(first + 2 * lane + 1) * H + head] = 2.f * (later - one);
    if (lane == 0) turned[at] = later, dfloor[at] = bound;
  }
  sync_all();
#pragma unroll
  for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS) {
    const int own_token = i / TILES, eighth = i % TILES;
    if (own_token < live)
      move16(dk + ((first + own_token) * H + head) * KDIM + 8 * eighth, s.dk[1][eighth / 8] + swizzled(own_token, eighth % 8));
  }
}
