// The matrix warps (covariance_wide.cu says how they work).

// Products of keys with pk ([own channels, tokens]), summed over the channels of this warp: [tokens of keys, tokens of pk].
// `tile` is this warp's place for them, and holds pk until then, so that it can be read turned. HALF: of a symmetric
// product, the lower half.
template <bool HALF> DEVICE void contract(float *tile, const float pk[NT][4], const float *keys, int g, int t, int own) {
#pragma unroll
  for (int m = 0; m < NT; ++m) {
    store2(tile + g * TILE_ROW + 8 * m + 2 * t, pk[m][0], pk[m][1]);
    store2(tile + (g + 8) * TILE_ROW + 8 * m + 2 * t, pk[m][2], pk[m][3]);
  }
  sync_warp();
  float sum[NT / 2][NT][4];
#pragma unroll
  for (int r = 0; r < NT / 2; ++r) clear<NT>(sum[r]);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int channel = own + 8 * c + 2 * t;
    unsigned k[NT][2];
    Split b[NT][2];
#pragma unroll
    for (int m = 0; m < NT; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        k[m][i] = as_bits(keys[key_at(8 * m + g, channel + i)]);
        b[m][i] = split(tile[(8 * c + 2 * t + i) * TILE_ROW + 8 * m + g]);
      }
#pragma unroll
    for (int large = 0; large < 2; ++large)
#pragma unroll
      for (int r = 0; r < NT / 2; ++r)
#pragma unroll
        for (int m = 0; m < NT; ++m) {
          if (HALF && m > 2 * r + 1) continue;
          mma(sum[r][m], k[2 * r][0], k[2 * r + 1][0], k[2 * r][1], k[2 * r + 1][1],
              large ? b[m][0].hi : b[m][0].lo, large ? b[m][1].hi : b[m][1].lo);
        }
  }
  sync_warp();
#pragma unroll
  for (int r = 0; r < NT / 2; ++r)
#pragma unroll
    for (int m = 0; m < NT; ++m) {
      if (HALF && m > 2 * r + 1) continue;
      float *at = tile + (16 * r + g) * TILE_ROW + 8 * m + 2 * t;
      store2(at, sum[r][m][0], sum[r][m][1]);
      store2(at + 8 * TILE_ROW, sum[r][m][2], sum[r][m][3]);
    }
}

// The gains of a step, [own channels, tokens], in place of its P k.
DEVICE void mixed(float pk[NT][4], const float *keys, const Shared &s, int lane, int g, int t, int own) {
  float sum[NT][2][4];  // small halves, large ones
  clear<2 * NT>(sum[0]);
#pragma unroll
  for (int c = 0; c < NT; ++c) {
    const Left a = left(pk[c][0], pk[c][1], pk[c][2], pk[c][3]);
    float b[NT][4];
#pragma unroll
    for (int m = c; m < NT; ++m) load4(b[m], s.mix[0][lower(c, m)] + 4 * lane);
#pragma unroll
    for (int m = c; m < NT; ++m)
      mma(sum[m][0], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, as_bits(b[m][0]), as_bits(b[m][1]));
#pragma unroll
    for (int m = c; m < NT; ++m)
      mma(sum[m][1], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[m][0]), as_bits(b[m][1]));
#pragma unroll
    for (int m = c; m < NT; ++m)
      mma(sum[m][0], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[m][2]), as_bits(b[m][3]));
    const int token = 8 * c + 2 * t;
    const unsigned k0 = as_bits(keys[key_at(token, own + g)]), k1 = as_bits(keys[key_at(token, own + g + 8)]);
    const unsigned k2 = as_bits(keys[key_at(token + 1, own + g)]), k3 = as_bits(keys[key_at(token + 1, own + g + 8)]);
#pragma unroll
    for (int m = c; m < NT; ++m) load4(b[m], s.mix[1][lower(c, m)] + 4 * lane);
#pragma unroll
    for (int m = c; m < NT; ++m) mma(sum[m][1], k0, k1, k2, k3, as_bits(b[m][0]), as_bits(b[m][1]));
#pragma unroll
    for (int m = c; m < NT; ++m) mma(sum[m][0], k0, k1, k2, k3, as_bits(b[m][2]), as_bits(b[m][3]));
  }
#pragma unroll
  for (int m = 0; m < NT; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) pk[m][i] = sum[m][1][i] + sum[m][0][i];
}

// y - W^T X, [own channels, tokens of the next step].
DEVICE void subtract_seen(float y[NT][4], const float w[NT][4], const Shared &s, int g, int t) {
  float sum[NT][2][4];
  clear<2 * NT>(sum[0]);
#pragma unroll
  for (int c = 0; c < NT; ++c) {
    const Left a = left(w[c][0], w[c][1], w[c][2], w[c][3]);
    float b[NT][4];
#pragma unroll
    for (int m = 0; m < NT; ++m) load4(b[m], s.seen[NT * c + m] + SEEN_ROW * g + 4 * t);
#pragma unroll
    for (int m = 0; m < NT; ++m)
      mma(sum[m][0], a.v[0].lo, a.v[1].lo, a.v[2].lo, a.v[3].lo, as_bits(b[m][0]), as_bits(b[m][1]));
#pragma unroll
    for (int m = 0; m < NT; ++m)
      mma(sum[m][1], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[m][0]), as_bits(b[m][1]));
#pragma unroll
    for (int m = 0; m < NT; ++m)
      mma(sum[m][0], a.v[0].hi, a.v[1].hi, a.v[2].hi, a.v[3].hi, as_bits(b[m][2]), as_bits(b[m][3]));
  }
