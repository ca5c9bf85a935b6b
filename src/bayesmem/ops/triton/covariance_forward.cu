// The kernel of the covariance pass: what a block filters, and how segments that are cut are held against one another.

// Where a chain's covariances lie: what was kept of it by chunk, if it was, what its segments left, and else began with.
struct Places {
  float *chunks, *edge;
  int steps, stride;  // steps a chunk, 0 where nothing is kept; from one chunk to the next
};

DEVICE float *left_at(const Places &at, int segment) { return at.edge + 2ll * segment * K * K; }
DEVICE float *begun_at(const Places &at, const Cuts &cuts, int segment) {
  const int token = segment ? segment * cuts.own + cuts.warm : 0;
  if (at.steps) return at.chunks + (long long)(token / (16 * at.steps)) * at.stride;
  return segment ? left_at(at, segment) + K * K : nullptr;
}

#define AGREEMENT 9.0949e-13f  // 2^-40: the square of what entries may differ by, of the root of their diagonals' product

// Whether the segment after a cut began with what that before it left.
DEVICE bool agree(int *told, const Places &at, const Cuts &cuts, int cut) {
  const float *begun = begun_at(at, cuts, cut + 1), *left = left_at(at, cut);
  bool all = true;
  float diagonal[(K + 31) / 32];
#pragma unroll
  for (int j = 0; j < (K + 31) / 32; ++j) {
    const int column = (THREAD & 31) + 32 * j;
    diagonal[j] = column < K ? load_fresh(left + column * K + column) : 0.f;
  }
#pragma unroll 4
  for (int row = THREAD / 32; row < K; row += THREADS / 32) {
    const float own = AGREEMENT * load_fresh(left + row * K + row);
#pragma unroll
    for (int j = 0; j < (K + 31) / 32; ++j) {
      const int column = (THREAD & 31) + 32 * j, from = row * K + column;
      const float apart = column < K ? load_fresh(begun + from) - load_fresh(left + from) : 0.f;
      all = all && apart * apart <= fminf(own * diagonal[j], 3e38f);  // no NaN agrees, nor infinity
    }
  }
  return agreed_by_all(told, all);
}

// What is to be filtered next: a segment for the first time, or anew from what the one before it left.
DEVICE void set_run(Run &run, const Cuts &cuts, const Places &at, int segment, long long start, int length,
                    const float *initial, float *final) {
  run.segment = segment, run.warm = segment && !MEND ? cuts.warm : 0;
  const int first = segment * cuts.own + (MEND ? cuts.warm : 0), whole = cuts.own + (MEND ? 0 : cuts.warm);
  run.start = start + first, run.length = length - first < whole ? length - first : whole;
  run.from = MEND ? left_at(at, segment - 1) : segment ? nullptr : initial;
  run.kept = begun_at(at, cuts, segment), run.to = segment == cuts.many - 1 ? final : left_at(at, segment);
}

#if MEND
GLOBAL covariance_mend(
#else
GLOBAL covariance_forward(
#endif
    const KEY *k, const float *log_retention, const float *process_noise, const float *obs_noise, const float *floor,
    const float *initial, const int *seq_start, const int *chunk_first, float *gain, unsigned short *gain_low,
    float *innovation_var, float *checkpoint, float *final, float *edge, int *count, int H, int G, int steps_a_chunk,
    int segments, int initial_stride) {
  SHARED_MEMORY(Shared, s);
  if (CLUSTER > 1) sync_all();  // all blocks have begun: their shared memory is there
  const int chain = MEND ? BLOCK : BLOCK / CLUSTER / segments, sequence = chain / H, head = chain % H;
  const Counts counts = counts_of(count, chain, segments);
  int segment = MEND ? load_fresh(counts.mend) : BLOCK / CLUSTER % segments;
  if (MEND && segment == 0) return;
  const long long start = seq_start[sequence], gates = start * H + head, square = K * K;
  const int length = seq_start[sequence + 1] - (int)start, key_head = head / (H / G);
#if MEND
  if (THREAD == 0) s.cuts = cuts_left(counts, length);
#else
  if (THREAD < 32) {
    const int unit = 16 * (steps_a_chunk ? steps_a_chunk : 4);
    const Cuts cuts = cuts_of(k + (start * G + key_head) * K, log_retention + gates, process_noise + gates,
                              obs_noise + gates, floor[head], length, segments, unit, H, G * K);
    if (THREAD == 0) s.cuts = cuts;
  }
#endif
  sync_all();
  if (segment >= s.cuts.many) return;
  const Places at = {checkpoint + ((long long)chunk_first[sequence] * H + head) * square, edge + 2 * chain * segments * square,
                     steps_a_chunk, H * K * K};
  do {
    if (THREAD == 0)
      set_run(s.run, s.cuts, at, segment, start, length, initial + (long long)sequence * initial_stride + head * square,
              final + chain * square);
    sync_all();
    const long long own = s.run.start * H + head;
    if (THREAD < 32 * OWN_WARPS)
      matrix_warp(s, k, gain, gain_low, steps_a_chunk, head, H, G);
    else if (THREAD < 32 * OWN_WARPS + 32)
      gate_warp(s, log_retention + own, process_noise + own, obs_noise + own, floor[head], s.run.length, H);
    else
      factor_warp(s, innovation_var + own, s.run.length, s.run.warm, H);
    if (CLUSTER > 1 || s.cuts.many == 1) break;
    segment = to_mend(&s.told, counts, s.cuts, s.run.segment, [&](int cut) { return agree(&s.told, at, s.cuts, cut); });
  } while (MEND && segment);
  if (CLUSTER > 1) sync_all();  // and is, until none writes into it any more
}
