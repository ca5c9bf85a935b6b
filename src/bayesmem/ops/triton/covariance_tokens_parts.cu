// What threads of covariance_tokens.cu do between its products, and what they share.
//
// A matrix of tokens by tokens has a row a token t and a column an earlier token u; a thread has rows `token` and `token` + 8 and
// the columns `column` and its neighbour, and every 8th pair after it; `gap` is from its column to its row.


struct Shared {
  union {
    Rows sent[2];  // N^T: high, low
    Rows w[2];     // then w: a warp leaves its channels where it has read those of N
    Rows dk[2];    // then dk: what it is added to, what it becomes
  };
  Rows k;
  union {
    struct { Square turned, rated; };  // U^T, a row for every token t, and U^T R_u / R_t
    Rows gain[2];                      // then G
  };
  Square square;                                                     // S, then D, then told
  float coarse[TOKENS], fine[TOKENS];                                // the log of R_t, in two sums
  float scale[TOKENS], since[TOKENS];                                // -2 R_C / R_t, R_t^2
  float spread[TOKENS], per_var[TOKENS];                             // innovation variance, and 1 over it
  float noise[TOKENS], given[TOKENS], sigma[TOKENS], half[TOKENS];   // half: (along + sigma) / 2
  float heard[TOKENS], k_k[TOKENS], w_k[TOKENS];                     // w_t . g_t, |k_t|^2, w_t . k_t
  float along[TOKENS], gathered[TOKENS], bound[TOKENS];
  float added[GROUPS][TOKENS];                                       // c_t of a warpgroup's columns
  float part[WARPS][TOKENS];                                         // w_t . k_t of a warp's channels; then of dn_t, its rows
  float trace, least;                                                // tr Lambda_C, the floor
};

// Sums over the rows of a warp's 16 of what is given by column, 2t and 2t + 1 of every 8: half of the columns go to
// the other half of the lanes, three times over.
template <int COUNT> DEVICE void sum_rows(float *out, float *x, int lane) {
#pragma unroll
  for (int mask = 16, count = COUNT / 2; mask >= 4; mask >>= 1, count >>= 1)
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i)
      if (i < count) {
        const bool upper = lane & mask;
        const float away = upper ? x[i] : x[i + count], mine = upper ? x[i + count] : x[i];
        x[i] = mine + shuffle_xor(away, mask);
      }
  const int first = (lane >> 4 & 1) * (COUNT / 2) + (lane >> 3 & 1) * (COUNT / 4) + (lane >> 2 & 1) * (COUNT / 8);
#pragma unroll
  for (int i = 0; i < COUNT / 8; ++i) out[8 * ((first + i) >> 1) + 2 * (lane & 3) + (first + i & 1)] = x[i];
}

struct Told {
  float ds, used, power;  // sbar_t, the noise in use, what dn gathers
  bool binds;             // the floor
};

DEVICE Told told_by(const Shared &s, int t) {
  const float k_k = s.k_k[t], bound = s.least * k_k, given = s.given[t], ds = s.half[t] - .5f * s.heard[t];
  const bool binds = bound > given;
  return {ds, binds ? bound : given, s.w_k[t] + ds * k_k, binds};
}

// D^T = 2 below(R/R U^T S U) - 2 direct^T, from U^T S U; and what of c lies in these columns.
DEVICE void make_drive(Shared &s, float (*square)[4], const float (*straight)[4], const float (*after)[2], int column, int gap,
                       int group, int t, int token) {
  float c[2] = {0.f, 0.f};
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float coarse[2], fine[2], noise[2];
    load2(coarse, s.coarse + column + 8 * j), load2(fine, s.fine + column + 8 * j), load2(noise, s.noise + column + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int on = 8 * j + (i & 1) - 8 * (i >> 1);
      const float before[2] = {coarse[i & 1], fine[i & 1]}, r = below(after[i >> 1], before, gap > on);
      square[j][i] = gap > on ? 2.f * (r * square[j][i] - straight[j][i]) : 0.f;
      c[i >> 1] += (gap == on ? 1.f : r * r) * noise[i & 1];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    c[i] += shuffle_xor(c[i], 1), c[i] += shuffle_xor(c[i], 2);
    if (t == 0) s.added[group][token + 8 * i] = c[i];
  }
}

