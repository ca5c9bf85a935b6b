// Gradients of the mean pass inside a chunk (mean_backward_local.py says what they are) on Hopper's tensor cores: one block of
// threads a (chunk, head), streams of bfloat16, the gradient of the gains in float32. Every stream is read once.
//
// All that is made has a row a token; every warpgroup makes 64 channels of what has channels for its columns, WIDTH columns of
// what has tokens. Operands lie as in memory, in swizzled rows: dA serves as it is and turned, and the gains, queries and keys
// are contracted along their tokens. Shared memory holds 7/10 of what is read, the gradient of the outputs and dV, the
// innovations, both states; the gains, queries and keys come into places that are done with.
//
// Compiled with: KDIM (64 or 128: K), VDIM (64, 128, 256: V), THREADS (2 KDIM), and what the prelude asks for. Files before
// it: what the machine gives (covariance_prelude.cu, covariance_wgmma.cu, hopper_prelude.cu), operands (covariance_pairs.cu),
// and mean_local_parts.cu.

GLOBAL mean_local(const HALF *q, const HALF *k, const HALF *written, const float *log_decay, const float *factors,
                  const HALF *innovation, const HALF *means, const HALF *d_out, const HALF *dv, const HALF *d_means, HALF *dq,
                  HALF *dk, float *d_gain, float *d_log_decay, const int *seq_start, const int *chunk_seq,
                  const int *chunk_first, int H, int G) {
  SHARED_MEMORY(Shared, s);
  const int warp = uniform(THREAD / 32), lane = THREAD % 32, t = lane % 4, group = warp / 4;
  const int token = 16 * (warp % 4) + lane / 4;  // the first of this thread's two rows, 8 apart
  const int column = WIDTH * group + 2 * t;      // of tokens by tokens, the first of its columns; every 8th pair is its own too
  const int gap = token - column;                // to its row
  const int chunk = BLOCK / H, head = BLOCK % H;
  const long long at = BLOCK;

  bring<VDIM, KDIM>(s.d_mean[0], d_means + at * KDIM * VDIM, VDIM, KDIM);
  if (THREAD < TOKENS / 2) copy(s.factors[0] + 4 * THREAD, factors + at * 2 * TOKENS + 4 * THREAD, true);
  const int sequence = chunk_seq[chunk];
  const long long first = seq_start[sequence] + (long long)TOKENS * (chunk - chunk_first[sequence]);
  const int live = seq_start[sequence + 1] - (int)first;
  if (live <= 0) {  // a chunk made room for and not filled
    copies_wait();
    return;
  }

  // What lies by token; tokens that do not exist are zeros.
  const long long row = first * H + head, key_row = first * G + head / (H / G);
  float decay[2] = {0.f, 0.f};
  if (warp == 0) decays(decay, log_decay + row, live, H, lane);
  bring<VDIM, TOKENS>(s.error[0], innovation + row * VDIM, (long long)H * VDIM, live);
  bring<VDIM, TOKENS>(s.d_out[0], d_out + row * VDIM, (long long)H * VDIM, live);
  bring<VDIM, TOKENS>(s.dv[0], dv + row * VDIM, (long long)H * VDIM, live);
  copies_commit();
  bring<VDIM, KDIM>(s.mean[0], means + at * KDIM * VDIM, VDIM, KDIM);
  copies_commit();
  if (warp == 0) sum_logs(s.sum[0], s.sum[1], decay, lane);
  copies_wait<1>();
  fence_for_groups();
  sync_all();  // all but the mean is there

  // dO E^T and dV E^T of this warpgroup's columns, and E dM^T
  float d_seen[WIDTH / 8][4], d_reads[WIDTH / 8][4], carried[8][4];
  clear<WIDTH / 8>(d_seen), clear<WIDTH / 8>(d_reads), clear<8>(carried);
  hold_all<WIDTH / 8>(d_seen), hold_all<WIDTH / 8>(d_reads), hold_all<8>(carried);
  group_begin();
#pragma unroll
  for (int c = 0; c < VDIM / 8; c += 2) {
    product<WIDTH>(d_seen, eighth_of(s.d_out, c, 0), 0, eighth_of(s.error, c, WIDTH * group), 0);
    product<WIDTH>(d_reads, eighth_of(s.dv, c, 0), 0, eighth_of(s.error, c, WIDTH * group), 0);
  }
  group_commit();
#pragma unroll
  for (int c = 0; c < VDIM / 8; c += 2)
    product<64>(carried, eighth_of(s.error, c, 0), 0, eighth_of(s.d_mean, c, 64 * group), 0);
  group_commit();
  group_wait<1>();
  hold_all<WIDTH / 8>(d_seen), hold_all<WIDTH / 8>(d_reads);
  unsigned seen[WIDTH / 16][4], reads[WIDTH / 16][4];
  float itself[2] = {0.f, 0.f};
  rate(seen, reads, itself, d_seen, d_reads, s.sum, token, column, gap);
  copies_wait();
  const float kept = overlap(s.mean[0], s.d_mean[0]);
  group_wait<0>();
  hold_all<8>(carried);
  fence_for_groups();
  sync_all();  // the mean is there, and nobody reads E, dM and the sums any more

  bring<KDIM, TOKENS>(s.gain[0], written + row * KDIM, (long long)H * KDIM, live);
  bring<KDIM, TOKENS>(s.q[0], q + key_row * KDIM, (long long)G * KDIM, live);
#pragma unroll
  for (int j = 0; j < WIDTH / 8; j += 2) {
    store_tiles(s.seen + four_tiles(WIDTH / 8 * group + j), seen[j / 2]);
    store_tiles(s.reads + four_tiles(WIDTH / 8 * group + j), reads[j / 2]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int one = token + 8 * i;
    if (one / WIDTH == group && one % 8 / 2 == t) s.itself[one] = itself[i];
  }
  if (lane == 0) s.part[warp] = kept;
  if (THREAD == 0) s.row = row, s.key_row = key_row, s.live = live;  // read again, not held
  const int again = uniform(THREAD / THREADS);  // zero: nor are operands' places
  float q_made[8][4], k_made[8][4];  // dQ, -dK
  clear<8>(q_made), clear<8>(k_made);
  hold_all<8>(q_made), hold_all<8>(k_made);
  group_begin();
#pragma unroll
  for (int c = 0; c < VDIM / 8; c += 2) {
    product<64>(q_made, eighth_of(s.d_out, c, again), 0, eighth_of(s.mean, c, 64 * group), 0);
    product<64>(k_made, eighth_of(s.dv, c, again), 0, eighth_of(s.mean, c, 64 * group), 0);
  }
  group_commit();
  group_wait<0>();
  hold_all<8>(q_made), hold_all<8>(k_made);
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float since = s.factors[0][token + 8 * (i >> 1)];
      q_made[j][i] *= since, k_made[j][i] *= since;
    }
  copies_wait();
  fence_for_groups();
  sync_all();  // dA, -dX, the gains and queries are there, and nobody reads dO, dV and the mean any more

  bring<KDIM, TOKENS>(s.k[0], k + s.key_row * KDIM, (long long)G * KDIM, s.live);
#pragma unroll
  for (int j = 0; j < 8; ++j) store4(s.carried[j][THREAD], carried[j]);  // registers are scarce until dg
  hold_all<8>(q_made), hold_all<8>(k_made);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) turned_product<0, 1>(q_made, s.seen + 8 * c, s.gain[group] + 64 * 8 * c);
  group_commit();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) turned_product<0, 1>(k_made, s.reads + 8 * c, s.gain[group] + 64 * 8 * c);
  group_commit();
  group_wait<1>();
  hold_all<8>(q_made);
  const float alone[2] = {s.itself[token], s.itself[token + 8]};
  float db[2] = {0.f, 0.f}, sent[2] = {0.f, 0.f};
