// The kernel of the covariance's reverse chain, and how its segments are held against one another (covariance_chain_run.cu).

// Whether a segment began with what the one before it left: by the root of the mean square, since a gradient's diagonal says
// nothing of its size. 2^-34 is the square of what pairs of bfloat16 are rounded to.
DEVICE bool agree(Shared &s, const float *begun, const float *left) {
  float apart = 0.f, whole = 0.f;
#pragma unroll 4
  for (int i = THREAD; i < KDIM * KDIM; i += THREADS) {
    const float x = load_fresh(begun + i), y = load_fresh(left + i);
    apart += (x - y) * (x - y), whole += y * y;
  }
  apart = sum_of(apart), whole = sum_of(whole);
  if (THREAD % 32 == 0) s.part[THREAD / 32] = apart, s.after[THREAD / 32] = whole;
  sync_all();
  apart = whole = 0.f;
  for (int i = 0; i < THREADS / 32; ++i) apart += s.part[i], whole += s.after[i];
  return agreed_by_all(&s.told, apart <= 5.8208e-11f * fminf(whole, 3e38f));  // no NaN agrees, nor infinity
}

#if MEND
GLOBAL covariance_chain_mend(
#else
GLOBAL covariance_chain(
#endif
    const HALF *gain_high, const HALF *gain_low, const float *alpha, const HALF *read_high, const HALF *read_low,
    const float *log_retention, const float *to_end, const float *checkpoints, const float *final_cov, const KEY *k,
    const float *process_noise, const float *obs_noise, const float *floor, const float *d_final, HALF *sent_high,
    HALF *sent_low, float *met, float *trace, float *overlap, float *d_initial, float *edge, int *count,
    const int *seq_start, const int *chunk_first, int H, int G, int segments) {
  SHARED_MEMORY(Shared, s);
  const int chain = MEND ? BLOCK : BLOCK / segments, sequence = chain / H, head = chain % H, square = KDIM * KDIM;
  const int begin = seq_start[sequence], end = seq_start[sequence + 1], chunk_begin = chunk_first[sequence];
  const Counts counts = counts_of(count, chain, segments);
  int segment = MEND ? load_fresh(counts.mend) : BLOCK % segments;
  if (MEND && segment == 0) return;
#if MEND
  if (THREAD == 0) s.cuts = cuts_left(counts, end - begin);
#else
  if (THREAD < 32) {
    const long long gates = (long long)begin * H + head, keys = ((long long)begin * G + head / (H / G)) * KDIM;
    const Cuts cuts = cuts_of(k + keys, log_retention + gates, process_noise + gates, obs_noise + gates, floor[head],
                              end - begin, segments, TOKENS, H, G * KDIM);
    if (THREAD == 0) s.cuts = cuts;
  }
#endif
  sync_all();
  if (segment >= s.cuts.many) return;
  const Chain x = {{gain_high, gain_low}, {read_high, read_low}, alpha, log_retention, to_end, checkpoints,
                   final_cov + (long long)chain * square, {sent_high, sent_low}, met, trace, overlap,
                   begin, end, chunk_begin, chunk_first[sequence + 1] - chunk_begin, head, H};
  const float *const last = d_final ? d_final + (long long)chain * square : nullptr;
  float *const edges = edge + 2ll * chain * segments * square;  // what a segment left, and what it began with
  do {
    const int warm = s.cuts.warm / TOKENS, own = s.cuts.own / TOKENS;
    const bool leaves = segment == s.cuts.many - 1;
    Run run;
    run.first = segment * own + (MEND ? warm : 0), run.warm = segment && !MEND ? warm : 0;
    run.stop = run.first + own + (MEND ? 0 : warm) < x.count ? run.first + own + (MEND ? 0 : warm) : x.count;
    run.from = MEND ? edges + 2 * (segment - 1) * square : segment ? nullptr : last;
    run.begun = edges + (2 * segment + 1) * square;
    run.to = leaves ? d_initial + (long long)chain * square : edges + 2 * segment * square;
    go_back(s, x, run, leaves);
    if (s.cuts.many == 1) break;
    segment = to_mend(&s.told, counts, s.cuts, segment,
                      [&](int cut) { return agree(s, edges + (2 * cut + 3) * square, edges + 2 * cut * square); });
  } while (MEND && segment);
}
