// The reverse chain of the covariance's backward (covariance_chain.py says what it computes) on Hopper's tensor cores: one
// block of threads a (sequence, head), 64 tokens a step, Lambda in registers.
//
//   N = Lambda (e G)^T     S = (e G) N     Z = alpha / 2 - R_C N + Kbar S / 2
//   Lambda <- R_C^2 Lambda + Z Kbar^T + Kbar Z^T
//
// Every warpgroup has 64 rows of Lambda and so of N and Z; S, which has a row a token, they make by columns. Products are
// of pairs of bfloat16, x = high + low, three for each (covariance_products.py).
//
// Compiled with: KDIM (64 or 128: K), THREADS (2 KDIM), RENEW (chunks that share an overlap), and what the prelude asks for.
// Files before it: what the machine gives (covariance_prelude.cu, covariance_wgmma.cu, covariance_chain_prelude.cu)
// and pairs as operands (covariance_pairs.cu).

#define ALPHA_ROW (TOKENS + 8)        // padded as planes are, in floats

struct Shared {
  HALF gain[2][GROUPS][64 * TOKENS];  // G: high, low; 64 channels after 64
  HALF read[2][2][64 * KDIM];         // Kbar of this chunk and of the next
  union {
    HALF sent[2][TILES][TOKEN_PLANE];          // N
    HALF drive[2][TOKENS / 8][CHANNEL_PLANE];  // then Z
  };
  HALF met[2][TOKENS / 8][TOKEN_PLANE];  // S / 2
  float alpha[KDIM][ALPHA_ROW];
  float after[TOKENS];       // e
  float part[THREADS / 32];  // of an overlap, by warp
  Cuts cuts;
  int told[4];               // of one thread to all
};

// Columns c to c + 2 of 8 each of Kbar, from a row on, and of G.
DEVICE Operand read_at(const Shared &s, int buffer, int row, int c) {
  return {s.read[buffer][0] + 64 * row + 8 * c, s.read[buffer][1] + 64 * row + 8 * c, 0};
}
DEVICE Operand gain_at(const Shared &s, int c) { return {s.gain[0][c / 8] + 8 * (c % 8), s.gain[1][c / 8] + 8 * (c % 8), 0}; }

struct Chunk {
  long long at, first;  // chunk and head as one number; its first token
  int live;             // tokens that exist
};

// A chunk's G on its way into shared memory; tokens that do not exist are zeros.
DEVICE void fetch_gain(Shared &s, const Chunk &now, const HALF *const gain[2], int head, int H) {
  const int step = THREADS / TILES, first = THREAD / TILES, eighth = THREAD % TILES;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const HALF *from = gain[half] + ((now.first + first) * H + head) * KDIM + 8 * eighth;
#pragma unroll
    for (int token = 0; token < TOKENS; token += step) {
      const bool live = first + token < now.live;
      copy(s.gain[half][eighth / 8] + swizzled(first + token, eighth % 8), live ? from + (long long)token * H * KDIM : gain[half], live);
    }
  }
}

// Its Kbar.
DEVICE void fetch_read(Shared &s, int buffer, const Chunk &now, const HALF *const read[2]) {
  const int step = THREADS / 8, first = THREAD / 8, eighth = THREAD % 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const HALF *from = read[half] + now.at * KDIM * TOKENS + 8 * THREAD;
#pragma unroll
    for (int channel = 0; channel < KDIM; channel += step)
      copy(s.read[buffer][half] + swizzled(first + channel, eighth), from + TOKENS * channel, true);
  }
}

DEVICE void fetch_alpha(Shared &s, const Chunk &now, const float *alpha) {
  const int step = THREADS / (TOKENS / 4), first = THREAD / (TOKENS / 4), quad = THREAD % (TOKENS / 4);
  const float *from = alpha + now.at * KDIM * TOKENS + 4 * THREAD;
#pragma unroll
  for (int i = 0; i < KDIM / step; ++i) copy(&s.alpha[first + i * step][4 * quad], from + 4 * THREADS * i, true);
}

// Lambda to memory.
DEVICE void keep_square(float *to, const float lam[TILES][4], int row, int t) {
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) to[(row + 8 * (i >> 1)) * KDIM + 8 * j + 2 * t + (i & 1)] = lam[j][i];
}

