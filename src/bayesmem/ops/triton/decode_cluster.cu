// One token for few sequences: a belief shared by CLUSTER blocks on as many multiprocessors. Equations as decode.py:
//
//   u = P- k = rho^2 P k + n k      s = k . u + r      g = u / s      w = u / sqrt(s)      P = rho^2 P + n I - w w^T
//   e = v - a M^T k                 M = a M + g e^T    o = a M^T q + (g . q) e
//
// Block c holds its share of the rows of P and of the columns of M in registers, and loads all of them at once. Only u
// goes from block to block: every block sends its rows of u to all, and the bell of a block rings when all of u has
// come. That is the only wait for others in the middle of the work; what needs no gain (M^T k, M^T q, e, rho^2 P) is
// done meanwhile. The barrier over the cluster says only that all blocks have begun, and passes while loads are on
// their way. A block leaves once all that is sent to it has come.
//
// Compiled with: CLUSTER, THREADS, K, V (multiples of 4), HEADS, GROUPS, KEY_KIND (0 bfloat16, 1 float16, 2 float32),
// FLOOR, WANT_VAR, WANT_EVIDENCE (0 or 1).

DEVICE constexpr int up(int x, int y) { return (x + y - 1) / y; }
DEVICE constexpr int power(int x) { return x <= 1 ? 1 : 2 * power((x + 1) / 2); }  // of two, not below x

constexpr int WARPS = THREADS / 32;
constexpr int ROWS = power(up(K, CLUSTER * WARPS));       // of P, a warp; neighbours
constexpr int STRIPS = up(K, 128);                        // of a row of P: 4 columns a lane
constexpr int SHARERS = 32 / ROWS;                        // lanes that know the same row's sum
constexpr int QUADS = up(up(V, CLUSTER), 4);              // of columns of M, a block
constexpr int ACROSS = power(QUADS);                      // threads side by side on them
constexpr int DOWN = THREADS / ACROSS;                    // and one below the other
constexpr int CELL = K / 4 >= DOWN ? 4 : K / 2 >= DOWN ? 2 : 1;  // neighbouring rows of M
constexpr int CELLS = up(K / CELL, DOWN);                 // a thread
constexpr int FOLDED = ACROSS < 32 ? ACROSS : 32;
constexpr int PARTS = ACROSS < 32 ? WARPS : DOWN;         // sums down M that are left
constexpr int READERS = up(ACROSS, 32);                   // warps that write o
constexpr int PADDED = power(K) > 128 * STRIPS ? power(K) : 128 * STRIPS;

static_assert(THREADS % 32 == 0 && ROWS <= 32 && ACROSS <= THREADS && K % 4 == 0 && V % 4 == 0, "a split that does not fit");

struct Shared {
  alignas(16) float u[PADDED > ROWS * WARPS * CLUSTER ? PADDED : ROWS * WARPS * CLUSTER];
  alignas(16) float part[PARTS][2][4 * ACROSS];  // M^T k and M^T q
  float var[CLUSTER * WARPS], energy[CLUSTER * READERS];
  BELL whole, end;  // u is there; the sums over all blocks are there
};

template <typename T, int N>
struct alignas(N * sizeof(T)) Pack { T x[N]; };

template <int N, typename T>
DEVICE Pack<T, N> fetch(const T *at, bool inside) {
  Pack<T, N> x;
  if (inside) x = *(const Pack<T, N> *)at;
  else
#pragma unroll
    for (int i = 0; i < N; ++i) x.x[i] = 0;
  return x;
}

// Sums over the lanes that differ in the bits from LAST to 16, for N values: lane i of 32 gets the values of its share,
// N / lanes of them, from i / 32 of N on.
template <int N, int LAST, int BIT = 16>
DEVICE void fold(float *x) {
  if constexpr (BIT >= LAST) {
    if constexpr (N > 1) {
      const bool upper = THREAD & BIT;
#pragma unroll
      for (int i = 0; i < N / 2; ++i) {
        const float kept = upper ? x[i + N / 2] : x[i], given = upper ? x[i] : x[i + N / 2];
        x[i] = kept + shuffle_xor(given, BIT);
      }
      fold<N / 2, LAST, BIT / 2>(x);
    } else {
      x[0] += shuffle_xor(x[0], BIT);
      fold<1, LAST, BIT / 2>(x);
    }
  }
}

DEVICE float warp_sum(float x) {
  fold<1, 1>(&x);
  return x;
}

