// What hopper_prelude.cu gives on a GPU, by fibers; comes after cuda_on_cpu.h.

typedef unsigned short HALF;

#define GRID 0  // nobody needs to know
DEVICE int uniform(int x) { return x; }
DEVICE float round_down(float x) { return std::floor(x); }
DEVICE float exponential(float x) { return std::exp(x); }
DEVICE void load2(float *x, const float *at) { x[0] = at[0], x[1] = at[1]; }
DEVICE void load16(unsigned x[4], const HALF *at) { std::memcpy(x, at, 16); }
DEVICE void store16(HALF *at, const unsigned x[4]) { std::memcpy(at, x, 16); }
DEVICE unsigned load_two(const HALF *at) { unsigned x; std::memcpy(&x, at, 4); return x; }
DEVICE void move16(HALF *to, const HALF *from) { std::memcpy(to, from, 16); }
DEVICE void send16(void *to, const unsigned x[4], bool is = true) { if (is) std::memcpy(to, x, 16); }
DEVICE float wide(HALF x) { return as_float((unsigned)x << 16); }
DEVICE void fetch(float &x, const float *at, bool there) { x = there ? *at : 0.f; }
DEVICE void fetch2(float *x, const float *at, bool there) { x[0] = x[1] = 0.f; if (there) load2(x, at); }
DEVICE void fetch4(float *x, const float *at) { load4(x, at); }
DEVICE void fetch4(float *x, const float *at, bool there) { x[0] = x[1] = x[2] = x[3] = 0.f; if (there) load4(x, at); }
DEVICE void announce(const void *, int) {}

// What is under way has not come before copies_wait: until then its place holds NaN.
static std::vector<std::pair<void *, const void *>> under_way[THREADS];
static std::vector<size_t> together[THREADS];  // where every group of them ends
DEVICE void copy(void *to, const void *from, bool there) {
  std::memset(to, 0xff, 16);
  under_way[current].push_back({to, there ? from : nullptr});
}
static void arrive(size_t count) {
  auto &all = under_way[current];
  for (size_t i = 0; i < count; ++i) {
    const auto &[to, from] = all[i];
    from ? std::memcpy(to, from, 16) : std::memset(to, 0, 16);
  }
  all.erase(all.begin(), all.begin() + count);
}
DEVICE void copies_commit() { together[current].push_back(under_way[current].size()); }
DEVICE void copies_wait() {
  arrive(under_way[current].size());
  together[current].clear();
}
template <int LEFT> static void copies_wait() {
  auto &ends = together[current];
  if (ends.size() <= LEFT) return;
  const size_t groups = ends.size() - LEFT, count = ends[groups - 1];
  arrive(count);
  ends.erase(ends.begin(), ends.begin() + groups);
  for (size_t &end : ends) end -= count;
}

static void load(unsigned tiles[4], const HALF *at, bool turned) {
  static const HALF *place[THREADS / 32][32];
  const int warp = current / 32, lane = current % 32;
  place[warp][lane] = at;
  sync_warp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = 2 * (lane % 4);  // of this lane's two numbers in tile i
    const HALF *const *lines = place[warp] + 8 * i;
    tiles[i] = turned ? lines[column][row] | lines[column + 1][row] << 16 : lines[row][column] | lines[row][column + 1] << 16;
  }
  sync_warp();
}
DEVICE void load_tiles(unsigned tiles[4], const HALF *at) { load(tiles, at, false); }
DEVICE void load_turned(unsigned tiles[4], const HALF *at) { load(tiles, at, true); }

