// The matrix warps (covariance_shared.cu says how they work).

// Products of pk ([own channels, tokens]) with keys, summed over the channels of this warp: [tokens of pk, tokens of keys].
// `tile` is this block's place for them, and holds pk until then, so that it can be read turned.
DEVICE void contract(float *tile, const float pk[2][4], const float *keys, int g, int t, int own) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    store2(tile + g * TILE_ROW + 8 * m + 2 * t, pk[m][0], pk[m][1]);
    store2(tile + (g + 8) * TILE_ROW + 8 * m + 2 * t, pk[m][2], pk[m][3]);
  }
  sync_warp();
  float sum[2][2][4];
  clear<4>(sum[0]);
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
    share2(at, sum[m][1][0] + sum[m][0][0], sum[m][1][1] + sum[m][0][1]);
    share2(at + 8 * TILE_ROW, sum[m][1][2] + sum[m][0][2], sum[m][1][3] + sum[m][0][3]);
  }
}

// The gains of a step, [own channels, tokens], from its P k and its keys.
DEVICE void mixed(float gains[2][4], const float pk[2][4], const float *keys, const float (*mix)[4][128], int lane,
                  int g, int t, int own) {
  float sum[2][5][4];
  clear<10>(sum[0]);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const Left a = left(pk[c][0], pk[c][1], pk[c][2], pk[c][3]);
    const int token = 8 * c + 2 * t;
    const float low0 = keys[key_at(token, own + g)], low1 = keys[key_at(token + 1, own + g)];
    const float high0 = keys[key_at(token, own + g + 8)], high1 = keys[key_at(token + 1, own + g + 8)];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float b[4];
      load4(b, mix[0][2 * c + m] + 4 * lane);
      product_apart(sum[m], a, b);
      load4(b, mix[1][2 * c + m] + 4 * lane);
      if (SPLIT_KEYS) {
        product_apart(sum[m] + 2, left(low0, low1, high0, high1), b);
      } else {
        const unsigned k0 = as_bits(low0), k1 = as_bits(high0), k2 = as_bits(low1), k3 = as_bits(high1);
        mma(sum[m][3], k0, k1, k2, k3, as_bits(b[2]), as_bits(b[3]));
        mma(sum[m][4], k0, k1, k2, k3, as_bits(b[0]), as_bits(b[1]));
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      gains[m][i] = (sum[m][2][i] + sum[m][4][i]) + (sum[m][0][i] + (sum[m][1][i] + sum[m][3][i]));
}

// The gains of a step to memory in float32; `to` is where the first token's own channels lie, `live` tokens are left.
DEVICE void store_gains(float *to, const float gains[2][4], int live, int row, int own, int g, int t) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 8 * m + 2 * t + (i & 1), channel = g + 8 * (i >> 1);
      if (token < live && own + channel < K) to[(long long)token * row + channel] = gains[m][i];
    }
}

// Two neighbouring channels, of which `left` are there.
DEVICE void store_halves(unsigned short *to, unsigned halves, int left) {
  if (K % 2 == 0) {
    if (left > 0) *(unsigned *)to = halves;
  } else {
    if (left > 0) to[0] = (unsigned short)halves;
    if (left > 1) to[1] = (unsigned short)(halves >> 16);
  }
}

// Likewise as pairs of bfloat16, x = high + low but for 2^-17 of it, turned so that a thread has neighbouring channels.
// High is rounded as the mean pass, which reads it alone, would round x: a NaN stays one. Without a low half low is high.
DEVICE void store_pairs(unsigned short *high, unsigned short *low, const float gains[2][4], int live, int row, int own,
                        int g, int t) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float x = gains[m][i], y = gains[m][i + 1];
      const unsigned whole = bfloat16s(x, y);
      const unsigned rest = bfloat16s(x - as_float(whole << 16), y - as_float(whole & 0xffff0000u));
      const unsigned highs = turned(whole), lows = turned(rest);
      const int token = 8 * m + g, channel = 4 * i + 2 * t;
      if (token < live) {
        const long long at = (long long)token * row + channel;
        store_halves(high + at, highs, K - own - channel);
        if (low != high) store_halves(low + at, lows, K - own - channel);
      }
    }
}