GLOBAL decode_cluster(const KEY *q, const KEY *k, const KEY *v, const float *log_decay, const float *log_retention,
                      const float *process_noise, const float *obs_noise, const float *floor, float *mean, float *cov,
                      KEY *o, float *predictive_var, float *innovation_var, float *energy) {
  STATIC_SHARED(Shared, s);
  const int belief = BLOCK / CLUSTER, rank = RANK, head = belief % HEADS, lane = THREAD & 31, warp = THREAD >> 5;
  const long long key = (long long)(belief / HEADS * GROUPS + head / (HEADS / GROUPS)) * K;
  const int first = (rank * WARPS + warp) * ROWS, own = first + lane / SHARERS;  // rows of P
  const int across = THREAD % ACROSS, down = THREAD / ACROSS, column = 4 * (rank * QUADS + across);
  const bool live = across < QUADS && column < V;
  float *p_at = cov + (long long)belief * K * K + first * K + 4 * lane;
  float *m_at = mean + (long long)belief * K * V + column;
  k += key, q += key;

  constexpr int SUMS = WANT_VAR * CLUSTER * WARPS + WANT_EVIDENCE * CLUSTER * READERS;
  if (THREAD == 0) {
    expect(&s.whole, 4 * K);
    if (SUMS && rank == 0) expect(&s.end, 4 * SUMS);
  }
  cluster_arrive();

  // All loads, before anything waits for one.
  Pack<KEY, 4> k_wide[STRIPS], q_wide[STRIPS];
  Pack<float, 4> p[ROWS][STRIPS], m[CELLS][CELL];
  Pack<KEY, CELL> k_down[CELLS], q_down[CELLS];
#pragma unroll
  for (int c = 0; c < STRIPS; ++c) k_wide[c] = fetch<4>(k + 128 * c + 4 * lane, 128 * c + 4 * lane < K);
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int c = 0; c < STRIPS; ++c)
      p[i][c] = fetch<4>(p_at + i * K + 128 * c, first + i < K && 128 * c + 4 * lane < K);
  const float log_keep = log_retention[belief], noise = process_noise[belief];
  const KEY k_own = own < K ? k[own] : 0;
#pragma unroll
  for (int n = 0; n < CELLS; ++n) {
    const int row = CELL * (down + n * DOWN);
    k_down[n] = fetch<CELL>(k + row, row < K), q_down[n] = fetch<CELL>(q + row, row < K);
#pragma unroll
    for (int i = 0; i < CELL; ++i) m[n][i] = fetch<4>(m_at + (row + i) * V, live && row < K);
  }
  const Pack<KEY, 4> value = fetch<4>(v + (long long)belief * V + column, live);
#pragma unroll
  for (int c = 0; c < STRIPS; ++c) q_wide[c] = fetch<4>(q + 128 * c + 4 * lane, 128 * c + 4 * lane < K);
  const float log_kept = log_decay[belief], least = FLOOR ? floor[head] : 0.f;
  float r = obs_noise[belief];

  cluster_wait();  // all blocks have begun, and may be sent to
  // This passes at once, since a warp with rows has sent nothing yet, so that the bell has not rung. (A warp without rows
  // may come after it rang, and would wait for ever.) No compiler moves arithmetic over a loop, as it would to before
  // the last loads otherwise.
  if (first < K) await(&s.whole, 1);

  float ks[STRIPS][4], qs[STRIPS][4], dot[ROWS];
#pragma unroll
  for (int c = 0; c < STRIPS; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) ks[c][j] = to_float(k_wide[c].x[j]), qs[c][j] = to_float(q_wide[c].x[j]);
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    dot[i] = 0.f;
#pragma unroll
    for (int c = 0; c < STRIPS; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j) dot[i] += p[i][c].x[j] * ks[c][j];
  }
  fold<ROWS, 1>(dot);
  const float keep = expf(2.f * log_keep), mine = keep * dot[0] + noise * to_float(k_own);
  if (own < K)
#pragma unroll
    for (int to = 0; to < CLUSTER; to += SHARERS)
      if (to + lane % SHARERS < CLUSTER) send(s.u + own, &s.whole, to + lane % SHARERS, mine);

  // While u is on its way: the sums down M, the innovation, the prediction of P, |k|^2.
  const float decay = expf(log_kept);
  float sums[8], e[4];
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i] = 0.f;
#pragma unroll
  for (int n = 0; n < CELLS; ++n)
