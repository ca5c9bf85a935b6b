// The launch of the covariance pass.

struct Arguments {
  const void *k;
  const float *log_retention, *process_noise, *obs_noise, *floor, *initial;
  const int *seq_start, *chunk_first;
  float *gain;
  unsigned short *gain_low;
  float *innovation_var, *checkpoint, *final, *edge;
  int *count;
  int H, G, steps_a_chunk, segments, initial_stride;
};
static const Arguments *given;

static void kernel() {
  const Arguments &x = *given;
#if MEND
  covariance_mend(
#else
  covariance_forward(
#endif
                     (const KEY *)x.k, x.log_retention, x.process_noise, x.obs_noise, x.floor, x.initial, x.seq_start,
                     x.chunk_first, x.gain, x.gain_low, x.innovation_var, x.checkpoint, x.final, x.edge,
                     x.count, x.H, x.G, x.steps_a_chunk, x.segments, x.initial_stride);
}

extern "C" void launch(const Arguments *arguments, int blocks) {
  given = arguments;
  run_clusters(kernel, blocks);
}

extern "C" int shared_size() { return sizeof(Shared); }