#pragma unroll
  for (int c = 0; c < 8; c += 2) {
    unsigned queries[4], gains[4];
    load_tiles(queries, s.q[group] + four_tiles(c)), load_tiles(gains, s.gain[group] + four_tiles(c));
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        db[i >> 1] += one_of(queries, j, i) * q_made[c + j][i];
        q_made[c + j][i] += alone[i >> 1] * one_of(gains, j, i);
      }
    keep_tiles(s.made[group], c, q_made);
  }
  send_rows(dq, s, group, H);
  group_wait<0>();
  hold_all<8>(k_made);
  copies_wait();
  fence_for_groups();
  sync_all();  // the keys are there

  // dA^T Q + dX^T K
  float g_made[8][4];
  clear<8>(g_made);
  hold_all<8>(g_made);
  group_begin();
#pragma unroll
  for (int c = 0; c < EIGHTHS; c += 2) {
    turned_product<1, 1>(g_made, s.seen + 64 * 8 * c, s.q[group] + 64 * 8 * c);
    turned_product<1, -1>(g_made, s.reads + 64 * 8 * c, s.k[group] + 64 * 8 * c);
  }
  group_commit();
#pragma unroll
  for (int c = 0; c < 8; c += 2) {
    unsigned keys[4];
    load_tiles(keys, s.k[group] + four_tiles(c));
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) db[i >> 1] -= one_of(keys, j, i) * k_made[c + j][i], k_made[c + j][i] *= -1.f;
    keep_tiles(s.made[group], c, k_made);
  }
  send_rows(dk, s, group, H);
  group_wait<0>();
  hold_all<8>(g_made);
  const float left[2] = {s.factors[1][token], s.factors[1][token + 8]};
  float *to = d_gain + (s.row + (long long)token * H) * KDIM + 64 * group + 8 * (t & 1) + 4 * (t >> 1);
#pragma unroll
  for (int c = 0; c < 8; c += 2) {
    unsigned queries[4], gains[4];
    load_tiles(queries, s.q[group] + four_tiles(c)), load_tiles(gains, s.gain[group] + four_tiles(c));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float before[4];
      load4(before, s.carried[c + j][THREAD]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float gain = one_of(gains, j, i), after = left[i >> 1] * before[i];
        sent[i >> 1] += gain * after, db[i >> 1] -= gain * g_made[c + j][i];
        g_made[c + j][i] += after + alone[i >> 1] * one_of(queries, j, i);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned four[4];
      four_of(four, g_made[c] + 2 * i, g_made[c + 1] + 2 * i, t & 1);
      send16(to + 8ll * i * H * KDIM + 8 * c, four, token + 8 * i < s.live);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    db[i] += shuffle_xor(db[i], 1), sent[i] += shuffle_xor(sent[i], 1);
    db[i] += shuffle_xor(db[i], 2), sent[i] += shuffle_xor(sent[i], 2);
    if (t == 0) s.told[warp][lane / 4 + 8 * i] = db[i], s.told[warp][16 + lane / 4 + 8 * i] = sent[i];
  }
  sync_all();  // what every token adds to the logs is there
  if (warp == 0) gather(s, d_log_decay + s.row, s.live, H, lane);
}
