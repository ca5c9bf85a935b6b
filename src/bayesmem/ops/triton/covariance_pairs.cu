// Products of pairs of bfloat16, x = high + low (covariance_products.py), by warpgroups: what covariance_chain.cu and
// covariance_tokens.cu share. Each warpgroup has 64 rows of what it makes.
//
// What tensor cores read from shared memory has the contraction along its rows. What threads write there lies in
// planes of 8 numbers of the contraction, 16 bytes for every row or column of the operand, padded against bank conflicts.
// What is copied there lies in rows of 64 numbers as in memory, so that 128 bytes stay together, the eighths of
// a row in an order of their own (swizzled). An accumulator holds rows g and g + 8 of its warp's 16, columns 2t and 2t + 1 of
// every 8 (lane = 4 g + t), and two of those are an operand's 16 columns as they are.

#define TOKENS 64
#define GROUPS (KDIM / 64)
#define TILES (KDIM / 8)
#define WIDTH (TOKENS / GROUPS)       // columns that a warpgroup makes of a matrix of tokens by tokens
#define TOKEN_PLANE (8 * TOKENS + 8)  // a plane with a row for every token, in halves
#define CHANNEL_PLANE (8 * KDIM + 8)  // with a row for every channel

// Where an eighth of a swizzled row lies.
DEVICE int swizzled(int row, int eighth) { return 64 * row + 8 * (eighth ^ (row & 7)); }

// Two neighbours as pairs: the high halves, and the low ones.
struct Halves { unsigned high, low; };

DEVICE Halves halves(float x, float y) {
  Halves h;
  h.high = pack(x, y);
  h.low = pack(x - as_float(h.high << 16), y - as_float(h.high & 0xffff0000u));
  return h;
}

// An operand's pair in shared memory; planes so far apart, or none: swizzled rows.
struct Operand {
  const HALF *high, *low;
  int plane;
};

// d += a b of pairs: 16 of the contraction; a in registers, or the 64 rows of this warpgroup in shared memory.
template <int COLUMNS> DEVICE void pair_product(float (*d)[4], const unsigned high[4], const unsigned low[4], const Operand &b) {
  product<COLUMNS>(d, high, b.low, b.plane);
  product<COLUMNS>(d, low, b.high, b.plane);
  product<COLUMNS>(d, high, b.high, b.plane);
}

template <int COLUMNS> DEVICE void pair_product(float (*d)[4], const Operand &a, const Operand &b) {
  product<COLUMNS>(d, a.high, a.plane, b.low, b.plane);
  product<COLUMNS>(d, a.low, a.plane, b.high, b.plane);
  product<COLUMNS>(d, a.high, a.plane, b.high, b.plane);
}

template <int COUNT> DEVICE void hold_all(float (*d)[4]) {
#pragma unroll
  for (int j = 0; j < COUNT; ++j) hold(d[j]);
}

template <int COUNT> DEVICE void finish(float (*d)[4]) {  // of all products begun
  group_commit();
  group_wait<0>();
  hold_all<COUNT>(d);
}

template <int COUNT> DEVICE void clear(float (*d)[4]) {
#pragma unroll
  for (int j = 0; j < COUNT; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) d[j][i] = 0.f;
}
