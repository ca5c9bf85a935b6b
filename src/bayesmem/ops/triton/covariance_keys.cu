// Eight channels of one key, as they lie in memory; zero beyond the end of the sequence or of the key.
#if KEY_KIND == 2
struct Channels { float x[8]; };
DEVICE Channels load_keys(const KEY *row, int column, bool inside) {
  Channels c;
#pragma unroll
  for (int i = 0; i < 8; ++i) c.x[i] = inside && column + i < K ? row[column + i] : 0.f;
  return c;
}
DEVICE void as_floats(float *x, const Channels &c) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = c.x[i];
}
#else
struct Channels { unsigned word[4]; };
DEVICE Channels load_keys(const KEY *row, int column, bool inside) {
  Channels c;
#pragma unroll
  for (int i = 0; i < 4; ++i) c.word[i] = 0u;
  if (!inside || column >= K) return c;
  if ((K & 7) == 0) {
    const uint4 raw = *(const uint4 *)(row + column);
    c.word[0] = raw.x, c.word[1] = raw.y, c.word[2] = raw.z, c.word[3] = raw.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (column + i < K) c.word[i >> 1] |= (unsigned)row[column + i] << 16 * (i & 1);
  }
  return c;
}
DEVICE void as_floats(float *x, const Channels &c) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = widen(c.word[i >> 1] >> 16 * (i & 1) & 0xffffu);
}
#endif
