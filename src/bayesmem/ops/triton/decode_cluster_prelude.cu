// What decode_cluster.cu needs of the machine besides covariance_prelude.cu: thread block clusters, from Hopper (sm_90) on.

#define STATIC_SHARED(type, name) __shared__ type name

typedef unsigned long long BELL;  // a barrier in shared memory that counts the bytes that arrive beside it

DEVICE unsigned shared_address(const void *at) {
  unsigned address;
  asm("{\n.reg .u64 there;\ncvta.to.shared.u64 there, %1;\ncvt.u32.u64 %0, there;\n}" : "=r"(address) : "l"(at));
  return address;
}

DEVICE unsigned in_block(unsigned address, int rank) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// By one thread, before cluster_arrive, which then need not release anything: the bell rings once so many bytes have come.
DEVICE void expect(BELL *bell, int bytes) {
  const unsigned at = shared_address(bell);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(at) : "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}

DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Into the shared memory of a block, which its bell counts: no fence, no barrier.
DEVICE void send(float *at, BELL *bell, int rank, float x) {
  const unsigned there = in_block(shared_address(at), rank), counter = in_block(shared_address(bell), rank);
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(there), "r"(as_bits(x)),
               "r"(counter)
               : "memory");
}

// Until all expected has come (0), or not at all (1).
DEVICE void await(BELL *bell, int parity) {
  asm volatile("{\n.reg .pred rung;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 rung, [%0], %1;\n"
               "@rung bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(shared_address(bell)), "r"(parity)
               : "memory");
}

DEVICE void sync_block() { __syncthreads(); }

DEVICE float inverse_root(float x) {  // one Newton step after the approximate instruction
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r * (1.5f - 0.5f * (x * r) * r);
}

#if KEY_KIND == 2
DEVICE float from_float(float x) { return x; }
#else
DEVICE unsigned short from_float(float x) {
  unsigned short narrow;
#if KEY_KIND == 1
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
#endif
  return narrow;
}
#endif