DEVICE void matrix_warp(Shared &s, const KEY *k, float *gain, unsigned short *low, int steps_a_chunk,
                        int head, int H, int G) {
  const int warp = RANK * OWN_WARPS + (THREAD >> 5), lane = THREAD & 31, g = lane >> 2, t = lane & 3, own = 16 * warp;
  const int loader = 32 * warp + lane;
  const int length = s.run.length, steps = (length + 15) / 16, quiet = s.run.warm / 16;
  const long long start = s.run.start;
  const int key_token = loader / (KDIM / 8), key_column = (loader % (KDIM / 8)) * 8;
  const KEY *keys = k + (start * G + head / (H / G)) * K;

  float p[TILES][4];  // rows own + g and own + g + 8 of P
  const float *const from = s.run.from, level = s.cuts.level;
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[j][i] = own + g + 8 * (i >> 1) == 8 * j + 2 * t + (i & 1) && own + g + 8 * (i >> 1) < K ? level : 0.f;
  if (from)
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = own + g + 8 * (i >> 1), column = 8 * j + 2 * t + (i & 1);
        p[j][i] = row < K && column < K ? load_fresh(from + row * K + column) : 0.f;
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

  float *kept = s.run.kept;
  int due = kept ? quiet : -1;  // steps until P is kept (again); -1 is never
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
      mixed(gains, y, now, s.mix[odd], lane, g, t, own);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int row = 8 * m + 2 * t;
        const float f0 = s.factor[odd][row], f1 = s.factor[odd][row + 1];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          w[m][i] = gains[m][i] * f0, w[m][i + 1] = gains[m][i + 1] * f1;
          store_write(s, own + g + 4 * i, row, w[m][i], w[m][i + 1]);
        }
      }
      publish();
    }
    if (n >= -1) meet();  // all of W is there
    accept();

    // P <- R_C^2 P + c_C I - W^T W. The diagonal: row own + g is column 8 j + 2 t + i.
    const float even = g == 2 * t ? add : 0.f, uneven = g == 2 * t + 1 ? add : 0.f;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      const bool here = j >> 1 == warp;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[j][i] = keep * p[j][i] + (i >> 1 == (j & 1) && here ? (i & 1 ? uneven : even) : 0.f);
    }
    begin_update(p, w, s, g, t);
    if (n >= quiet) {
      const long long at = ((start + 16 * n) * H + head) * K + own;
      const int live = length - 16 * n;
      if (KEY_KIND == 0 && low) store_pairs((unsigned short *)gain + at, low + at, gains, live, H * K, own, g, t);
      else store_gains(gain + at, gains, live, H * K, own, g, t);
    }

    if (n >= -1) {
      // P k of the next step, from that before the write: Y = R_C^2 Y + c_C k - W^T X
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          y[m][i] = keep * ahead[m][i] + add * next[key_at(8 * m + 2 * t + (i & 1), own + g + 8 * (i >> 1))];
      if (n >= 0) {
        sync_total();  // X is there
        float sum[2][3][4];
        clear<6>(sum[0]);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const Left a = left(-w[c][0], -w[c][1], -w[c][2], -w[c][3]);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            float b[4];
            load4(b, s.seen[2 * c + m] + 4 * lane);
            product_apart(sum[m], a, b);
          }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) y[m][i] += sum[m][2][i] + (sum[m][0][i] + sum[m][1][i]);
      }
      contract(s.cross[(n + 1) % CROSS][warp], y, later, g, t, own);  // Z of the next step
    }
    end_update(p);
    if (n >= -1 && due-- == 0) {  // P now stands before step n + 1, the first of a chunk
      if (n + 1 < steps) store_rows(kept, p, own + g, 2 * t);
      kept += (long long)H * K * K, due = steps_a_chunk - 1;
    }
    if (n == steps - 1) break;
    times_keys(ahead, p, later, g, t);  // P k and quad of the step after the next
    contract(s.quad[warp], ahead, later, g, t, own);
    store_key(s.key[(n + 3) % BUFFERS], key_token, key_column, coming);
    publish();
  }

  store_rows(s.run.to, p, own + g, 2 * t);
}

