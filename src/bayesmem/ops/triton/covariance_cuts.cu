// Where few chains leave multiprocessors idle: a chain cut into segments that run side by side (docs/math.md 5.5).
//
// A covariance forgets what it was. So every segment but the first begins `warm` tokens early, from a guess of what is
// there, and keeps nothing of what it makes until its own tokens come. That these begin as they must is not assumed but
// seen: the covariance that a segment began with is held against the one that the segment before it left, entry by entry
// to a few roundings of float32. Where they differ the segment is filtered anew from the latter, and so on until they
// agree: at worst the whole chain, one segment after the other, as without cuts.
//
// How soon it forgets is estimated from 64 tokens. On average, over directions, and with p for the variance of each,
//
//   p <- exp(-f) p + n - p^2 / (p + rho) / K          f forgetting, n noise, rho = r / |k|^2
//
// whose steady state is the guess, and whose slope there, f + (1 - (rho / (p + rho))^2) / K, what is forgotten a token.

#define NATS 15.f            // to be forgotten of the guess; 11 to 14 leave 2^-20 of it (docs/notes/003-kernels.md)
#define AGREEMENT 9.0949e-13f  // 2^-40: the square of what entries may differ by, of the root of their diagonals' product
#define SAMPLES 2            // tokens looked at by a lane

DEVICE float mean_of(float x) {  // over the lanes of a warp
#pragma unroll
  for (int mask = 16; mask; mask >>= 1) x += shuffle_xor(x, mask);
  return x / 32.f;
}

// At most `most` segments of whole units of tokens, or one. All warps of all blocks of a chain come to the same.
DEVICE Cuts cuts_of(const KEY *k, const float *log_retention, const float *process_noise, const float *obs_noise,
                    float floor, int length, int most, int unit, int H, int row) {
  const Cuts none = {0, 1 << 30, 1, 0.f};
  if (most == 1) return none;
  float forgotten = 0.f, noise = 0.f, rho[SAMPLES];
#pragma unroll
  for (int i = 0; i < SAMPLES; ++i) {
    const long long token = (2ll * (SAMPLES * (THREAD & 31) + i) + 1) * length / (64 * SAMPLES);
    float power = 0.f;
    for (int column = 0; column < K; column += 8) {
      float x[8];
      as_floats(x, load_keys(k + token * row, column, true));
#pragma unroll
      for (int j = 0; j < 8; ++j) power += x[j] * x[j];
    }
    forgotten += fminf(-2.f * log_retention[token * H], 1.f) / SAMPLES;
    noise += process_noise[token * H] / SAMPLES;
    rho[i] = fmaxf(obs_noise[token * H] / power, floor);
  }
  const float f = mean_of(forgotten), n = mean_of(noise);
  float p = n / (f + 1.f / K);
  for (int round = 0; round < 8; ++round) {
    float told = 0.f;
#pragma unroll
    for (int i = 0; i < SAMPLES; ++i) told += p / (p + rho[i]) / SAMPLES;
    p = root(p * (n / (f + mean_of(told) / K)));
  }
  float slope = 0.f;
#pragma unroll
  for (int i = 0; i < SAMPLES; ++i) slope += (1.f - rho[i] / (p + rho[i]) * (rho[i] / (p + rho[i]))) / SAMPLES;
  const float wanted = NATS / (f + mean_of(slope) / K);
  if (!(wanted < .75f * length)) return none;  // NaN too
  const int warm = ((int)wanted / unit + 1) * unit, rest = length - warm;
  const int own = (rest + most * unit - 1) / (most * unit) * unit;
  if (rest <= own || warm + own > length - length / 8) return none;
  return Cuts{warm, own, (rest + own - 1) / own, p};
}

// What all threads hear of the first.
DEVICE int heard(Shared &s, int x) {
  if (THREAD == 0) s.told[0] = x;
  sync_all();
  const int told = s.told[0];
  sync_all();
  return told;
}

// How many blocks came here before this one, whose writes until then can be read.
DEVICE int arrivals(Shared &s, int *count) {
  fence_device();
  sync_all();
  const int before = heard(s, THREAD == 0 ? add_one(count) : 0);
  fence_device();
  return before;
}

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

// Whether the segment after a cut began with what that before it left.
DEVICE bool agree(Shared &s, const Places &at, int cut) {
  const float *begun = begun_at(at, s.cuts, cut + 1), *left = left_at(at, cut);
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
      all = all && apart * apart <= own * diagonal[j];  // no NaN agrees
    }
  }
  if (THREAD == 0) s.told[0] = 1;
  sync_all();
  if (!all) s.told[0] = 0;
  sync_all();
  const bool agreed = s.told[0];
  sync_all();
  return agreed;
}

// What is to be filtered next: a segment for the first time, or anew from what the one before it left.
DEVICE void set_run(Run &run, const Cuts &cuts, const Places &at, int segment, bool anew, long long start, int length,
                    const float *initial, float *final) {
  run.segment = segment, run.warm = segment && !anew ? cuts.warm : 0;
  const int first = segment * cuts.own + (anew ? cuts.warm : 0), whole = cuts.own + (anew ? 0 : cuts.warm);
  run.start = start + first, run.length = length - first < whole ? length - first : whole;
  run.from = anew ? left_at(at, segment - 1) : segment ? nullptr : initial;
  run.kept = begun_at(at, cuts, segment), run.to = segment == cuts.many - 1 ? final : left_at(at, segment);
}

// After a run: the segment to filter anew, or 0. Cuts before and after a segment are looked at by whoever comes to them
// second, and all of them by whoever is done last. Counts, of a chain: who was at a cut, what agreed there, who is done.
DEVICE int to_mend(Shared &s, const Places &at, int *count, int segments) {
  int *const agreed = count + segments;
  const int now = s.run.segment, cuts = s.cuts.many - 1;
#if MEND
  fence_device();
  sync_all();
#else
  for (int cut = now ? now - 1 : 0; cut <= now && cut < cuts; ++cut)
    if (arrivals(s, count + cut)) {
      const bool same = agree(s, at, cut);
      if (THREAD == 0) agreed[cut] = same;
    }
  if (arrivals(s, agreed + segments) < cuts) return 0;
#endif
  for (int cut = MEND ? now : 0; cut < cuts; ++cut)
    if (!(MEND && cut == now ? agree(s, at, cut) : load_fresh(agreed + cut))) return cut + 1;
  return 0;
}
