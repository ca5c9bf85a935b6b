// The gate warp, the two factor warps and the kernel (covariance_wide.cu says how they work).

// Row `lane` of a sum over the matrix warps.
DEVICE void gather(float x[STEP], const float (*partial)[TILE], int lane) {
#pragma unroll
  for (int i = 0; i < STEP; ++i) x[i] = 0.f;
#pragma unroll 2
  for (int w = 0; w < MATRIX_WARPS; ++w)
#pragma unroll
    for (int i = 0; i < STEP; i += 4) {
      float part[4];
      load4(part, partial[w] + lane * TILE_ROW + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[i + j] += part[j];
    }
}

DEVICE void load_row(float x[STEP], const float *tile, int lane) {
#pragma unroll
  for (int i = 0; i < STEP; i += 4) load4(x + i, tile + lane * TILE_ROW + i);
}

// gram of step n + 1 and link of step n, from keys alone.
DEVICE void compare_keys(Shared &s, int n, int lane) {
  const float *before = s.key[(n + BUFFERS) % BUFFERS], *keys = s.key[(n + 1 + BUFFERS) % BUFFERS];
  const int g = lane >> 2, t = lane & 3;
  sync_warp();  // gram of the step before is read
  float gram[NT / 2][NT][4], link[NT / 2][NT][4];
#pragma unroll
  for (int r = 0; r < NT / 2; ++r) clear<NT>(gram[r]), clear<NT>(link[r]);
#pragma unroll 2
  for (int j = 0; j < TILES; ++j) {
    unsigned k[NT][2], b[NT][2];
#pragma unroll
    for (int m = 0; m < NT; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = key_at(8 * m + g, 8 * j + 2 * t + i);
        k[m][i] = as_bits(keys[at]), b[m][i] = n < 0 ? 0u : as_bits(before[at]);
      }
#pragma unroll
    for (int r = 0; r < NT / 2; ++r)
#pragma unroll
      for (int m = 0; m < NT; ++m) {
        if (m <= 2 * r + 1)
          mma(gram[r][m], k[2 * r][0], k[2 * r + 1][0], k[2 * r][1], k[2 * r + 1][1], k[m][0], k[m][1]);
        mma(link[r][m], k[2 * r][0], k[2 * r + 1][0], k[2 * r][1], k[2 * r + 1][1], b[m][0], b[m][1]);
      }
  }
#pragma unroll
  for (int r = 0; r < NT / 2; ++r)
#pragma unroll
    for (int m = 0; m < NT; ++m) {
      const int at = (16 * r + g) * TILE_ROW + 8 * m + 2 * t, below = at + 8 * TILE_ROW;
      store2(s.link[n & 1] + at, link[r][m][0], link[r][m][1]);
      store2(s.link[n & 1] + below, link[r][m][2], link[r][m][3]);
      if (m > 2 * r + 1) continue;
      store2(s.gram + at, gram[r][m][0], gram[r][m][1]);
      store2(s.gram + below, gram[r][m][2], gram[r][m][3]);
    }
  sync_warp();
}

// Decays, noises and all of G that does not wait for the write before it. Lane c has token c, and row c of G.
DEVICE void gate_warp(Shared &s, const float *log_retention, const float *process_noise, const float *obs_noise,
                      float floor, int length, int H) {
  const int c = THREAD & 31, steps = (length + STEP - 1) / STEP;
  float keep = 1.f, add = 0.f;  // R_C^2 and c_C of the step before
  float coming[3] = {0.f, 0.f, 1.f};
  if (c < length) coming[0] = log_retention[c * H], coming[1] = process_noise[c * H], coming[2] = obs_noise[c * H];
#pragma unroll 1
  for (int n = -1; n <= steps && steps; ++n) {  // prepares step n
    if (n != 0) wait_at<QUAD, MATRIX_AND(1)>();  // of step n - 2; the first keys come with the first quad
    if (n >= 0) {
      float base[STEP];
      if (n < steps) gather(base, s.quad, c);
      arrive_at<WRITTEN, MATRIX_AND(2)>();  // of step n - 1
      const float rho = expf(coming[0]), noise = coming[1], given = coming[2];
      const int later = STEP * (n + 1) + c, odd = n & 1;
      const bool inside = later < length;
      coming[0] = inside ? log_retention[(long long)later * H] : 0.f;
      coming[1] = inside ? process_noise[(long long)later * H] : 0.f;
      coming[2] = inside ? obs_noise[(long long)later * H] : 1.f;
      float since = 1.f, gathered = 0.f, mine = 1.f, behind = 0.f, left_over = 1.f;  // R_C, c_C; R_c, c_c, R_C/R_c
#pragma unroll 8
      for (int i = 0; i < STEP; ++i) {
        const float kept = shuffle(rho, i);
        since *= kept;
        gathered = kept * kept * gathered + shuffle(noise, i);
        if (i == c) mine = since, behind = gathered;
        if (i > c) left_over *= kept;
      }
      if (n > 0) wait_at<JOINT, 96>();  // of step n - 1
      if (n == steps) break;
      float ratio = 1.f;  // R_c/R_j
#pragma unroll
      for (int i = STEP - 4; i >= 0; i -= 4) {
        float gram[4], fresh[4];
        load4(gram, s.gram + c * TILE_ROW + i);
#pragma unroll
        for (int j = i + 3; j >= i; --j) {
          const float kept = shuffle(rho, j);
          fresh[j - i] = ratio * shuffle(behind, j);
          if (j <= c) ratio *= kept;
          base[j] = mine * shuffle(mine, j) * (keep * base[j] + add * gram[j - i]) + fresh[j - i] * gram[j - i];
          if (j == c) base[j] += fmaxf(given, floor * gram[j - i]);
        }
        store4(s.base + c * TILE_ROW + i, base + i);
        store4(s.fresh[odd] + c * TILE_ROW + i, fresh);
      }
      keep = since * since, add = gathered;
      s.since[odd][c] = mine, s.left_over[odd][c] = left_over;
      s.reach[odd][c] = since * mine, s.refill[odd][c] = left_over * behind;
      if (c == 0) s.step[odd][0] = keep, s.step[odd][1] = add;
      arrive_at<BASE, 64>();
    }
    compare_keys(s, n, c);
  }
}

// The right sides of W = A P k + B k, from U / D.
DEVICE void prepare_mix(Shared &s, int odd, int lane) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int m = 0; m < NT; ++m)
#pragma unroll
    for (int c = 0; c <= m; ++c) {
      const int row = 8 * m + g, column = 8 * c + 2 * t, at = row * TILE_ROW + column;
      const float u0 = s.beside[0][at], u1 = s.beside[0][at + 1], reached = s.since[odd][row];
      // above the diagonal U is zero and fresh is not made
      const float f0 = column <= row ? s.fresh[odd][at] : 0.f, f1 = column < row ? s.fresh[odd][at + 1] : 0.f;
      float halves[4];
      split_pair(halves, u0 * reached * s.since[odd][column], u1 * reached * s.since[odd][column + 1]);
      store4(s.mix[0][lower(c, m)] + 4 * lane, halves);
      split_pair(halves, u0 * f0, u1 * f1);
      store4(s.mix[1][lower(c, m)] + 4 * lane, halves);
    }
}

