// The launch of covariance_chain.cu.

static void *const *given;
static int heads;

static void kernel() {
  void *const *x = given;
  covariance_chain((const HALF *)x[0], (const HALF *)x[1], (const float *)x[2], (const HALF *)x[3], (const HALF *)x[4],
                   (const float *)x[5], (const float *)x[6], (const float *)x[7], (const float *)x[8], (HALF *)x[9],
                   (HALF *)x[10], (float *)x[11], (float *)x[12], (float *)x[13], (float *)x[14], (const int *)x[15],
                   (const int *)x[16], heads);
}

extern "C" void launch(void *const *tensors, int H, int blocks) {
  given = tensors, heads = H;
  run_clusters(kernel, blocks);
}

extern "C" int shared_size() { return sizeof(Shared); }
