// Runs a CUDA block on a CPU, thread by thread: what covariance_prelude.cu gives on a GPU, given by fibers here.
// Warp-wide instructions wait for all 32 lanes, as the hardware does; TF32 operands are cut to their 19 bits.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define DEVICE static inline
#define GLOBAL static void
#define THREAD (current % THREADS)
#define RANK (current / THREADS)
#define BLOCK (current_block * CLUSTER + RANK)
#define SHARED_MEMORY(type, name) type &name = *(type *)shared_bytes[RANK]
#ifndef THREADS
#define THREADS (2 * KDIM / CLUSTER + 64)
#endif
#define FIBERS (THREADS * CLUSTER)

static int current, current_block;
alignas(1024) static char shared_bytes[CLUSTER][1 << 20];
static ucontext_t scheduler, fiber[FIBERS];
static bool finished[FIBERS];

struct Barrier {
  int arrived = 0, phase = 0;
  bool arrive(int count) {  // whether this was the last to come
    if (++arrived < count) return false;
    arrived = 0, ++phase;
    return true;
  }
  void wait(int count) {
    const int before = phase;
    if (!arrive(count))
      while (phase == before) swapcontext(&fiber[current], &scheduler);
  }
};

static Barrier everyone, meeting, total[CLUSTER], base[CLUSTER], lanes[FIBERS / 32];
static float slot[FIBERS / 32][2][32];
static unsigned operand[FIBERS / 32][2][32][6];

struct uint4 { unsigned x, y, z, w; };
#if KEY_KIND == 2
typedef float KEY;
#else
typedef unsigned short KEY;
#endif

DEVICE unsigned as_bits(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }
DEVICE float as_float(unsigned u) { float x; std::memcpy(&x, &u, 4); return x; }
DEVICE void sync_warp() { lanes[current / 32].wait(32); }
DEVICE float exchange(float x, int lane) {
  const int warp = current / 32, turn = lanes[warp].phase & 1;
  slot[warp][turn][current % 32] = x;
  lanes[warp].wait(32);
  return slot[warp][turn][lane];
}
DEVICE float shuffle(float x, int lane) { return exchange(x, lane); }
DEVICE float shuffle_xor(float x, int mask) { return exchange(x, (current % 32) ^ mask); }
DEVICE void sync_all() { everyone.wait(FIBERS); }
DEVICE void meet() { meeting.wait(FIBERS); }
DEVICE void pass_meeting() { meeting.arrive(FIBERS); }
DEVICE void end_meeting() {}
DEVICE void sync_total() { total[RANK].wait(THREADS - 32); }
DEVICE void arrive_total() { total[RANK].arrive(THREADS - 32); }
DEVICE void arrive_base() { base[RANK].arrive(64); }
DEVICE void sync_base() { base[RANK].wait(64); }
DEVICE float *peer(float *at, int rank) { return (float *)(shared_bytes[rank] + ((char *)at - shared_bytes[RANK])); }
DEVICE void fence_device() {}
DEVICE float load_fresh(const float *at) { return *at; }
DEVICE int load_fresh(const int *at) { return *at; }
DEVICE int add_one(int *count) { return (*count)++; }
DEVICE void load4(float *x, const float *at) { std::memcpy(x, at, 16); }
DEVICE void store4(float *at, const float *x) { std::memcpy(at, x, 16); }
DEVICE void store2(float *at, float x, float y) { at[0] = x, at[1] = y; }
DEVICE float reciprocal(float x) { return 1.f / x; }
DEVICE float root(float x) { return std::sqrt(x); }
DEVICE float widen(unsigned bits) {
#if KEY_KIND == 1
  _Float16 x;
  const unsigned short half = (unsigned short)bits;
  std::memcpy(&x, &half, 2);
  return (float)x;
#else
  return as_float(bits << 16);
#endif
}
// To the nearest bfloat16, and of two as near to the even one.
static unsigned bfloat16(float x) {
  const unsigned u = as_bits(x);
  return x != x ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
DEVICE unsigned bfloat16s(float x, float y) { return bfloat16(x) | bfloat16(y) << 16; }
DEVICE unsigned turned(unsigned x) {
  const int warp = current / 32, lane = current % 32, turn = lanes[warp].phase & 1, g = lane / 4, t = lane % 4;
  operand[warp][turn][lane][0] = x;
  lanes[warp].wait(32);
  const unsigned(*all)[6] = operand[warp][turn];  // column g, of which lane 4 row + g / 2 holds a row
  const unsigned first = all[8 * t + g / 2][0] >> 16 * (g & 1), second = all[8 * t + 4 + g / 2][0] >> 16 * (g & 1);
  return (first & 0xffffu) | second << 16;
}
#if KEY_KIND == 2
DEVICE float to_float(float x) { return x; }
#else
DEVICE float to_float(unsigned short x) { return widen(x); }
#endif

DEVICE void mma(float *c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const int warp = current / 32, lane = current % 32, turn = lanes[warp].phase & 1, g = lane / 4, t = lane % 4;
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(operand[warp][turn][lane], mine, sizeof mine);
  lanes[warp].wait(32);
  const unsigned(*all)[6] = operand[warp][turn];
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
    for (int k = 0; k < 8; ++k) {  // a: lane 4 (row % 8) + k % 4; b: lane 4 column + k % 4
      const float a = as_float(all[4 * (row % 8) + k % 4][(row >> 3) + 2 * (k >> 2)] & 0xffffe000u);
      c[i] += a * as_float(all[4 * column + k % 4][4 + (k >> 2)] & 0xffffe000u);
    }
  }
}

