// The gate warp and the factor warp of the covariance pass (covariance_shared.cu says how they work).

// Eight entries of a sum over the matrix warps: row `lane >> 1`, columns from `8 * (lane & 1)`.
DEVICE void gather(float *x, const float (*partial)[TILE], int lane) {
  const int at = (lane >> 1) * TILE_ROW + 8 * (lane & 1);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = 0.f;
#pragma unroll
  for (int w = 0; w < MATRIX_WARPS; ++w) {
    float part[8];
    load4(part, partial[w] + at);
    load4(part + 4, partial[w] + at + 4);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += part[i];
  }
}

// gram of step n + 1 and link of step n, from keys alone.
DEVICE void compare_keys(Shared &s, int n, int lane) {
  const float *before = s.key[(n + BUFFERS) % BUFFERS], *keys = s.key[(n + 1) % BUFFERS];
  const int g = lane >> 2, t = lane & 3;
  sync_warp();  // gram of the step before is read
  float gram[2][4], link[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) gram[m][i] = link[m][i] = 0.f;
#pragma unroll 4
  for (int j = 0; j < TILES; ++j) {
    const int low = key_at(g, 8 * j + 2 * t), low1 = key_at(g, 8 * j + 2 * t + 1);
    const int high = key_at(g + 8, 8 * j + 2 * t), high1 = key_at(g + 8, 8 * j + 2 * t + 1);
    const float k0 = keys[low], k1 = keys[low1], k2 = keys[high], k3 = keys[high1];
    key_product(gram[0], k0, k2, k1, k3, k0, k1);
    key_product(gram[1], k0, k2, k1, k3, k2, k3);
    if (n < 0) continue;
    const float b0 = before[low], b1 = before[low1], b2 = before[high], b3 = before[high1];
    key_product(link[0], b0, b2, b1, b3, k0, k1);
    key_product(link[1], b0, b2, b1, b3, k2, k3);
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int at = g * TILE_ROW + 8 * m + 2 * t, below = at + 8 * TILE_ROW;
    store2(s.gram + at, gram[m][0], gram[m][1]);
    store2(s.gram + below, gram[m][2], gram[m][3]);
    store2(s.link[n & 1] + at, link[m][0], link[m][1]);
    store2(s.link[n & 1] + below, link[m][2], link[m][3]);
  }
  sync_warp();
}

