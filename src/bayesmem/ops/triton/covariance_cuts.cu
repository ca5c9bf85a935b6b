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
// whose steady state is the guess, and whose slope there, f + (1 - (rho / (p + rho))^2) / K, what is forgotten a token. Where
// keys lie alike, so that some directions are hardly told of, f alone counts, and the guess is what is known without any.

#ifndef NATS
#define NATS 15.f  // to be forgotten of the guess; 10 to 12 leave 2^-20 of it (docs/notes/003-kernels.md)
#endif
// How many times as alike keys may be as those that lie in all directions, by the squares of 96 angles: of such keys one chain
// in a thousand takes more, by chance.
#define ALIKE 1.6f

struct Cuts {
  int warm, own, many;  // tokens a segment warms up on, tokens of its own (the first has both), segments
  float level;          // a guess of the covariance: so much of the identity
};

DEVICE float sum_of(float x) {  // over the lanes of a warp
#pragma unroll
  for (int mask = 16; mask; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}
DEVICE float mean_of(float x, float y) { return sum_of(x + y) / 64.f; }

// At most `most` segments of whole units of tokens, or one; for a warp, of whose lanes each looks at two tokens. All blocks of
// a chain come to the same.
DEVICE Cuts cuts_of(const KEY *k, const float *log_retention, const float *process_noise, const float *obs_noise,
                    float floor, int length, int most, int unit, int H, int row) {
  const Cuts none = {0, 1 << 30, 1, 0.f};
  if (most == 1 || length == 0) return none;
  long long token[2];
  float power[2] = {0.f, 0.f}, dot[3] = {0.f, 0.f, 0.f}, forgotten[2], noise[2], rho[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) token[i] = (2ll * (2 * (THREAD & 31) + i) + 1) * length / 128;
#pragma unroll
  for (int column = 0; column < K; column += 8) {
    float x[2][8];
#pragma unroll
    for (int i = 0; i < 2; ++i) as_floats(x[i], load_keys(k + token[i] * row, column, true));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float other = shuffle_xor(x[0][j], 1);
      power[0] += x[0][j] * x[0][j], power[1] += x[1][j] * x[1][j];
      dot[0] += x[0][j] * x[1][j], dot[1] += x[0][j] * other, dot[2] += x[1][j] * other;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    forgotten[i] = fminf(-2.f * log_retention[token[i] * H], 1.f), noise[i] = process_noise[token[i] * H];
    rho[i] = fmaxf(obs_noise[token[i] * H] / power[i], floor);
  }
  const float f = mean_of(forgotten[0], forgotten[1]), n = mean_of(noise[0], noise[1]);
  const float across = shuffle_xor(power[0], 1), both[3] = {power[0] * power[1], power[0] * across, power[1] * across};
  float alike = 0.f;  // cos^2
#pragma unroll
  for (int i = 0; i < 3; ++i) alike += both[i] > 0.f ? dot[i] * dot[i] / both[i] : 0.f;
  if (!(n > 0.f)) return none;
  float p = n / (f + 1.f / K);
  for (int round = 0; round < 8; ++round) p = root(p * (n / (f + mean_of(p / (p + rho[0]), p / (p + rho[1])) / K)));
  const float x = p / (p + rho[0]), y = p / (p + rho[1]), slope = mean_of(x * (2.f - x), y * (2.f - y)) / K;
  const bool spread = sum_of(alike) * (K / 96.f) < ALIKE;
  const float wanted = NATS / (spread ? f + slope : f), level = spread ? p : n / f;
  if (!(wanted > 0.f && wanted < .75f * length)) return none;  // NaN too
  const int warm = ((int)wanted / unit + 1) * unit, rest = length - warm;
  const int own = (rest + most * unit - 1) / (most * unit) * unit;
  if (rest <= own || warm + own > length - length / 8) return none;
  return Cuts{warm, own, (rest + own - 1) / own, level};
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
  const bool all = *told;
  sync_all();
  return all;
}

// How many blocks came here before this one, whose writes until then can be read.
DEVICE int arrivals(int *told, int *count) {
  sync_all();
  int before = 0;
  if (THREAD == 0) {
    fence_device();
    before = add_one(count);
    fence_device();
  }
  return heard(told, before);
}

// What blocks of a chain count: who was at a cut, what agreed there; who is done; and what the kernel that mends is left.
struct Counts {
  int *met, *agreed, *done, *mend;  // mend: a segment or 0, and the cuts' warm and own
};
DEVICE Counts counts_of(int *count, int chain, int segments) {
  int *const met = count + chain * (2 * segments + 4), *const done = met + 2 * segments;
  return {met, met + segments, done, done + 1};
}
DEVICE Cuts cuts_left(const Counts &c, int length) {
  const int warm = load_fresh(c.mend + 1), own = load_fresh(c.mend + 2);
  return Cuts{warm, own, (length - warm + own - 1) / own, 0.f};
}

// After segment `now`: the one to go through anew, or 0. Cuts before and after a segment are looked at by whoever comes to
// them second, and all of them by whoever is done last, who leaves to the kernel that follows what is to be mended.
template <class Agree> DEVICE int to_mend(int *told, const Counts &c, const Cuts &cuts, int now, Agree agree) {
  const int last = cuts.many - 1;
#if MEND
  sync_all();
#else
  for (int cut = now ? now - 1 : 0; cut <= now && cut < last; ++cut)
    if (arrivals(told, c.met + cut)) {
      const bool same = agree(cut);
      if (THREAD == 0) c.agreed[cut] = same;
    }
  if (arrivals(told, c.done) < last) return 0;
#endif
  for (int cut = MEND ? now : 0; cut < last; ++cut)
    if (!(MEND && cut == now ? agree(cut) : load_fresh(c.agreed + cut))) {
      if (!MEND && THREAD == 0) c.mend[0] = cut + 1, c.mend[1] = cuts.warm, c.mend[2] = cuts.own;
      return cut + 1;
    }
  return 0;
}