static void store(HALF *at, const unsigned tiles[4], bool turned) {
  static unsigned held[THREADS / 32][32][4];
  static HALF *place[THREADS / 32][32];
  const int warp = current / 32, lane = current % 32;
  std::memcpy(held[warp][lane], tiles, 16);
  place[warp][lane] = at;
  sync_warp();
  for (int i = 0; i < 4; ++i)
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4, column = 2 * (lane % 4) + half;  // of this lane's number in tile i
      place[warp][8 * i + (turned ? column : row)][turned ? row : column] = held[warp][lane][i] >> (16 * half);
    }
  sync_warp();
}
DEVICE void store_tiles(HALF *at, const unsigned tiles[4]) { store(at, tiles, false); }
DEVICE void store_turned(HALF *at, const unsigned tiles[4]) { store(at, tiles, true); }

DEVICE void group_begin() {}
DEVICE void group_commit() {}
template <int LEFT> static void group_wait() {}
DEVICE void hold(float *) {}
DEVICE void fence_for_groups() {}

// Row or column `line` of an operand, number k of 16.
DEVICE float entry(const HALF *at, int plane, int line, int k) {
  if (plane) return wide(at[(k >> 3) * plane + 8 * line + (k & 7)]);
  const size_t straight = (size_t)(at + 64 * line + (k & ~7));  // as the hardware does it, by the bits of an address
  return wide(((const HALF *)(straight ^ (straight >> 7 & 7) << 4))[k & 7]);
}

static void warp_product(float d[4], const unsigned a[4], const unsigned b[2]) {
  const int warp = current / 32, lane = current % 32, turn = lanes[warp].phase & 1, g = lane / 4, t = lane % 4;
  std::memcpy(operand[warp][turn][lane], a, 16), std::memcpy(operand[warp][turn][lane] + 4, b, 8);
  sync_warp();
  const unsigned(*all)[6] = operand[warp][turn];
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) {
      const int of = k % 8 / 2, shift = 16 * (k & 1), column = 2 * t + (i & 1);
      d[i] += wide(all[4 * g + of][(i >> 1) + 2 * (k >> 3)] >> shift) * wide(all[4 * column + of][4 + (k >> 3)] >> shift);
    }
}

template <int COLUMNS> static void product(float (*d)[4], const unsigned a[4], const HALF *b, int plane) {
  const int warp = current / 32, lane = current % 32, turn = lanes[warp].phase & 1, g = lane / 4, t = lane % 4;
  std::memcpy(operand[warp][turn][lane], a, 16);
  sync_warp();
  const unsigned(*all)[6] = operand[warp][turn];
  float left[2][16];
  for (int lower = 0; lower < 2; ++lower)
    for (int k = 0; k < 16; ++k)
      left[lower][k] = wide(all[4 * g + k % 8 / 2][lower + 2 * (k >> 3)] >> (16 * (k & 1)));
  for (int j = 0; j < COLUMNS / 8; ++j)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k) d[j][i] += left[i >> 1][k] * entry(b, plane, 8 * j + 2 * t + (i & 1), k);
}

template <int COLUMNS> static void product(float (*d)[4], const HALF *a, int a_plane, const HALF *b, int plane) {
  const int lane = current % 32, row = 16 * (current / 32 % 4) + lane / 4;
  for (int j = 0; j < COLUMNS / 8; ++j)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k)
        d[j][i] += entry(a, a_plane, row + 8 * (i >> 1), k) * entry(b, plane, 8 * j + 2 * (lane % 4) + (i & 1), k);
}

// The contraction goes down the rows.
DEVICE float turned_entry(const HALF *at, int line, int k) {
  const size_t straight = (size_t)(at + 64 * k + (line & ~7));
  return wide(((const HALF *)(straight ^ (straight >> 7 & 7) << 4))[line & 7]);
}

template <int LEFT, int SIGN> static void turned_product(float (*d)[4], const HALF *a, const HALF *b) {
  const int lane = current % 32, row = 16 * (current / 32 % 4) + lane / 4;
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k) {
        const float x = LEFT ? turned_entry(a, row + 8 * (i >> 1), k) : entry(a, 0, row + 8 * (i >> 1), k);
        d[j][i] += SIGN * x * turned_entry(b, 8 * j + 2 * (lane % 4) + (i & 1), k);
      }
}