#if WARPGROUPS
// Products of four warps: each warp's rows are its own, so that it needs no others; done at once, not beside the warps.
template <int COLUMNS, int SIGN>
static void group_product(float (*d)[4], const unsigned *a, const float *b, int plane) {
  const int warp = current / 32, lane = current % 32, turn = lanes[warp].phase & 1, g = lane / 4, t = lane % 4;
  std::memcpy(operand[warp][turn][lane], a, 16);
  lanes[warp].wait(32);
  const unsigned(*all)[6] = operand[warp][turn];
  for (int j = 0; j < COLUMNS / 8; ++j)
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i >> 1), column = 8 * j + 2 * t + (i & 1);
      for (int k = 0; k < 8; ++k) {
        const float x = as_float(all[4 * (row % 8) + k % 4][(row >> 3) + 2 * (k >> 2)] & 0xffffe000u);
        d[j][i] += SIGN * x * as_float(as_bits(b[(k >> 2) * plane + 4 * column + k % 4]) & 0xffffe000u);
      }
    }
}
DEVICE void group_begin() {}
DEVICE void group_commit() {}
template <int LEFT> static void group_wait() {}
DEVICE void hold(float *) {}
DEVICE void fence_for_groups() {}
#endif

// A launch: every cluster of blocks in turn, its threads as fibers.
static void (*kernel_of_a_thread)();

static void thread_main() {
  kernel_of_a_thread();
  finished[current] = true;
}

extern "C" {
int backwards = 0;  // whether blocks come in reverse: none may wait for another
}
static void (*block_is_done)() = nullptr;

static void run_clusters(void (*kernel)(), int clusters) {
  kernel_of_a_thread = kernel;
  std::vector<char> stacks(FIBERS * (1 << 16));
  for (int step = 0; step < clusters; ++step) {
    current_block = backwards ? clusters - 1 - step : step;
    std::memset(shared_bytes, 0xff, sizeof shared_bytes);  // NaN: what nothing wrote must not be read
    for (int i = 0; i < FIBERS; ++i) {
      getcontext(&fiber[i]);
      fiber[i].uc_stack.ss_sp = stacks.data() + i * (1 << 16);
      fiber[i].uc_stack.ss_size = 1 << 16;
      fiber[i].uc_link = &scheduler;
      makecontext(&fiber[i], thread_main, 0);
      finished[i] = false;
    }
    for (bool running = true; running;) {
      running = false;
      for (current = 0; current < FIBERS; ++current)
        if (!finished[current]) {
          running = true;
          swapcontext(&scheduler, &fiber[current]);
        }
    }
    bool unpaired = everyone.arrived || meeting.arrived;
    for (int i = 0; i < CLUSTER; ++i) unpaired = unpaired || total[i].arrived || base[i].arrived;
    if (unpaired) std::abort();  // a barrier was left with some still to come
    if (block_is_done) block_is_done();
  }
}
