// The launch of decode_cluster.cu.

static void *const *given;

static void kernel() {
  void *const *x = given;
  decode_cluster((const KEY *)x[0], (const KEY *)x[1], (const KEY *)x[2], (const float *)x[3], (const float *)x[4],
                 (const float *)x[5], (const float *)x[6], (const float *)x[7], (float *)x[8], (float *)x[9],
                 (KEY *)x[10], (float *)x[11], (float *)x[12], (float *)x[13]);
}

extern "C" void launch(void *const *tensors, int beliefs) {
  given = tensors;
  run_clusters(kernel, beliefs);
}