// Decays, noises and all of G that does not wait for the write before it.
DEVICE void gate_warp(Shared &s, const float *log_retention, const float *process_noise, const float *obs_noise,
                      float floor, int length, int H) {
  const int lane = THREAD & 31, c = lane & 15, row = lane >> 1, left_column = 8 * (lane & 1);
  const int steps = (length + 15) / 16;
  float keep = 1.f, add = 0.f;  // R_C^2 and c_C of the step before
  float coming[3] = {0.f, 0.f, 1.f};
  if (c < length) coming[0] = log_retention[c * H], coming[1] = process_noise[c * H], coming[2] = obs_noise[c * H];

  sync_all();
  compare_keys(s, -1, lane);
  for (int n = 0; n <= steps; ++n) {  // prepares step n; the matrix warps stand at step n - 1
    const float kept = expf(coming[0]), noise = coming[1], given = coming[2];
    const int later = 16 * (n + 1) + c;
    const bool inside = later < length;
    coming[0] = inside ? log_retention[(long long)later * H] : 0.f;
    coming[1] = inside ? process_noise[(long long)later * H] : 0.f;
    coming[2] = inside ? obs_noise[(long long)later * H] : 1.f;
    float rho[16], since = 1.f, gathered = 0.f, mine = 1.f, behind = 0.f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      rho[i] = shuffle(kept, i);
      since *= rho[i];
      gathered = rho[i] * rho[i] * gathered + shuffle(noise, i);
      if (i == c) mine = since, behind = gathered;
    }
    float left_over = 1.f;  // R_C / R_c
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (i > c) left_over *= rho[i];
    float fresh[8], together[8], ratio = 1.f;  // R_row / R_j c_j, its mirror image above the diagonal; R_row R_j
    const float here = shuffle(mine, row), noise_here = shuffle(behind, row);
#pragma unroll
    for (int j = 15; j >= 0; --j) {  // on and below the diagonal
      const float value = ratio * shuffle(behind, j), product = here * shuffle(mine, j);
      if (j >= left_column && j < left_column + 8) fresh[j & 7] = value, together[j & 7] = product;
      if (j <= row) ratio *= rho[j];
    }
    ratio = 1.f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      if (j > row) ratio *= rho[j];
      if (j > row && j >= left_column && j < left_column + 8) fresh[j & 7] = ratio * noise_here;
    }
    const float r = shuffle(given, row);

    sync_all();
    float base[8], gram[8];
    gather(base, s.quad, lane);
    pass_meeting();  // quad is read
    const int at = row * TILE_ROW + left_column, odd = n & 1;
    load4(gram, s.gram + at);
    load4(gram + 4, s.gram + at + 4);
    if (n < steps) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        base[i] = together[i] * (keep * base[i] + add * gram[i]) + fresh[i] * gram[i];
        if (left_column + i == row) base[i] += fmaxf(r, floor * gram[i]);
      }
      keep = since * since, add = gathered;
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        store4(s.base + at + i, base + i);
        store4(s.fresh + row * WIDE_ROW + left_column + i, fresh + i);
      }
      if (lane < 16) s.since[c] = mine, s.left_over[c] = left_over;
      if (lane == 0) s.step[odd][0] = keep, s.step[odd][1] = add;
      arrive_base();
    }
    if (n < steps) compare_keys(s, n, lane);
    end_meeting();
  }
}

// The right sides of W = A P k + B k, from U / D.
DEVICE void prepare_mix(float (*mix)[4][128], const Shared &s, int lane) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = 8 * m + g, column = 8 * c + 2 * t, at = row * WIDE_ROW + column;
      const float u0 = s.whiten[at], u1 = s.whiten[at + 1], reached = s.since[row];
      float halves[4];
      split_pair(halves, u0 * reached * s.since[column], u1 * reached * s.since[column + 1]);
      store4(mix[0][2 * c + m] + 4 * lane, halves);
      split_pair(halves, u0 * s.fresh[at], u1 * s.fresh[at + 1]);
      store4(mix[1][2 * c + m] + 4 * lane, halves);
    }
}

struct Seen { float part[2][2][4]; };  // X, split, as the right sides of products: [rows 8 c + .., columns 8 m + ..]

// X of step n from Z, summed over warps, and link.
DEVICE Seen cross_keys(Shared &s, int n, int lane) {
  const int g = lane >> 2, t = lane & 3, at = (lane >> 1) * TILE_ROW + 8 * (lane & 1), odd = n & 1;
  float sum[8], of[2][2][2][4];  // A and B as left sides
#pragma unroll
  for (int kind = 0; kind < 2; ++kind)
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int m = 0; m < 2; ++m) load4(of[kind][c][m], s.mix[odd][kind][2 * c + m] + 4 * lane);
  gather(sum, s.cross[n % CROSS], lane);
  store4(s.total + at, sum);
  store4(s.total + at + 4, sum + 4);
  sync_warp();
  float x[2][6][4];
  clear<12>(x[0]);