#pragma unroll
  for (int m = 0; m < NT; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) y[m][i] -= sum[m][1][i] + sum[m][0][i];
}

#define LOADS (STEP / 16)  // eights of channels that a thread of the matrix warps loads

DEVICE void matrix_warp(Shared &s, const KEY *k, const float *initial, float *gain, float *checkpoint, float *final,
                        int length, int first_chunk, int steps_a_chunk, int bh, int head, int H, int G) {
  const int warp = THREAD >> 5, lane = THREAD & 31, g = lane >> 2, t = lane & 3, own = 16 * warp;
  const int steps = (length + STEP - 1) / STEP;
  const int key_token = THREAD / (KDIM / 8), key_column = (THREAD % (KDIM / 8)) * 8;  // and 16 tokens on
  const KEY *keys = k + (long long)(head / (H / G)) * K;

  float p[TILES][4];  // rows own + g and own + g + 8 of P
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = own + g + 8 * (i >> 1), column = 8 * j + 2 * t + (i & 1);
      p[j][i] = row < K && column < K ? initial[(long long)bh * K * K + row * K + column] : 0.f;
    }

  Channels coming[LOADS];
#pragma unroll
  for (int i = 0; i < LOADS; ++i) {
    const int token = key_token + 16 * i;
    coming[i] = load_keys(keys + (long long)token * G * K, key_column, token < length);
    store_key(s.key[0], token, key_column, coming[i]);
  }
  for (int i = THREAD; i < WRITE_SIZE; i += 2 * KDIM) s.write[i] = s.rest[i] = 0.f;
  publish();
  wait_at<START, MATRIX_AND(0)>();  // the first keys are there

  // [own channels, tokens]: P k of a step, then its gains; P k of the next; W^T
  float y[NT][4], ahead[NT][4], w[NT][4];
  clear<NT>(y), clear<NT>(ahead), clear<NT>(w);

  float *kept = checkpoint + ((long long)first_chunk * H + head) * K * K;
  int due = steps_a_chunk ? 0 : -1;  // steps until P is kept again; -1 is never
  // Steps -2 and -1 write nothing (W is zero): they prepare the first two.
#pragma unroll 1
  for (int n = steps ? -2 : 0; n < steps; ++n) {
    const float *now = s.key[(n + 3) % BUFFERS], *next = s.key[(n + 4) % BUFFERS], *later = s.key[(n + 5) % BUFFERS];
    const bool more = n + 2 < steps;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int token = STEP * (n + 3) + key_token + 16 * i;
      coming[i] = load_keys(keys + (long long)token * G * K, key_column, token < length);
    }
    float keep = 1.f, add = 0.f;
    if (n >= 0) {
      wait_at<FACTORS, MATRIX_AND(1)>();
      keep = s.step[n & 1][0], add = s.step[n & 1][1];
      mixed(y, now, s, lane, g, t, own);
#pragma unroll
      for (int m = 0; m < NT; ++m) {
        const int row = 8 * m + 2 * t;
        const float f0 = s.factor[row], f1 = s.factor[row + 1];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          w[m][i] = y[m][i] * f0, w[m][i + 1] = y[m][i + 1] * f1;
          store_write(s, own + g + 4 * i, row, w[m][i], w[m][i + 1]);
        }
      }
      publish();
    }
    if (n >= -1) wait_at<WRITTEN, MATRIX_AND(2)>();

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
    float *out = gain + (long long)(STEP * n + 2 * t) * H * K + (long long)head * K + own + g;
    const int live = n < 0 ? 0 : length - STEP * n - 2 * t;
#pragma unroll
    for (int m = 0; m < NT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (8 * m + (i & 1) < live && own + g + 8 * (i >> 1) < K)
          out[(long long)(8 * m + (i & 1)) * H * K + 8 * (i >> 1)] = y[m][i];
    if (n >= -1 && n + 1 < steps) {
      // P k of the next step, from that before the write: Y = R_C^2 Y + c_C k - W^T X
#pragma unroll
      for (int m = 0; m < NT; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          y[m][i] = keep * ahead[m][i] + add * next[key_at(8 * m + 2 * t + (i & 1), own + g + 8 * (i >> 1))];
      if (n >= 0) {
        wait_at<SEEN, MATRIX_AND(1)>();
        subtract_seen(y, w, s, g, t);
      }
      if (more) {
        contract<false>(s.cross[warp], y, later, g, t, own);  // Z of the next step
        arrive_at<CROSSED, MATRIX_AND(2)>();
      }
    }
    end_update(p);
    if (n >= -1 && due-- == 0) {  // P now stands before step n + 1, the first of a chunk
      if (n + 1 < steps) store_rows(kept, p, own + g, 2 * t);
      kept += (long long)H * K * K, due = steps_a_chunk - 1;
    }
    if (n == steps - 1) break;
    if (more) {
      times_keys(ahead, p, later, g, t);  // P k and quad of the step after the next
      contract<true>(s.quad[warp], ahead, later, g, t, own);
    }
#pragma unroll
    for (int i = 0; i < LOADS; ++i) store_key(s.key[(n + 3) % BUFFERS], key_token + 16 * i, key_column, coming[i]);
    publish();
    arrive_at<QUAD, MATRIX_AND(1)>();
  }

  store_rows(final + (long long)bh * K * K, p, own + g, 2 * t);
}