// Whether a segment began with what the one before it left: by the root of the mean square, since a gradient's diagonal says
// nothing of its size. 2^-34 is the square of what pairs of bfloat16 are rounded to.
DEVICE bool agree(Shared &s, const float *begun, const float *left) {
  float apart = 0.f, whole = 0.f;
#pragma unroll 4
  for (int i = THREAD; i < KDIM * KDIM; i += THREADS) {
    const float x = load_fresh(begun + i), y = load_fresh(left + i);
    apart += (x - y) * (x - y), whole += y * y;
  }
  apart = 32.f * mean_of(apart), whole = 32.f * mean_of(whole);
  if (THREAD % 32 == 0) s.part[THREAD / 32] = apart, s.after[THREAD / 32] = whole;
  sync_all();
  apart = whole = 0.f;
  for (int i = 0; i < THREADS / 32; ++i) apart += s.part[i], whole += s.after[i];
  return agreed_by_all(s.told, apart <= 5.8208e-11f * whole);  // no NaN agrees
}

#if MEND
GLOBAL covariance_chain_mend(
#else
GLOBAL covariance_chain(
#endif
    const HALF *gain_high, const HALF *gain_low, const float *alpha, const HALF *read_high, const HALF *read_low,
    const float *log_retention, const float *to_end, const float *checkpoints, const float *final_cov, const HALF *k,
    const float *process_noise, const float *obs_noise, const float *floor, const float *d_final, HALF *sent_high,
    HALF *sent_low, float *met, float *trace, float *overlap, float *d_initial, float *edge, int *counted,
    const int *seq_start, const int *chunk_first, int H, int G, int segments) {
  SHARED_MEMORY(Shared, s);
  const int warp = THREAD / 32, lane = THREAD % 32, g = lane / 4, t = lane % 4, group = warp / 4;
  const int own = 16 * warp, row = own + g;        // channels: rows of Lambda, N, Z
  const int tile = lane >> 3, line = lane & 7;     // of four tiles that a warp stores, whose place this lane tells
  const int token = 16 * (warp % 4) + g;           // rows of S
  const int chain = MEND ? BLOCK : BLOCK / segments, sequence = chain / H, head = chain % H;
  const int begin = seq_start[sequence], end = seq_start[sequence + 1];
  const int chunk_begin = chunk_first[sequence], count = chunk_first[sequence + 1] - chunk_begin;
  const HALF *const gain[2] = {gain_high, gain_low}, *const read[2] = {read_high, read_low};
  int *const counts = counts_of(counted, chain, segments);
  int segment = MEND ? left_to_mend(counts, segments) : BLOCK % segments;  // counted from the end, as chunks are below
  if (MEND && segment == 0) return;
  if (THREAD < 32) {
    const long long gates = (long long)begin * H + head;
    const Cuts cuts = cuts_of(k + ((long long)begin * G + head / (H / G)) * KDIM, log_retention + gates, process_noise + gates,
                              obs_noise + gates, floor[head], end - begin, segments, TOKENS, H, G * KDIM);
    if (THREAD == 0) s.cuts = cuts;
  }
  sync_all();
  if (segment >= s.cuts.many) return;
  // What segments left, and what they began with, one after the other.
  const int square = KDIM * KDIM;
  float *const edges = edge + 2ll * chain * segments * square, *const state = d_initial + (long long)chain * square;

  const auto chunk_at = [&](int back) {
    const int local = count - 1 - back;
    Chunk c;
    c.at = (long long)(chunk_begin + local) * H + head;
    c.first = begin + (long long)TOKENS * local;
    c.live = end - (int)c.first;
    return c;
  };
  do {
  const int warm = segment && !MEND ? s.cuts.warm / TOKENS : 0, whole = s.cuts.own / TOKENS + (MEND ? 0 : s.cuts.warm / TOKENS);
  const int first = segment * (s.cuts.own / TOKENS) + (MEND ? s.cuts.warm / TOKENS : 0);
  const int stop = first + whole < count ? first + whole : count;
  const float *const from = MEND ? edges + 2 * (segment - 1) * square : segment ? nullptr : d_final ? d_final + (long long)chain * square : nullptr;
  float lam[TILES][4];
  clear<TILES>(lam);
  if (from)
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) lam[j][i] = load_fresh(from + (row + 8 * (i >> 1)) * KDIM + 8 * j + 2 * t + (i & 1));

  // Of the chunk after the one that is worked on: e of one token a thread, and what makes R_C.
  float e = 1.f, retention = 0.f, left = 1.f;
  const auto gates = [&](const Chunk &c) {
    e = THREAD < TOKENS && THREAD < c.live ? to_end[(c.first + THREAD) * H + head] : 1.f;
    retention = log_retention[c.first * H + head], left = to_end[c.first * H + head];
  };
  if (first < stop) {
    const Chunk c = chunk_at(first);
    fetch_read(s, first & 1, c, read);
    fetch_gain(s, c, gain, head, H);
    fetch_alpha(s, c, alpha);
    gates(c);
  }

  for (int back = first; back < stop; ++back) {
    const int buffer = back & 1;
    const bool more = back + 1 < stop, loud = back >= first + warm;
    const Chunk now = chunk_at(back), next = chunk_at(more ? back + 1 : back);
    const float kept = exponential(retention) * left;
    if (THREAD < TOKENS) s.after[THREAD] = e;
    copies_wait();
    fence_for_groups();
    sync_all();  // this chunk is there

    if (warm && back == first + warm) keep_square(edges + (2 * segment + 1) * square, lam, row, t);
    // The diagonal: rows own + g and own + g + 8 lie in tiles 2 warp and 2 warp + 1.
#pragma unroll
    for (int j = 0; j < TILES; ++j)
      if (loud && j >> 1 == warp && g >> 1 == t) trace[now.at * KDIM + row + 8 * (j & 1)] = g & 1 ? lam[j][2 * (j & 1) + 1] : lam[j][2 * (j & 1)];
    if (loud && back % RENEW == 0) {
      const float *cov = back ? checkpoints + (now.at + H) * KDIM * KDIM : final_cov + (long long)chain * square;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
        float p[4];
        load2(p, cov + row * KDIM + 8 * j + 2 * t), load2(p + 2, cov + (row + 8) * KDIM + 8 * j + 2 * t);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += lam[j][i] * p[i];
      }
#pragma unroll
      for (int mask = 16; mask; mask >>= 1) sum += shuffle_xor(sum, mask);
      if (lane == 0) s.part[warp] = sum;
    }

    // N = Lambda G^T e. What the next chunk reads comes beside the products, as room for it is left.
    if (more) fetch_read(s, buffer ^ 1, next, read), gates(next);
    float n[TOKENS / 8][4];
    clear<TOKENS / 8>(n);
    hold_all<TOKENS / 8>(n);
#pragma unroll
    for (int j = 0; j < TILES; j += 2) {
      const Halves a[4] = {halves(lam[j][0], lam[j][1]), halves(lam[j][2], lam[j][3]), halves(lam[j + 1][0], lam[j + 1][1]),
                           halves(lam[j + 1][2], lam[j + 1][3])};
      const unsigned high[4] = {a[0].high, a[1].high, a[2].high, a[3].high};
      const unsigned low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
      group_begin();
      pair_product<TOKENS>(n, high, low, gain_at(s, j));
      group_commit();
      if (j >= 4) group_wait<2>();  // the halves of as many tiles are held
    }
    finish<TOKENS / 8>(n);
    float z[TOKENS / 8][4];  // alpha / 2 - R_C N
#pragma unroll
    for (int j = 0; j < TOKENS / 8; ++j) {
      const float e0 = s.after[8 * j + 2 * t], e1 = s.after[8 * j + 2 * t + 1];
      n[j][0] *= e0, n[j][1] *= e1, n[j][2] *= e0, n[j][3] *= e1;
      const Halves upper = halves(n[j][0], n[j][1]), lower = halves(n[j][2], n[j][3]);
      const unsigned tiles[4] = {upper.high, lower.high, upper.low, lower.low};
      store_turned(&s.sent[tile >> 1][2 * warp + (tile & 1)][8 * (8 * j + line)], tiles);
      load2(z[j], &s.alpha[row][8 * j + 2 * t]), load2(z[j] + 2, &s.alpha[row + 8][8 * j + 2 * t]);
#pragma unroll
      for (int i = 0; i < 4; ++i) z[j][i] = .5f * z[j][i] - kept * n[j][i];
    }
    fence_for_groups();
    sync_all();  // N is there, and nobody reads alpha any more
    if (loud && back % RENEW == 0 && THREAD == 0) {
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < THREADS / 32; ++w) sum += s.part[w];
      overlap[now.at] = sum;
    }

    // S = e G N, of this warpgroup's columns; meanwhile N is kept.
    float sum[WIDTH / 8][4];
    clear<WIDTH / 8>(sum);
    hold_all<WIDTH / 8>(sum);
    group_begin();
#pragma unroll
    for (int c = 0; c < TILES; c += 2)
      pair_product<WIDTH>(sum, gain_at(s, c),
                          Operand{&s.sent[0][c][8 * WIDTH * group], &s.sent[1][c][8 * WIDTH * group], TOKEN_PLANE});
    group_commit();
    if (loud)
#pragma unroll
    for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS) {
      const int at = 8 * (i / TILES), plane = i % TILES;
      move16(sent_high + now.at * KDIM * TOKENS + 8 * i, &s.sent[0][plane][at]);
      move16(sent_low + now.at * KDIM * TOKENS + 8 * i, &s.sent[1][plane][at]);
    }
    finish<WIDTH / 8>(sum);
    const float e0 = s.after[token], e1 = s.after[token + 8];
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j) {
      sum[j][0] *= e0, sum[j][1] *= e0, sum[j][2] *= e1, sum[j][3] *= e1;
      // S is symmetric: its rows lie where its columns would.
      const Halves upper = halves(.5f * sum[j][0], .5f * sum[j][1]), lower = halves(.5f * sum[j][2], .5f * sum[j][3]);
      const unsigned tiles[4] = {upper.high, lower.high, upper.low, lower.low};
      store_tiles(&s.met[tile >> 1][WIDTH / 8 * group + j][8 * (16 * (warp % 4) + 8 * (tile & 1) + line)], tiles);
    }
    fence_for_groups();
    sync_all();  // S is there, and nobody reads N and G any more

    // Z = alpha / 2 - R_C N + Kbar S / 2
    hold_all<TOKENS / 8>(z);
    group_begin();
