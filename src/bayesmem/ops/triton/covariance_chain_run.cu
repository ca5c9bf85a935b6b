// The reverse chain of the covariance's backward (covariance_chain.py says what it computes) on Hopper's tensor cores: one
// block of threads a (sequence, head), or a segment of it, 64 tokens a step, Lambda in registers.
//
//   N = Lambda (e G)^T     S = (e G) N     Z = alpha / 2 - R_C N + Kbar S / 2
//   Lambda <- R_C^2 Lambda + Z Kbar^T + Kbar Z^T
//
// Every warpgroup has 64 rows of Lambda and so of N and Z; S, which has a row a token, they make by columns. Products are
// of pairs of bfloat16, x = high + low, three for each (covariance_products.py).
//
// A chain may be cut into segments (covariance_cuts.cu), which are counted from its end, as chunks are here.
//
// Compiled with: K = KDIM (64 or 128), THREADS (2 KDIM), RENEW (chunks that share an overlap), MEND (whether this is the
// kernel that mends segments), and what the prelude asks for. Files, in this order: what the machine gives
// (covariance_prelude.cu, covariance_wgmma.cu, hopper_prelude.cu), pairs as operands (covariance_pairs.cu),
// covariance_keys.cu, covariance_cuts.cu, this one and covariance_chain.cu (the kernel).

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
  int told;                  // what one thread tells all
};

// A chain, and the streams that it reads and writes.
struct Chain {
  const HALF *gain[2], *read[2];
  const float *alpha, *log_retention, *to_end, *checkpoints, *final_cov;
  HALF *sent[2];
  float *met, *trace, *overlap;
  int begin, end, chunk_begin, count, head, H;  // tokens, chunks
};

// Chunks to go through, counted from the end, of which the first `warm` leave nothing but Lambda after them.
struct Run {
  int first, stop, warm;
  const float *from;  // Lambda before them; none: zero
  float *begun, *to;  // where that after `warm` goes, and that after all
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

DEVICE Chunk chunk_of(const Chain &x, int back) {
  const int local = x.count - 1 - back;
  Chunk c;
  c.at = (long long)(x.chunk_begin + local) * x.H + x.head;
  c.first = x.begin + (long long)TOKENS * local;
  c.live = x.end - (int)c.first;
  return c;
}

// Lambda to memory.
DEVICE void keep_square(float *to, const float lam[TILES][4], int row, int t) {
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) to[(row + 8 * (i >> 1)) * KDIM + 8 * j + 2 * t + (i & 1)] = lam[j][i];
}

// Through the chunks of a run; whether Lambda leaves the chain then, symmetric, or goes on as it is.
DEVICE void go_back(Shared &s, const Chain &x, const Run &run, bool leaves) {
  const int warp = THREAD / 32, lane = THREAD % 32, g = lane / 4, t = lane % 4, group = warp / 4;
  const int own = 16 * warp, row = own + g;     // channels: rows of Lambda, N, Z
  const int tile = lane >> 3, line = lane & 7;  // of four tiles that a warp stores, whose place this lane tells
  const int token = 16 * (warp % 4) + g;        // rows of S
  float lam[TILES][4];
  clear<TILES>(lam);
  if (run.from)
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) lam[j][i] = load_fresh(run.from + (row + 8 * (i >> 1)) * KDIM + 8 * j + 2 * t + (i & 1));

  // Of the chunk after the one that is worked on: e of one token a thread, and what makes R_C.
  float e = 1.f, retention = 0.f, left = 1.f;
  const auto gates = [&](const Chunk &c) {
    e = THREAD < TOKENS && THREAD < c.live ? x.to_end[(c.first + THREAD) * x.H + x.head] : 1.f;
    retention = x.log_retention[c.first * x.H + x.head], left = x.to_end[c.first * x.H + x.head];
  };
  if (run.first < run.stop) {
    const Chunk c = chunk_of(x, run.first);
    fetch_read(s, run.first & 1, c, x.read);
    fetch_gain(s, c, x.gain, x.head, x.H);
    fetch_alpha(s, c, x.alpha);
    gates(c);
  }

  for (int back = run.first; back < run.stop; ++back) {
    const int buffer = back & 1;
    const bool more = back + 1 < run.stop, loud = back >= run.first + run.warm;
    const Chunk now = chunk_of(x, back), next = chunk_of(x, more ? back + 1 : back);
    const float kept = exponential(retention) * left;
    if (THREAD < TOKENS) s.after[THREAD] = e;
    copies_wait();
    fence_for_groups();
    sync_all();  // this chunk is there

    if (run.warm && back == run.first + run.warm) keep_square(run.begun, lam, row, t);
    // The diagonal: rows own + g and own + g + 8 lie in tiles 2 warp and 2 warp + 1.
#pragma unroll
    for (int j = 0; j < TILES; ++j)
      if (loud && j >> 1 == warp && g >> 1 == t)
        x.trace[now.at * KDIM + row + 8 * (j & 1)] = g & 1 ? lam[j][2 * (j & 1) + 1] : lam[j][2 * (j & 1)];
    if (loud && back % RENEW == 0) {
      const float *cov = back ? x.checkpoints + (now.at + x.H) * KDIM * KDIM : x.final_cov;
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
    if (more) fetch_read(s, buffer ^ 1, next, x.read), gates(next);
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
      x.overlap[now.at] = sum;
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
      for (int i = THREAD; i < THREAD + TOKENS * TILES; i += THREADS)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          move16(x.sent[half] + now.at * KDIM * TOKENS + 8 * i, &s.sent[half][i % TILES][8 * (i / TILES)]);
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
    if (more) fetch_alpha(s, next, x.alpha);
    float *met_at = x.met + now.at * TOKENS * TOKENS + token * TOKENS + WIDTH * group + 2 * t;
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
    if (more) fetch_gain(s, next, x.gain, x.head, x.H);
    finish<TILES>(lam);
  }

  keep_square(run.to, lam, row, t);
  if (!leaves) return;
  sync_all();  // each entry with its mirror image, by way of memory
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      lam[j][i] = .5f * (lam[j][i] + run.to[(8 * j + 2 * t + (i & 1)) * KDIM + row + 8 * (i >> 1)]);
  sync_all();
  keep_square(run.to, lam, row, t);
}
