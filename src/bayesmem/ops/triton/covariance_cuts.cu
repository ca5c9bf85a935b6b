// Where few chains leave multiprocessors idle: a chain cut into segments that run side by side (docs/math.md 5.5).
//
// A covariance forgets what it was, and so does the gradient that runs back through it. So every segment but the first
// begins `warm` tokens early, from a guess of what is there, and keeps nothing of what it makes until its own tokens come.
// That these begin as they must is not assumed but seen: what a segment began with is held against what the one before it
// left. Where they differ a kernel that follows (MEND) goes through that segment anew from the latter, and so on until they
// agree: at worst through the whole chain, one segment after the other, as without cuts.
//
// How soon a chain forgets is estimated from 64 tokens. On average, over directions, and with p for the variance of each,
//
//   p <- exp(-f) p + n - p^2 / (p + rho) / K          f forgetting, n noise, rho = r / |k|^2
//
// whose steady state is the guess, and whose slope there, f + (1 - (rho / (p + rho))^2) / K, what is forgotten a token.

#define NATS 15.f  // to be forgotten of the guess; 11 to 14 leave 2^-20 of it (docs/notes/003-kernels.md)
#define SAMPLES 2  // tokens looked at by a lane

struct Cuts {
  int warm, own, many;  // tokens a segment warms up on, tokens of its own (the first has both), segments
  float level;          // a guess of the covariance: so much of the identity
};

DEVICE float mean_of(float x) {  // over the lanes of a warp
#pragma unroll
  for (int mask = 16; mask; mask >>= 1) x += shuffle_xor(x, mask);
  return x / 32.f;
}

// At most `most` segments of whole units of tokens, or one; for a warp. All blocks of a chain come to the same.
DEVICE Cuts cuts_of(const KEY *k, const float *log_retention, const float *process_noise, const float *obs_noise,
                    float floor, int length, int most, int unit, int H, int row) {
  const Cuts none = {0, 1 << 30, 1, 0.f};
  if (most == 1) return none;
  float forgotten = 0.f, noise = 0.f, rho[SAMPLES];
#pragma unroll
  for (int i = 0; i < SAMPLES; ++i) {
    const long long token = (2ll * (SAMPLES * (THREAD & 31) + i) + 1) * length / (64 * SAMPLES);
    float power = 0.f;
#pragma unroll
    for (int column = 0; column < K; column += 8) {
      float x[8];
      as_floats(x, load_keys(k + token * row, column, length > 0));
#pragma unroll
      for (int j = 0; j < 8; ++j) power += x[j] * x[j];
    }
    if (length == 0) continue;
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

// What all threads hear of the first, by way of `told`.
DEVICE int heard(int *told, int x) {
  if (THREAD == 0) *told = x;
  sync_all();
  const int all = *told;
  sync_all();
  return all;
}

// Whether all threads say so.
DEVICE bool agreed_by_all(int *told, bool mine) {
  if (THREAD == 0) *told = 1;
  sync_all();
  if (!mine) *told = 0;
  sync_all();
  return heard(told, *told);
}

// How many blocks came here before this one, whose writes until then can be read.
DEVICE int arrivals(int *told, int *count) {
  fence_device();
  sync_all();
  const int before = heard(told, THREAD == 0 ? add_one(count) : 0);
  fence_device();
  return before;
}

// After segment `now`: the one to go through anew, or 0. Cuts before and after a segment are looked at by whoever comes to
// them second, and all of them by whoever is done last, who leaves to the kernel that follows which is to be mended.
// Counts, of a chain: who was at a cut, what agreed there, who is done, what is to be mended.
template <class Agree> DEVICE int to_mend(int *told, int *count, int segments, int now, int cuts, Agree agree) {
  int *const agreed = count + segments, *const done = agreed + segments;
#if MEND
  fence_device();
  sync_all();
#else
  for (int cut = now ? now - 1 : 0; cut <= now && cut < cuts; ++cut)
    if (arrivals(told, count + cut)) {
      const bool same = agree(cut);
      if (THREAD == 0) agreed[cut] = same;
    }
  if (arrivals(told, done) < cuts) return 0;
#endif
  for (int cut = MEND ? now : 0; cut < cuts; ++cut)
    if (!(MEND && cut == now ? agree(cut) : load_fresh(agreed + cut))) {
      if (!MEND && THREAD == 0) done[1] = cut + 1;
      return cut + 1;
    }
  return 0;
}
DEVICE int *counts_of(int *count, int chain, int segments) { return count + chain * (2 * segments + 2); }
DEVICE int left_to_mend(const int *count, int segments) { return load_fresh(count + 2 * segments + 1); }