#pragma unroll
    for (int c = 0; c < TOKENS / 8; c += 2)
      pair_product<TOKENS>(z, read_at(s, buffer, 64 * group, c), Operand{s.met[0][c], s.met[1][c], TOKEN_PLANE});
    group_commit();
    if (more) fetch_alpha(s, next, alpha);
    float *met_at = met + now.at * TOKENS * TOKENS + token * TOKENS + WIDTH * group + 2 * t;
    if (loud)
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j)
      store2(met_at + 8 * j, sum[j][0], sum[j][1]), store2(met_at + 8 * TOKENS + 8 * j, sum[j][2], sum[j][3]);
    const float keep = kept * kept;
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) lam[j][i] *= keep;
    finish<TOKENS / 8>(z);
    unsigned high[TOKENS / 8][2], low[TOKENS / 8][2];
#pragma unroll
    for (int j = 0; j < TOKENS / 8; ++j) {
      const Halves upper = halves(z[j][0], z[j][1]), lower = halves(z[j][2], z[j][3]);
      const unsigned tiles[4] = {upper.high, lower.high, upper.low, lower.low};
      store_tiles(&s.drive[tile >> 1][j][8 * (own + 8 * (tile & 1) + line)], tiles);
      high[j][0] = upper.high, high[j][1] = lower.high, low[j][0] = upper.low, low[j][1] = lower.low;
    }

    // Lambda <- R_C^2 Lambda + Z Kbar^T + Kbar Z^T
    fence_for_groups();
    hold_all<TILES>(lam);
    group_begin();
