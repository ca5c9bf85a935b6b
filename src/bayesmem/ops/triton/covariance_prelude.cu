// What the covariance kernels need of the machine: an NVIDIA GPU from Ampere (sm_80) on.

#ifndef THREADS
#define THREADS (2 * KDIM / CLUSTER + 64)
#endif
#ifndef BLOCKS
#define BLOCKS 1  // that a multiprocessor is to hold
#endif
#define DEVICE __device__ __forceinline__
#if CLUSTER > 1
#define GLOBAL extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, BLOCKS)
#else
#define GLOBAL extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
#endif
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define RANK (BLOCK % CLUSTER)
#define SHARED_MEMORY(type, name) extern __shared__ __align__(1024) char shared_bytes[]; type &name = *(type *)shared_bytes

#if KEY_KIND == 2
typedef float KEY;
#else
typedef unsigned short KEY;
#endif

DEVICE unsigned as_bits(float x) { return __float_as_uint(x); }
DEVICE float as_float(unsigned x) { return __uint_as_float(x); }
DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE void sync_warp() { __syncwarp(); }
// Between blocks: what was written before is there for others, what others wrote is read where it is, and a count.
DEVICE void fence_device() { __threadfence(); }
DEVICE float load_fresh(const float *at) { return __ldcg(at); }
DEVICE int load_fresh(const int *at) { return __ldcg(at); }
DEVICE int add_one(int *count) { return atomicAdd(count, 1); }
// All meet in sync_all. In meet only the matrix warps wait; the others say that they pass, and end it before the next.
// Barriers by number: 1 all, 2 the meeting of the matrix warps, 4 the factor warp's X for them, 5 the gate warp's base for it.
#if CLUSTER > 1
DEVICE void pass_meeting() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEVICE void end_meeting() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
DEVICE void meet() {
  pass_meeting();
  end_meeting();
}
DEVICE void sync_all() { meet(); }
DEVICE float *peer(float *at, int rank) {
  unsigned long long there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((unsigned long long)at), "r"(rank));
  return (float *)there;
}
#else
DEVICE void sync_all() { asm volatile("bar.sync 1, %0;" ::"r"(THREADS) : "memory"); }
DEVICE void meet() { asm volatile("bar.sync 2, %0;" ::"r"(THREADS) : "memory"); }
DEVICE void pass_meeting() { asm volatile("bar.arrive 2, %0;" ::"r"(THREADS) : "memory"); }
DEVICE void end_meeting() {}
DEVICE float *peer(float *at, int) { return at; }
#endif
DEVICE void sync_total() { asm volatile("bar.sync 4, %0;" ::"r"(THREADS - 32) : "memory"); }
DEVICE void arrive_total() { asm volatile("bar.arrive 4, %0;" ::"r"(THREADS - 32) : "memory"); }
DEVICE void arrive_base() { asm volatile("bar.arrive 5, 64;" ::: "memory"); }
DEVICE void sync_base() { asm volatile("bar.sync 5, 64;" ::: "memory"); }
DEVICE void load4(float *x, const float *at) { const float4 v = *(const float4 *)at; x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w; }
DEVICE void store4(float *at, const float *x) { *(float4 *)at = make_float4(x[0], x[1], x[2], x[3]); }
DEVICE void store2(float *at, float x, float y) { *(float2 *)at = make_float2(x, y); }

DEVICE float reciprocal(float x) {  // one Newton step after the approximate instruction
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r * (2.f - x * r);
}

DEVICE float root(float x) {  // likewise
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  const float y = x * r;
  return y + .5f * r * (x - y * y);
}

DEVICE float widen(unsigned bits) {  // a 16-bit float
#if KEY_KIND == 1
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short)bits));
  return x;
#else
  return __uint_as_float(bits << 16);
#endif
}

// Two floats rounded to bfloat16, x in the low bits.
DEVICE unsigned bfloat16s(float x, float y) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  return r;
}

// The transpose of a warp's 8 x 8 matrix of 16-bit numbers: lane 4 g + t holds row g, columns 2t and 2t + 1.
DEVICE unsigned turned(unsigned x) {
  unsigned r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}

#if KEY_KIND == 2
DEVICE float to_float(float x) { return x; }
#else
DEVICE float to_float(unsigned short x) { return widen(x); }
#endif

DEVICE void mma(float *c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