#pragma unroll
    for (int i = 0; i < CELL; ++i) {
      const float at_k = to_float(k_down[n].x[i]), at_q = to_float(q_down[n].x[i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[j] += m[n][i].x[j] * at_k;
        sums[4 + j] += m[n][i].x[j] * at_q;
      }
    }
  fold<8, FOLDED>(sums);
  constexpr int SPLITS = 32 / FOLDED < 8 ? 32 / FOLDED : 8, LEFT = 8 / SPLITS;  // values that a lane has of the eight
#pragma unroll
  for (int i = 0; i < LEFT; ++i) {
    const int which = lane / (32 / SPLITS) * LEFT + i;
    s.part[ACROSS < 32 ? warp : down][which / 4][4 * across + which % 4] = sums[i];
  }
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int c = 0; c < STRIPS; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        p[i][c].x[j] = keep * p[i][c].x[j] + (128 * c + 4 * lane + j == first + i ? noise : 0.f);
  if (FLOOR) {
    float norm = 0.f;
#pragma unroll
    for (int c = 0; c < STRIPS; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j) norm += ks[c][j] * ks[c][j];
    r = fmaxf(r, least * warp_sum(norm));
  }
  sync_block();
  float read[4];  // M^T q, for who writes o
#pragma unroll
  for (int j = 0; j < 4; ++j) e[j] = read[j] = 0.f;
#pragma unroll
  for (int n = 0; n < PARTS; ++n) {
    const Pack<float, 4> by_k = fetch<4>(s.part[n][0] + 4 * across, true);
    const Pack<float, 4> by_q = fetch<4>(s.part[n][1] + 4 * across, down == 0);
#pragma unroll
    for (int j = 0; j < 4; ++j) e[j] += by_k.x[j], read[j] += by_q.x[j];
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) e[j] = to_float(value.x[j]) - decay * e[j];
  if (WANT_EVIDENCE && warp < READERS) {
    const float squares = warp_sum(down == 0 ? e[0] * e[0] + e[1] * e[1] + e[2] * e[2] + e[3] * e[3] : 0.f);
    if (lane == 0) send(s.energy + rank * READERS + warp, &s.end, 0, squares);
  }

  await(&s.whole, 0);
  float us[STRIPS][4], along_k = 0.f, along_q = 0.f;
#pragma unroll
  for (int c = 0; c < STRIPS; ++c) {
    const Pack<float, 4> u = fetch<4>(s.u + 128 * c + 4 * lane, 128 * c + 4 * lane < K);
#pragma unroll
    for (int j = 0; j < 4; ++j) us[c][j] = u.x[j], along_k += u.x[j] * ks[c][j], along_q += u.x[j] * qs[c][j];
  }
  along_k = warp_sum(along_k), along_q = warp_sum(along_q);
  const float spread = along_k + r;  // the same sum in the same order everywhere, so that P stays symmetric
  const float root = inverse_root(spread), inverse = root * root;
  constexpr int AT_ONCE = ROWS < 4 ? ROWS : 4;
  float w[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i += AT_ONCE) {
    const Pack<float, AT_ONCE> u = fetch<AT_ONCE>(s.u + first + i, true);
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) w[i + j] = root * u.x[j];
  }
  if (live && down == 0) {
    Pack<KEY, 4> out;
#pragma unroll
    for (int j = 0; j < 4; ++j) out.x[j] = from_float(decay * read[j] + inverse * along_q * e[j]);
    *(Pack<KEY, 4> *)(o + (long long)belief * V + column) = out;
  }
  float quad = 0.f;
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const bool inside = first + i < K;
    float along = 0.f;
#pragma unroll
    for (int c = 0; c < STRIPS; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p[i][c].x[j] = fmaf(-w[i], root * us[c][j], p[i][c].x[j]);
        if (WANT_VAR) along += p[i][c].x[j] * qs[c][j];
      }
      if (inside && 128 * c + 4 * lane < K) *(Pack<float, 4> *)(p_at + i * K + 128 * c) = p[i][c];
    }
    if (WANT_VAR && inside) quad += to_float(q[first + i]) * along;
  }
#pragma unroll
  for (int n = 0; n < CELLS; ++n) {
    const int row = CELL * (down + n * DOWN);
    const Pack<float, CELL> u = fetch<CELL>(s.u + row, row < K);
#pragma unroll
    for (int i = 0; i < CELL; ++i) {
      const float gain = inverse * u.x[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) m[n][i].x[j] = decay * m[n][i].x[j] + gain * e[j];
      if (live && row < K) *(Pack<float, 4> *)(m_at + (row + i) * V) = m[n][i];
    }
  }
  if (WANT_VAR) {
    const float whole = warp_sum(quad);
    if (lane == 0) send(s.var + rank * WARPS + warp, &s.end, 0, whole);
  }
  if (SUMS && rank == 0 && warp == 0) {
    await(&s.end, 0);
    float var = 0.f, squares = 0.f;
    if (WANT_VAR)
      for (int i = lane; i < CLUSTER * WARPS; i += 32) var += s.var[i];
    if (WANT_EVIDENCE)
      for (int i = lane; i < CLUSTER * READERS; i += 32) squares += s.energy[i];
    var = warp_sum(var), squares = warp_sum(squares);
    if (lane == 0) {
      if (WANT_VAR) predictive_var[belief] = var;
      if (WANT_EVIDENCE) innovation_var[belief] = spread, energy[belief] = squares;
    }
  }
}
