// Products with P by each warp for itself (mma.sync): every NVIDIA GPU from sm_80 on, every kind of key.

#define GROUP (TILES % 4 ? 2 : 4)  // tiles of P that are updated side by side

// c[i] += a b_i for several right sides that stand split, pass by pass: products on one accumulator wait for each other.
template <int COUNT>
DEVICE void products_split(float (*c)[4], const Left &a, const float *hi, const float *lo, int stride) {
  unsigned h[COUNT][2], l[COUNT][2];
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
#pragma unroll
    for (int n = 0; n < 2; ++n) h[i][n] = as_bits(hi[i * stride + n]), l[i][n] = as_bits(lo[i * stride + n]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mma(c[i], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, h[i][0], h[i][1]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mma(c[i], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, l[i][0], l[i][1]);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mma(c[i], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, h[i][0], h[i][1]);
}

// P <- P - W^T W for the rows of this warp; w: its own part of W^T.
DEVICE void begin_update(float p[TILES][4], const float w[2][4], const Shared &s, int g, int t) {
  Left a[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) a[c] = left(-w[c][0], -w[c][1], -w[c][2], -w[c][3]);
#pragma unroll
  for (int j = 0; j < TILES; j += GROUP)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int at = write_at(8 * j + g, 8 * c + 2 * t);
      products_split<GROUP>(p + j, a[c], s.write + at, s.rest + at, 8 * WIDE_ROW);
    }
}

DEVICE void end_update(float[TILES][4]) {}

// P k for the rows of this warp: [own channels, tokens].
DEVICE void times_keys(float pk[2][4], const float p[TILES][4], const float *keys, int g, int t) {
  float sum[2][2][4];
  clear<4>(sum[0]);
#pragma unroll
  for (int j = 0; j < TILES; ++j) {
    const Left a = left(p[j][0], p[j][1], p[j][2], p[j][3]);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float *b = keys + key_at(8 * m + g, 8 * j + 2 * t);
      product_key(sum[m], a, b[0], b[1]);
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) pk[m][i] = sum[m][1][i] + sum[m][0][i];
}

// What other warps will read from shared memory: nothing to do but to meet them.
DEVICE void publish() {}
DEVICE void accept() {}

// Eight channels of one key into shared memory.
DEVICE void store_key(float *keys, int token, int column, const Channels &c) {
  float x[8];
  as_floats(x, c);
#pragma unroll
  for (int i = 0; i < 8; i += 2) share2(keys + key_at(token, column + i), x[i], x[i + 1]);
}

// Two neighbouring entries of W^T, split.
DEVICE void store_write(Shared &s, int channel, int token, float x, float y) {
  const Split s0 = split(x), s1 = split(y);
  const int at = write_at(channel, token);
  share2(s.write + at, as_float(s0.hi), as_float(s1.hi));
  share2(s.rest + at, as_float(s0.lo), as_float(s1.lo));
}