#pragma unroll
    for (int c = 0; c < TOKENS / 8; c += 2) {
      const unsigned a[4] = {high[c][0], high[c][1], high[c + 1][0], high[c + 1][1]};
      const unsigned a_low[4] = {low[c][0], low[c][1], low[c + 1][0], low[c + 1][1]};
      pair_product<KDIM>(lam, a, a_low, read_at(s, buffer, 0, c));
    }
    group_commit();
    sync_all();  // Z is there
    group_begin();
#pragma unroll
    for (int c = 0; c < TOKENS / 8; c += 2)
      pair_product<KDIM>(lam, read_at(s, buffer, 64 * group, c), Operand{s.drive[0][c], s.drive[1][c], CHANNEL_PLANE});
    group_commit();
    if (more) fetch_gain(s, next, gain, head, H);
    finish<TILES>(lam);
  }

  if (segment < s.cuts.many - 1) {
    keep_square(edges + 2 * segment * square, lam, row, t);
  } else {  // what leaves is symmetric: each entry with its mirror image, by way of memory
    keep_square(state, lam, row, t);
    sync_all();
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        lam[j][i] = .5f * (lam[j][i] + state[(8 * j + 2 * t + (i & 1)) * KDIM + row + 8 * (i >> 1)]);
    sync_all();
    keep_square(state, lam, row, t);
  }
  if (s.cuts.many == 1) break;
  segment = to_mend(s.told, counts, segments, segment, s.cuts.many - 1,
                    [&](int cut) { return agree(s, edges + (2 * cut + 3) * square, edges + 2 * cut * square); });
  } while (MEND && segment);
}