// G of step n from X of the step before: base - R R^T (X^T X).
DEVICE void join(Shared &s, int n, int lane) {
  const int g = lane >> 2, t = lane & 3, odd = n & 1;
  float sum[NT / 2][NT][2][4];  // small halves, large ones
#pragma unroll
  for (int r = 0; r < NT / 2; ++r) clear<2 * NT>(sum[r][0]);
  if (n > 0) {
#pragma unroll
    for (int c = 0; c < NT; ++c) {
      float x[NT][4];
#pragma unroll
      for (int m = 0; m < NT; ++m) load4(x[m], s.seen[NT * c + m] + SEEN_ROW * g + 4 * t);
#pragma unroll
      for (int pass = 0; pass < 3; ++pass)  // small by large, large by small, large by large
#pragma unroll
        for (int r = 0; r < NT / 2; ++r)
#pragma unroll
          for (int m = 0; m <= 2 * r + 1; ++m) {
            const int a = pass == 0 ? 2 : 0, b = pass == 1 ? 2 : 0;
            mma(sum[r][m][pass == 2], as_bits(x[2 * r][a]), as_bits(x[2 * r + 1][a]), as_bits(x[2 * r][a + 1]),
                as_bits(x[2 * r + 1][a + 1]), as_bits(x[m][b]), as_bits(x[m][b + 1]));
          }
    }
  }
  wait_at<BASE, 64>();
#pragma unroll
  for (int r = 0; r < NT / 2; ++r)
#pragma unroll
    for (int m = 0; m <= 2 * r + 1; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * r + 8 * half + g, column = 8 * m + 2 * t, at = row * TILE_ROW + column;
        const float reached = s.since[odd][row];
        float entry[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float fallen = sum[r][m][1][2 * half + i] + sum[r][m][0][2 * half + i];
          entry[i] = s.base[at + i] - reached * s.since[odd][column + i] * fallen;
        }
        store2(s.joint[odd] + at, entry[0], entry[1]);
      }
  sync_warp();
}

// Column `lane` of C.
DEVICE void crossed(float e[STEP], const Shared &s, int odd, int lane) {
  float link[4];
  gather(e, s.cross, lane);
#pragma unroll
  for (int j = 0; j < STEP; ++j) {
    if (j % 4 == 0) load4(link, s.link[odd] + lane * TILE_ROW + j);
    e[j] = s.reach[odd][j] * e[j] + s.refill[odd][j] * link[j % 4];
  }
}

