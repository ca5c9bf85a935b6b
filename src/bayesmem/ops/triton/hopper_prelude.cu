// What covariance_pairs.cu and what follows it need of the machine besides covariance_prelude.cu and covariance_wgmma.cu.

typedef unsigned short HALF;  // bfloat16

DEVICE float exponential(float x) {  // what is below the least normal float is zero
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x * 1.4426950408889634f));
  return r;
}
#define GRID ((int)gridDim.x)
DEVICE int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }  // what all lanes know, so that the compiler knows it
DEVICE float round_down(float x) { return floorf(x); }
DEVICE void load2(float *x, const float *at) { const float2 v = *(const float2 *)at; x[0] = v.x, x[1] = v.y; }
DEVICE void store16(HALF *at, const unsigned x[4]) { *(uint4 *)at = make_uint4(x[0], x[1], x[2], x[3]); }
DEVICE void load16(unsigned x[4], const HALF *at) { const uint4 v = *(const uint4 *)at; x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w; }
DEVICE unsigned load_two(const HALF *at) { return *(const unsigned *)at; }
DEVICE void move16(HALF *to, const HALF *from) { *(uint4 *)to = *(const uint4 *)from; }
DEVICE unsigned shared_address(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

// 16 bytes into shared memory, beside the threads; zeros where there is nothing.
DEVICE void copy(void *to, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Global memory on its way into registers from here on, which compilers would ask for where it is used; zeros where there
// is nothing.
#define FETCH(KIND, ZEROS, TO) "{.reg .pred p;\nsetp.ne.b32 p, " TO ", 0;\n" ZEROS "@p ld.global.L1::no_allocate." KIND
DEVICE void fetch(float &x, const float *at, bool there) {
  asm volatile(FETCH("f32", "mov.f32 %0, 0f00000000;\n", "%2") " %0, [%1];}" : "=f"(x) : "l"(at), "r"((int)there) : "memory");
}
DEVICE void fetch2(float *x, const float *at, bool there) {
  asm volatile(FETCH("v2.f32", "mov.f32 %0, 0f00000000;\nmov.f32 %1, 0f00000000;\n", "%3") " {%0, %1}, [%2];}"
               : "=f"(x[0]), "=f"(x[1])
               : "l"(at), "r"((int)there)
               : "memory");
}
DEVICE void fetch4(float *x, const float *at, bool there) {
  asm volatile(FETCH("v4.f32", "mov.f32 %0, 0f00000000;\nmov.f32 %1, 0f00000000;\nmov.f32 %2, 0f00000000;\nmov.f32 %3, 0f00000000;\n", "%5")
               " {%0, %1, %2, %3}, [%4];}"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(at), "r"((int)there)
               : "memory");
}
DEVICE void fetch4(float *x, const float *at) {
  asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(at)
               : "memory");
}
// 16 bytes into global memory at once, which compilers may cut into four where an address is a sum.
DEVICE void send16(void *at, const unsigned x[4], bool is = true) {
  asm volatile("{.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p st.global.v4.b32 [%0], {%1, %2, %3, %4};}" ::"l"(at), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"((int)is)
               : "memory");
}
// So many bytes, a multiple of 16, on their way into the second cache.
DEVICE void announce(const void *at, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes) : "memory");
}

// Loaded turned, columns of memory are the rows of a tile: a lane's places are as below.
#define LOAD(TURNED) \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" TURNED ".shared.b16 {%0, %1, %2, %3}, [%4];" \
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) \
               : "r"(shared_address(at)) \
               : "memory")
DEVICE void load_tiles(unsigned tiles[4], const HALF *at) { LOAD(""); }
DEVICE void load_turned(unsigned tiles[4], const HALF *at) { LOAD(".trans"); }

// Four tiles of 8 x 8 of a warp: lane 8 i + r gives the place of row r of tile i; turned, of its column r.
#define STORE(TURNED) \
  asm volatile("stmatrix.sync.aligned.m8n8.x4" TURNED ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(at)), "r"(tiles[0]), \
               "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3]) \
               : "memory")
