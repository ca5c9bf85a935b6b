// What covariance_warpgroups.cu and covariance_chain.cu need of the machine: Hopper (sm_90a).
//
// Products of four warps at once: d (64 rows, as the accumulators of mma) += SIGN a b; a in registers, b in shared memory in
// blocks of 8 columns x 4 of the contraction, 128 bytes each, the second four in the next plane.
#define G4(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
template <int SIGN> DEVICE void group_product_16(float (*d)[4], const unsigned *a, unsigned long long b) {
  asm volatile(
      "{.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, {%8, %9, %10, %11}, %12, p, %14, 1;}"
      : G4(d[0]), G4(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(SIGN));
}
#if KDIM == 64
template <int SIGN> DEVICE void group_product_64(float (*d)[4], const unsigned *a, unsigned long long b) {
  asm volatile(
      "{.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, %38, 1;}"
      : G4(d[0]), G4(d[1]), G4(d[2]), G4(d[3]), G4(d[4]), G4(d[5]), G4(d[6]), G4(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(SIGN));
}
#endif
#if KDIM == 128
template <int SIGN> DEVICE void group_product_128(float (*d)[4], const unsigned *a, unsigned long long b) {
  asm volatile(
      "{.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, %70, 1;}"
      : G4(d[0]), G4(d[1]), G4(d[2]), G4(d[3]), G4(d[4]), G4(d[5]), G4(d[6]), G4(d[7]),
        G4(d[8]), G4(d[9]), G4(d[10]), G4(d[11]), G4(d[12]), G4(d[13]), G4(d[14]), G4(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(SIGN));
}
#endif
#if KDIM == 256
template <int SIGN> DEVICE void group_product_256(float (*d)[4], const unsigned *a, unsigned long long b) {
  asm volatile(
      "{.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, {%128, %129, %130, %131}, %132, p, %134, 1;}"
      : G4(d[0]), G4(d[1]), G4(d[2]), G4(d[3]), G4(d[4]), G4(d[5]), G4(d[6]), G4(d[7]),
        G4(d[8]), G4(d[9]), G4(d[10]), G4(d[11]), G4(d[12]), G4(d[13]), G4(d[14]), G4(d[15]),
        G4(d[16]), G4(d[17]), G4(d[18]), G4(d[19]), G4(d[20]), G4(d[21]), G4(d[22]), G4(d[23]),
        G4(d[24]), G4(d[25]), G4(d[26]), G4(d[27]), G4(d[28]), G4(d[29]), G4(d[30]), G4(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(SIGN));
}
#endif
template <int COLUMNS, int SIGN> DEVICE void group_product(float (*d)[4], const unsigned *a, const float *b, int plane) {
  const unsigned long long at = (__cvta_generic_to_shared(b) & 0x3ffff) >> 4;
  // Strides: to the second four of the contraction, and to 8 more columns.
  const unsigned long long operand = at | (unsigned long long)(plane / 4) << 16 | (unsigned long long)(128 / 16) << 32;
  if constexpr (COLUMNS == 16) group_product_16<SIGN>(d, a, operand);
#if KDIM == 64
  else group_product_64<SIGN>(d, a, operand);
#elif KDIM == 128
  else group_product_128<SIGN>(d, a, operand);
#else
  else group_product_256<SIGN>(d, a, operand);
#endif
}
DEVICE void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEVICE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
DEVICE void hold(float *x) { asm volatile("" : G4(x)::"memory"); }  // nothing reads x before this
DEVICE void fence_for_groups() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
