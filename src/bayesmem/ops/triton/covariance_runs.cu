// What a block of the covariance pass filters, and how segments that are cut are held against one another.

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
