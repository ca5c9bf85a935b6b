// The covariance pass, forward: the gate warp, the factor warp and the kernel (covariance_shared.cu says how they work).

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

// Decays, noises and all of G that does not wait for the write before it.
DEVICE void gate_warp(Shared &s, const float *log_retention, const float *process_noise, const float *obs_noise,
                      float floor, int length, int H) {
  const int lane = THREAD & 31, c = lane & 15, row = lane >> 1, left_column = 8 * (lane & 1);
  const int steps = (length + 15) / 16;
  float keep = 1.f, add = 0.f;  // R_C^2 and c_C of the step before
  float coming[3] = {0.f, 0.f, 1.f};
  if (c < length) coming[0] = log_retention[c * H], coming[1] = process_noise[c * H], coming[2] = obs_noise[c * H];

  sync_all(0);
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

    sync_all(0);
    if (n == steps) {
      sync_all(1);
      break;
    }
    float base[8], gram[8];
    gather(base, s.quad, lane);
    gather(gram, s.gram, lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      base[i] = together[i] * (keep * base[i] + add * gram[i]) + fresh[i] * gram[i];
      if (left_column + i == row) base[i] += fmaxf(r, floor * gram[i]);
    }
    keep = since * since, add = gathered;
    sync_all(1);  // the matrix warps have read the tables of the step before
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      store4(s.base + row * TILE_ROW + left_column + i, base + i);
      store4(s.fresh + row * WIDE_ROW + left_column + i, fresh + i);
    }
    if (lane < 16) s.since[c] = mine, s.left_over[c] = left_over;
    if (lane == 0) s.step[0] = keep, s.step[1] = add;
    arrive_base();
  }
}

DEVICE void factor_warp(Shared &s, float *innovation_var, int length, int H) {
  const int lane = THREAD & 31, c = lane & 15, half = lane >> 4;
  const int steps = (length + 15) / 16;
  if (half)
    for (int i = 0; i < 16; ++i) s.base[TILE + c * TILE_ROW + i] = i == c ? 1.f : 0.f;
  sync_all(0);
  for (int n = 0; n <= steps; ++n) {  // factorises step n
    sync_all(0);
    sync_all(1);
    float x[8];
    gather(x, s.cross, lane);
    const int at = (lane >> 1) * TILE_ROW + 8 * (lane & 1);
    store4(s.total + at, x);
    store4(s.total + at + 4, x + 4);
    sync_warp();
    arrive_total();
    if (n == steps) break;
    float fallen[16], across[16];  // X^T X: the halves of the warp take half of the sum each
#pragma unroll
    for (int i = 0; i < 16; ++i) fallen[i] = 0.f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float *line = s.total + (8 * half + j) * TILE_ROW;
      const float own = line[c];
#pragma unroll
      for (int i = 0; i < 16; i += 4) load4(across + i, line + i);
#pragma unroll
      for (int i = 0; i < 16; ++i) fallen[i] += across[i] * own;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) fallen[i] += shuffle_xor(fallen[i], 16);
    // Lanes 0 to 15 hold the columns of G, of which rows i <= c count, lanes 16 to 31 those of the identity.
    sync_base();
    float a[16], since[16];
    const float mine = half ? 0.f : s.since[c];
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      load4(a + i, s.base + lane * TILE_ROW + i);
      load4(since + i, s.since + i);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) a[i] -= mine * since[i] * fallen[i];
    float pivot = 1.f;  // D_c
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float d = shuffle(a[j], j);
      if (j == c) pivot = d;
      const float scaled = a[j] * reciprocal(d);
#pragma unroll
      for (int i = j + 1; i < 16; ++i) a[i] -= shuffle(a[j], i) * scaled;
    }
    // U stands in lanes 16 to 31.
    const float inverse = reciprocal(pivot);
    if (half == 0) {
      const int token = 16 * n + c;
      s.factor[c] = s.left_over[c] * sqrtf(pivot);
      if (token < length && RANK == 0) innovation_var[(long long)token * H] = pivot;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float share = a[i] * shuffle(inverse, i);
      if (half) s.whiten[i * WIDE_ROW + c] = share;
    }
  }
}

GLOBAL covariance_forward(const KEY *k, const float *log_retention, const float *process_noise,
                                          const float *obs_noise, const float *floor, const float *initial,
                                          const int *seq_start, const int *chunk_first, float *gain,
                                          float *innovation_var, float *checkpoint, float *final, int H, int G,
                                          int blocks_a_chunk) {
  SHARED_MEMORY(Shared, s);
  const int bh = BLOCK / CLUSTER, sequence = bh / H, head = bh % H;
  const long long start = seq_start[sequence];
  const int length = seq_start[sequence + 1] - (int)start;
  const long long gates = start * H + head;
  if (THREAD < 32 * OWN_WARPS)
    matrix_warp(s, k + start * G * K, initial, gain + start * H * K, checkpoint, final, length, chunk_first[sequence],
                blocks_a_chunk, bh, head, H, G);
  else if (THREAD < 32 * OWN_WARPS + 32)
    gate_warp(s, log_retention + gates, process_noise + gates, obs_noise + gates, floor[head], length, H);
  else
    factor_warp(s, innovation_var + gates, length, H);
}