// |k|^2: PARTS threads a token.
DEVICE void square_keys(Shared &s) {
  const int one = THREAD / PARTS;
  float k_k = 0.f;
#pragma unroll
  for (int i = 0; i < TILES / PARTS; ++i) {
    const int of = THREAD % PARTS + PARTS * i;
    k_k += squares_of_eight(s.k[of / 8] + swizzled(one, of % 8));
  }
#pragma unroll
  for (int mask = 1; mask < PARTS; mask <<= 1) k_k += shuffle_xor(k_k, mask);
  if (THREAD % PARTS == 0) s.k_k[one] = k_k;
}

// w . k of a warp's channels.
DEVICE void times_keys(Shared &s, const float (*w)[4], int warp, int lane) {
  float w_k[2 * EIGHTHS];
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    unsigned keys[4];
    turned_rows(keys, s.k, c);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        w_k[2 * (c + j) + i] = w[c + j][i] * one_of(keys, j, i) + w[c + j][2 + i] * one_of(keys, j, 2 + i);
  }
  sum_rows<2 * EIGHTHS>(s.part[warp], w_k, lane);
}

// What tokens tell their own keys, from w G^T; and what of dn lies in these rows.
DEVICE void make_told(Shared &s, float (*square)[4], const float (*after)[2], int column, int gap, int group, int warp, int lane) {
  const int token = 16 * (warp % 4) + lane / 4;
  const Told of[2] = {told_by(s, token), told_by(s, token + 8)};
  float d[WIDTH / 4];
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    float coarse[2], fine[2], spread[2];
    load2(coarse, s.coarse + column + 8 * j), load2(fine, s.fine + column + 8 * j), load2(spread, s.spread + column + 8 * j);
    d[2 * j] = d[2 * j + 1] = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int on = 8 * j + (i & 1) - 8 * (i >> 1);
      const float before[2] = {coarse[i & 1], fine[i & 1]}, r = below(after[i >> 1], before, gap > on);
      const float square_r = gap == on ? 1.f : r * r;
      square[j][i] = spread[i & 1] * (gap == on ? 2.f * of[i >> 1].ds : -square_r * square[j][i]);
      d[2 * j + (i & 1)] += square_r * of[i >> 1].power;
    }
  }
  sum_rows<WIDTH / 4>(s.part[warp % 4] + WIDTH * group, d, lane);
}

// Sums over the tokens after each, by one warp: two tokens a lane.
DEVICE void gather(const Shared &s, float *dlog_retention, float *later, float *dfloor, int live, int H, int lane) {
  const float here = s.gathered[2 * lane], next = s.gathered[2 * lane + 1];
  float on = here + next, bound = s.bound[2 * lane] + s.bound[2 * lane + 1];
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const float more = shuffle(on, lane + step & 31);
    if (lane + step < 32) on += more;
    bound += shuffle_xor(bound, step);
  }
  if (2 * lane < live) dlog_retention[2ll * lane * H] = 2.f * on;
  if (2 * lane + 1 < live) dlog_retention[(2ll * lane + 1) * H] = 2.f * (on - here);
  if (lane == 0) *later = on, *dfloor = bound;
}

// The second cache is told of what tokens of a chunk have, together over all heads: every head tells of its part of it.
DEVICE void announce_own(const float *dgain, const HALF *gain_high, const HALF *gain_low, const HALF *dk, long long first,
                          int head, int H, int live) {
  const int from = TOKENS * KDIM * head, left = KDIM * H * (live < TOKENS ? live : TOKENS) - from;
  const int count = left < TOKENS * KDIM ? left : TOKENS * KDIM;
  if (count <= 0) return;
  const long long at = first * H * KDIM + from;
  announce(dgain + at, 4 * count), announce(gain_high + at, 2 * count), announce(gain_low + at, 2 * count);
  if (dk) announce(dk + at, 2 * count);
}
