// The matrix warps (covariance_shared.cu says how they work).

// Products of pk ([own channels, tokens]) with keys, summed over the channels of this warp: [tokens of pk, tokens of keys].
// `tile` is this block's place for them, and holds pk turned until then.
DEVICE void contract(float *tile, const float pk[2][4], const float *keys, int g, int t, int own) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    store2(tile + g * TILE_ROW + 8 * m + 2 * t, pk[m][0], pk[m][1]);
    store2(tile + (g + 8) * TILE_ROW + 8 * m + 2 * t, pk[m][2], pk[m][3]);
  }
  sync_warp();
  float sum[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[m][i] = 0.f;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float *at = tile + (8 * c + 2 * t) * TILE_ROW + g;
    const int channel = own + 8 * c + 2 * t;
    const Left a = left(at[0], at[TILE_ROW], at[8], at[TILE_ROW + 8]);
#pragma unroll
    for (int m = 0; m < 2; ++m)
      product_key(sum[m], a, keys[key_at(8 * m + g, channel)], keys[key_at(8 * m + g, channel + 1)]);
  }
  sync_warp();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float *at = tile + g * TILE_ROW + 8 * m + 2 * t;
    share2(at, sum[m][0], sum[m][1]);
    share2(at + 8 * TILE_ROW, sum[m][2], sum[m][3]);
  }
}