#pragma unroll
  for (int kind = 0; kind < 2; ++kind)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      Left a;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a.v[i].hi = as_bits(of[kind][c][i & 1][i >> 1]), a.v[i].lo = as_bits(of[kind][c][i & 1][2 + (i >> 1)]);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float *from = (kind ? s.link[odd] : s.total) + (8 * c + 2 * t) * TILE_ROW + 8 * m + g;
        float b[4];
        split_pair(b, from[0], from[TILE_ROW]);
        product_apart(x[m] + 3 * kind, a, b);
      }
    }
  sync_warp();  // Z is read
  const float low = s.factor[odd][g], high = s.factor[odd][g + 8];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float *to = s.total + g * TILE_ROW + 8 * m + 2 * t, whole[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      whole[i] = (x[m][2][i] + x[m][5][i]) + ((x[m][0][i] + x[m][1][i]) + (x[m][3][i] + x[m][4][i]));
    store2(to, low * whole[0], low * whole[1]);
    store2(to + 8 * TILE_ROW, high * whole[2], high * whole[3]);
  }
  sync_warp();
  Seen seen;
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float *from = s.total + (8 * c + 2 * t) * TILE_ROW + 8 * m + g;
      split_pair(seen.part[c][m], from[0], from[TILE_ROW]);
      store4(s.seen[2 * c + m] + 4 * lane, seen.part[c][m]);
    }
  sync_warp();
  return seen;
}

// X^T X into `total`.
DEVICE void cross_square(Shared &s, const Seen &seen, int lane) {
  const int g = lane >> 2, t = lane & 3;
  float sum[2][3][4];
  clear<6>(sum[0]);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    Left a;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a.v[i].hi = as_bits(seen.part[c][i & 1][i >> 1]), a.v[i].lo = as_bits(seen.part[c][i & 1][2 + (i >> 1)]);
#pragma unroll
    for (int m = 0; m < 2; ++m) product_apart(sum[m], a, seen.part[c][m]);
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float *to = s.total + g * TILE_ROW + 8 * m + 2 * t, whole[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) whole[i] = sum[m][2][i] + (sum[m][0][i] + sum[m][1][i]);
    store2(to, whole[0], whole[1]);
    store2(to + 8 * TILE_ROW, whole[2], whole[3]);
  }
  sync_warp();
}

DEVICE void factor_warp(Shared &s, float *innovation_var, int length, int warm, int H) {
  const int lane = THREAD & 31, c = lane & 15, half = lane >> 4;
  const int steps = (length + 15) / 16;
  if (half)
    for (int i = 0; i < 16; ++i) s.base[TILE + c * TILE_ROW + i] = i == c ? 1.f : 0.f;
  sync_all();
  for (int n = 0; n <= steps; ++n) {  // factorises step n
    sync_all();
    pass_meeting();
    Seen seen;
    if (n > 0) seen = cross_keys(s, n - 1, lane);
    if (n < steps) sync_base();
    if (n > 0) arrive_total();
    if (n == steps) {
      end_meeting();
      break;
    }
    // Lanes 0 to 15 hold the columns of G, of which rows i <= c count, lanes 16 to 31 those of the identity.
    float a[16];
#pragma unroll
    for (int i = 0; i < 16; i += 4) load4(a + i, s.base + lane * TILE_ROW + i);
    if (n > 0) {
      float since[16], fallen[16];
      const float mine = half ? 0.f : s.since[c];
#pragma unroll
      for (int i = 0; i < 16; i += 4) load4(since + i, s.since + i);
      cross_square(s, seen, lane);
#pragma unroll
      for (int i = 0; i < 16; i += 4) load4(fallen + i, s.total + c * TILE_ROW + i);
#pragma unroll
      for (int i = 0; i < 16; ++i) a[i] -= mine * since[i] * fallen[i];
    }
    float pivot = 1.f;  // D_c
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float d = shuffle(a[j], j);
      if (j == c) pivot = d;
      const float scaled = a[j] * reciprocal(d);
      if (half) s.whiten[j * WIDE_ROW + c] = scaled;  // U stands in lanes 16 to 31
#pragma unroll
      for (int i = j + 1; i < 16; ++i) a[i] -= shuffle(a[j], i) * scaled;
    }
    if (half == 0) {
      const int token = 16 * n + c;
      s.factor[n & 1][c] = s.left_over[c] * root(pivot);
      if (token >= warm && token < length && RANK == 0) innovation_var[(long long)token * H] = pivot;
    }
    sync_warp();
    prepare_mix(s.mix[n & 1], s, lane);
    end_meeting();
  }
}
