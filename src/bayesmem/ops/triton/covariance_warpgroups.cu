// Products with P by four warps together (wgmma, Hopper): the left side is in registers, as the warps hold it anyway, the
// right side is read from shared memory by the tensor cores. They run beside the warps until these wait. Keys of 16 bits.

#define BATCH 2  // tiles of P whose halves are in registers at once

// P <- P - W^T W for the rows of this warp; w: its own part of W^T. Ends with end_update.
DEVICE void begin_update(float p[TILES][4], const float w[2][4], const Shared &s, int, int) {
  unsigned hi[2][4], lo[2][4];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const Left a = left(w[c][0], w[c][1], w[c][2], w[c][3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) hi[c][i] = a.v[i].hi, lo[c][i] = a.v[i].lo;
  }
#pragma unroll
  for (int j = 0; j < TILES; ++j) hold(p[j]);  // no accumulator is set after group_begin
  group_begin();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int at = 2 * c * WRITE_PLANE;
    group_product<KDIM, -1>(p, lo[c], s.write + at, WRITE_PLANE);
    group_product<KDIM, -1>(p, hi[c], s.rest + at, WRITE_PLANE);
    group_product<KDIM, -1>(p, hi[c], s.write + at, WRITE_PLANE);
  }
  group_commit();
}

DEVICE void end_update(float p[TILES][4]) {
  group_wait<0>();
#pragma unroll
  for (int j = 0; j < TILES; ++j) hold(p[j]);
}

// P k for the rows of this warp: [own channels, tokens].
DEVICE void times_keys(float pk[2][4], const float p[TILES][4], const float *keys, int, int) {
  float small[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) pk[m][i] = small[m][i] = 0.f;
#pragma unroll
  for (int j = 0; j < TILES; j += BATCH) {
    unsigned hi[BATCH][4], lo[BATCH][4];
#pragma unroll
    for (int n = 0; n < BATCH; ++n) {
      const Left a = left(p[j + n][0], p[j + n][1], p[j + n][2], p[j + n][3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) hi[n][i] = a.v[i].hi, lo[n][i] = a.v[i].lo;
    }
    if (j == 0)
#pragma unroll
      for (int m = 0; m < 2; ++m) hold(pk[m]), hold(small[m]);
    group_begin();
#pragma unroll
    for (int n = 0; n < BATCH; ++n) {
      const float *b = keys + 2 * (j + n) * KEY_PLANE;
      group_product<16, 1>(pk, hi[n], b, KEY_PLANE);
      group_product<16, 1>(small, lo[n], b, KEY_PLANE);
    }
    group_commit();
    if (j) group_wait<1>();
  }
  group_wait<0>();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    hold(pk[m]);
    hold(small[m]);
#pragma unroll
    for (int i = 0; i < 4; ++i) pk[m][i] += small[m][i];
  }
}

// What this thread wrote into shared memory is for the tensor cores to see, once all warps have met.
DEVICE void publish() { fence_for_groups(); }

// What other blocks wrote into this one's shared memory, and have said so, is for its tensor cores to see.
DEVICE void accept() {
  if (CLUSTER > 1) fence_for_groups();
}

// Eight channels of one key into shared memory: the even ones lie in one plane, the odd ones in the next.
DEVICE void store_key(float *keys, int token, int column, const Channels &c) {
  float x[8];
  as_floats(x, c);
  const float even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
  share4(keys + key_at(token, column), even);
  share4(keys + key_at(token, column + 1), odd);
}

// Two neighbouring entries of W^T, split.
DEVICE void store_write(Shared &s, int channel, int token, float x, float y) {
  const Split s0 = split(x), s1 = split(y);
  const int at = write_at(channel, token);
  share(s.write + at, as_float(s0.hi)), share(s.write + at + WRITE_PLANE, as_float(s1.hi));
  share(s.rest + at, as_float(s0.lo)), share(s.rest + at + WRITE_PLANE, as_float(s1.lo));
}