// U times the column e beside G, whose column c is a: lane c has both, and of a the rows j <= c count. Row j, over D_j,
// goes to beside[j]; D_c is given back. Rows move up by one with every pivot, so that a loop of few instructions does.
DEVICE float eliminate(float a[STEP], float e[STEP], float *beside, float (*row)[STEP], int c) {
  float pivot = 1.f;
#pragma unroll
  for (int block = 0; block < STEP; block += 8) {
    const int left = STEP - block;  // rows that may be there still
#pragma unroll 1
    for (int j = block; j < block + 8; ++j) {
      float *to = row[j & 1];
      if (c > j) to[c - j - 1] = a[0];
      const float d = shuffle(a[0], j), inverse = reciprocal(d), scaled = a[0] * inverse, over = e[0] * inverse;
      if (c == j) pivot = d;
      beside[j * TILE_ROW + c] = over;
      sync_warp();
#pragma unroll
      for (int i = 0; i < left - 1; i += 4) {
        float entry[4];
        load4(entry, to + i);
#pragma unroll
        for (int k = i; k < i + 4 && k < left - 1; ++k)
          a[k] = a[k + 1] - entry[k - i] * scaled, e[k] = e[k + 1] - entry[k - i] * over;
      }
    }
  }
  return pivot;
}

// X from its rows over sqrt(D), split as right sides of products: this lane has column `lane`.
DEVICE void tell(Shared &s, const float *rows, const float *roots, int lane) {
  const int m = lane >> 3, g = lane & 7;
#pragma unroll
  for (int c = 0; c < NT; ++c)
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int row = 8 * c + 2 * t;
      float halves[4];
      split_pair(halves, rows[row * TILE_ROW + lane] * roots[row], rows[(row + 1) * TILE_ROW + lane] * roots[row + 1]);
      store4(s.seen[NT * c + m] + SEEN_ROW * g + 4 * t, halves);
    }
  sync_warp();
}

// Both factor warps: they eliminate the same G by the same instructions. What differs is asked by `is`, so that the
// compiler does not make two copies of the elimination: the multiprocessor's caches hold some 100 KB of instructions.
DEVICE void factor_warp(Shared &s, int crossing, float *innovation_var, int length, int H) {
  const int c = THREAD & 31, steps = (length + STEP - 1) / STEP;
  float *beside = s.beside[crossing];
  if (!is(crossing) && steps) wait_at<WRITTEN, MATRIX_AND(2)>();  // of step -1
#pragma unroll 1
  for (int n = 0; n < steps; ++n) {
    const int odd = n & 1;
    float a[STEP], e[STEP];  // column c of G, of which rows j <= c count, and one beside it
#pragma unroll
    for (int j = 0; j < STEP; ++j) e[j] = j == c ? 1.f : 0.f;
    if (is(crossing)) {
      join(s, n, c);
      arrive_at<JOINT, 96>();
      if (n == steps - 1) break;
      wait_at<CROSSED, MATRIX_AND(2)>();
      crossed(e, s, odd, c);
    } else {
      wait_at<JOINT, 96>();
      if (n < steps - 1) arrive_at<CROSSED, MATRIX_AND(2)>();
    }
    load_row(a, s.joint[odd], c);
    const float pivot = eliminate(a, e, beside, s.row[crossing], c), square = root(pivot);
    if (is(crossing)) {
      s.roots[c] = square;
      sync_warp();
      tell(s, beside, s.roots, c);
      arrive_at<SEEN, MATRIX_AND(1)>();
    } else {
      const int token = STEP * n + c;
      s.factor[c] = s.left_over[odd][c] * square;
      if (token < length) innovation_var[(long long)token * H] = pivot;
      sync_warp();
      prepare_mix(s, odd, c);
      arrive_at<FACTORS, MATRIX_AND(1)>();
      wait_at<WRITTEN, MATRIX_AND(2)>();
    }
  }
}

GLOBAL covariance_forward(const KEY *k, const float *log_retention, const float *process_noise,
                                          const float *obs_noise, const float *floor, const float *initial,
                                          const int *seq_start, const int *chunk_first, float *gain,
                                          float *innovation_var, float *checkpoint, float *final, int H, int G,
                                          int steps_a_chunk) {
  SHARED_MEMORY(Shared, s);
  const int sequence = BLOCK / H, head = BLOCK % H, warp = uniform(THREAD >> 5);
  const long long start = seq_start[sequence];
  const int length = seq_start[sequence + 1] - (int)start;
  const long long gates = start * H + head;
  if (warp < MATRIX_WARPS) {
#if MATRIX_REGISTERS
    more_registers<MATRIX_REGISTERS>();
#endif
    matrix_warp(s, k + start * G * K, initial, gain + start * H * K, checkpoint, final, length, chunk_first[sequence],
                steps_a_chunk, BLOCK, head, H, G);
    return;
  }
#if MATRIX_REGISTERS
  fewer_registers<OTHER_REGISTERS>();
#endif
  if (warp == MATRIX_WARPS)
    gate_warp(s, log_retention + gates, process_noise + gates, obs_noise + gates, floor[head], length, H);
  else if (warp < MATRIX_WARPS + 3)
    factor_warp(s, warp == MATRIX_WARPS + 1, innovation_var + gates, length, H);
}
