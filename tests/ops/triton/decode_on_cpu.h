// What decode_cluster_prelude.cu gives on a GPU, by fibers; comes after cuda_on_cpu.h.

#define STATIC_SHARED(type, name) SHARED_MEMORY(type, name)

typedef unsigned long long BELL;  // bytes still to come, and above them the phase: 1 once all have come

#ifndef DELAYED
#define DELAYED -1  // a warp that goes on late from the barrier of the cluster
#endif

static Barrier block_barrier[CLUSTER];

DEVICE void yield() { swapcontext(&fiber[current], &scheduler); }
DEVICE void expect(BELL *bell, int bytes) { *bell = bytes; }
DEVICE void cluster_arrive() {}
DEVICE void cluster_wait() {
  everyone.wait(FIBERS);
  if (current / 32 == DELAYED)
    for (int i = 0; i < 200; ++i) yield();
}
DEVICE void sync_block() { block_barrier[RANK].wait(THREADS); }

DEVICE void send(float *at, BELL *bell, int rank, float x) {
  bool gone = true;  // a block that ended has no memory to send to
  for (int i = 0; i < THREADS; ++i) gone = gone && finished[rank * THREADS + i];
  BELL *counter = (BELL *)peer((float *)bell, rank);
  if (gone || (unsigned)*counter < 4) std::abort();
  *peer(at, rank) = x;
  *counter -= 4;
  if (!(unsigned)*counter) *counter ^= 1ull << 32;
}

DEVICE void await(BELL *bell, int parity) {
  for (int spins = 0; (int)(*bell >> 32) == parity; yield())
    if (++spins > 100000) std::abort();  // nobody will ring again: a GPU would hang
}

DEVICE float inverse_root(float x) { return 1.f / std::sqrt(x); }

#if KEY_KIND == 2
DEVICE float from_float(float x) { return x; }
#else
DEVICE unsigned short from_float(float x) {
#if KEY_KIND == 1
  const _Float16 half = (_Float16)x;
  unsigned short narrow;
  std::memcpy(&narrow, &half, 2);
  return narrow;
#else
  const unsigned bits = as_bits(x);
  return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}
#endif