DEVICE void store_tiles(HALF *at, const unsigned tiles[4]) { STORE(""); }
DEVICE void store_turned(HALF *at, const unsigned tiles[4]) { STORE(".trans"); }

// d (16 rows by 8) += a b, 16 of the contraction, by one warp.
DEVICE void warp_product(float d[4], const unsigned a[4], const unsigned b[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : G4(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// An operand in shared memory: blocks of 8 rows by 8 of the contraction, 128 bytes each, the second 8 in the next plane; or
// without planes rows of 128 bytes, swizzled, of which 8 begin at a multiple of 1024.
extern "C" __shared__ __align__(1024) char shared_bytes[];
DEVICE unsigned long long operand(const HALF *at, int plane) {
  // From the first byte on, so that a place that is known costs one sum.
  const unsigned start = ((shared_address(shared_bytes) & 0x3ffff) >> 4) + (unsigned)((const char *)at - shared_bytes) / 16;
  if (plane) return (unsigned long long)(128 / 16) << 32 | (start + ((unsigned)(plane / 8) << 16));
  return (unsigned long long)(1024 / 16 | 1u << 30) << 32 | (start + (1u << 16));
}

#define D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define D32 D16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define D64 D32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define R16(d) G4(d[0]), G4(d[1]), G4(d[2]), G4(d[3])
#define R32(d) R16(d), G4(d[4]), G4(d[5]), G4(d[6]), G4(d[7])
#define R64(d) R32(d), G4(d[8]), G4(d[9]), G4(d[10]), G4(d[11]), G4(d[12]), G4(d[13]), G4(d[14]), G4(d[15])
#define PRODUCT(COLUMNS, D, LEFT, RIGHT) \
  "{.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32.bf16.bf16 {" D "}, " LEFT ", " RIGHT

// d (64 rows) += a b, 16 of the contraction, by four warps at once.
template <int COLUMNS> DEVICE void product(float (*d)[4], const unsigned a[4], const HALF *b, int plane) {
  const unsigned long long right = operand(b, plane);
#define A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right)
  if constexpr (COLUMNS == 32)
    asm volatile(PRODUCT("32", D16, "{%16, %17, %18, %19}", "%20, p, 1, 1, 0;}") : R16(d) : A4);
  else if constexpr (COLUMNS == 64)
    asm volatile(PRODUCT("64", D32, "{%32, %33, %34, %35}", "%36, p, 1, 1, 0;}") : R32(d) : A4);
#if KDIM == 128
  else
    asm volatile(PRODUCT("128", D64, "{%64, %65, %66, %67}", "%68, p, 1, 1, 0;}") : R64(d) : A4);
#endif
}

template <int COLUMNS> DEVICE void product(float (*d)[4], const HALF *a, int a_plane, const HALF *b, int plane) {
  const unsigned long long left = operand(a, a_plane), right = operand(b, plane);
  if constexpr (COLUMNS == 32)
    asm volatile(PRODUCT("32", D16, "%16", "%17, p, 1, 1, 0, 0;}") : R16(d) : "l"(left), "l"(right));
  else if constexpr (COLUMNS == 64)
    asm volatile(PRODUCT("64", D32, "%32", "%33, p, 1, 1, 0, 0;}") : R32(d) : "l"(left), "l"(right));
#if KDIM == 128
  else
    asm volatile(PRODUCT("128", D64, "%64", "%65, p, 1, 1, 0, 0;}") : R64(d) : "l"(left), "l"(right));
#endif
}

// d (64 rows and columns) += SIGN a b, 16 of the contraction, which goes down the swizzled rows of b; LEFT: of a, too.
template <int LEFT, int SIGN> DEVICE void turned_product(float (*d)[4], const HALF *a, const HALF *b) {
  asm volatile(PRODUCT("64", D32, "%32", "%33, p, %35, 1, %34, 1;}")
               : R32(d)
               : "l"(operand(a, 0)), "l"(operand(b, 0)), "n"(LEFT), "n"(SIGN));
}