DEVICE void matrix_warp(Shared &s, const KEY *k, const float *initial, float *gain, float *checkpoint, float *final,
                        int length, int first_chunk, int blocks_a_chunk, int bh, int head, int H, int G) {
  const int warp = RANK * OWN_WARPS + (THREAD >> 5), lane = THREAD & 31, g = lane >> 2, t = lane & 3, own = 16 * warp;
  const int loader = 32 * warp + lane;
  const int steps = (length + 15) / 16;
  const int key_token = loader / (KDIM / 8), key_column = (loader % (KDIM / 8)) * 8;
  const KEY *keys = k + (long long)(head / (H / G)) * K;

  float p[TILES][4];  // rows own + g and own + g + 8 of P
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = own + g + 8 * (i >> 1), column = 8 * j + 2 * t + (i & 1);
      p[j][i] = row < K && column < K ? initial[(long long)bh * K * K + row * K + column] : 0.f;
    }

  Channels coming = load_keys(keys + (long long)key_token * G * K, key_column, key_token < length);
  store_key(s.key[0], key_token, key_column, coming);
  for (int i = THREAD; i < WRITE_SIZE; i += 32 * OWN_WARPS) s.write[i] = s.rest[i] = 0.f;
  publish();
  sync_all();  // the first keys are there

  // [own channels, tokens]: the gains of a step, its P k, that of the next, W^T
  float gains[2][4], y[2][4], ahead[2][4], w[2][4];
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) gains[n][i] = y[n][i] = w[n][i] = ahead[n][i] = 0.f;

  // Steps -2 and -1 write nothing (W is zero): they prepare the first two.
  for (int n = -2; n < steps; ++n) {
    const float *now = s.key[(n + BUFFERS) % BUFFERS], *next = s.key[(n + 1 + BUFFERS) % BUFFERS];
    const float *later = s.key[(n + 2) % BUFFERS];
    const int token = 16 * (n + 3) + key_token;
    coming = load_keys(keys + (long long)token * G * K, key_column, token < length);
    float keep = 1.f, add = 0.f;
    if (n >= -1) sync_all();  // the factors of this step are there, and quad of the next
    accept();
    if (n >= 0) {
      const int odd = n & 1;
      keep = s.step[odd][0], add = s.step[odd][1];
      float part[2][2][4];  // W^T from P k and from k: short chains of accumulation
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) w[m][i] = part[0][m][i] = part[1][m][i] = 0.f;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Left a = left(y[c][0], y[c][1], y[c][2], y[c][3]);
        const int token = 8 * c + 2 * t;
        const float low0 = now[key_at(token, own + g)], low1 = now[key_at(token + 1, own + g)];
        const float high0 = now[key_at(token, own + g + 8)], high1 = now[key_at(token + 1, own + g + 8)];
        const float from0 = s.since[odd][8 * c + 2 * t], from1 = s.since[odd][8 * c + 2 * t + 1];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int at = (8 * m + g) * WIDE_ROW + 8 * c + 2 * t;
          const float u0 = s.whiten[odd][at], u1 = s.whiten[odd][at + 1], reached = s.since[odd][8 * m + g];
          const float f0 = u0 * s.fresh[odd][at], f1 = u1 * s.fresh[odd][at + 1];
          product(c ? part[0][m] : w[m], a, u0 * reached * from0, u1 * reached * from1);
          if (SPLIT_KEYS) {
            product(part[1][m], left(low0, low1, high0, high1), f0, f1);
          } else {
            const unsigned k0 = as_bits(low0), k1 = as_bits(high0), k2 = as_bits(low1), k3 = as_bits(high1);
            const Split s0 = split(f0), s1 = split(f1);
            mma(part[1][m], k0, k1, k2, k3, s0.lo, s1.lo);
            mma(part[1][m], k0, k1, k2, k3, s0.hi, s1.hi);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int row = 8 * m + 2 * t;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float whole = w[m][i] + (part[0][m][i] + part[1][m][i]);
          gains[m][i] = whole;
          w[m][i] = whole * s.factor[odd][row + (i & 1)];
        }
#pragma unroll
        for (int i = 0; i < 4; i += 2) store_write(s, own + g + 4 * i, row, w[m][i], w[m][i + 1]);
      }
      sync_total();  // X is there
    }
    if (n >= -1) {
      // P k of the next step, from that before the write: Y = R_C^2 Y + c_C k - W^T X
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          y[m][i] = keep * ahead[m][i] + add * next[key_at(8 * m + 2 * t + (i & 1), own + g + 8 * (i >> 1))];
      if (n >= 0) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const Left a = left(-w[c][0], -w[c][1], -w[c][2], -w[c][3]);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            const float *b = s.total + (8 * c + 2 * t) * TILE_ROW + 8 * m + g;
            product(y[m], a, b[0], b[TILE_ROW]);
          }
        }
      }
      contract(s.cross[(n + 1) % CROSS][warp], y, later, g, t, own);  // Z of the next step
      publish();
      meet();  // all of W is there
      accept();
    }

    // P <- R_C^2 P + c_C I - W^T W
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[j][i] *= keep;
      if (j >> 1 == warp) {  // the diagonal: row own + g is column 8 j + 2 t + i
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (own + g + 8 * (i >> 1) == 8 * j + 2 * t + (i & 1)) p[j][i] += add;
      }
    }
    begin_update(p, w, s, g, t);
    float *out = gain + (long long)(16 * n + 2 * t) * H * K + (long long)head * K + own + g;
    const int live = length - 16 * n - 2 * t;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (n >= 0 && 8 * m + (i & 1) < live && own + g + 8 * (i >> 1) < K)
          out[(long long)(8 * m + (i & 1)) * H * K + 8 * (i >> 1)] = gains[m][i];
    end_update(p);
    const int done = n + 1;  // P now stands before this step
    if (done >= 0 && done % blocks_a_chunk == 0 && done < steps) {
      store_rows(checkpoint + ((long long)(first_chunk + done / blocks_a_chunk) * H + head) * K * K, p, own + g, 2 * t);
    }
    if (n == steps - 1) break;
    times_keys(ahead, p, later, g, t);  // P k and quad of the step after the next
    contract(s.quad[warp], ahead, later, g, t, own);
    store_key(s.key[(n + 3) % BUFFERS], key_token, key_column, coming);
    publish();
  }

  store_rows(final + (long long)bh * K * K, p, own + g, 2 * t);
}

