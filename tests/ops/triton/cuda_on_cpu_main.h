// The launch: every block in turn, its threads as fibers.

struct Arguments {
  const void *k;
  const float *log_retention, *process_noise, *obs_noise, *floor, *initial;
  const int *seq_start, *chunk_first;
  float *gain, *innovation_var, *checkpoint, *final;
  int H, G, blocks_a_chunk;
};
static const Arguments *given;

static void thread_main() {
  const Arguments &x = *given;
  covariance_forward((const KEY *)x.k, x.log_retention, x.process_noise, x.obs_noise, x.floor, x.initial, x.seq_start,
                     x.chunk_first, x.gain, x.innovation_var, x.checkpoint, x.final, x.H, x.G, x.blocks_a_chunk);
  finished[current] = true;
}

extern "C" void launch(const Arguments *arguments, int blocks) {
  given = arguments;
  std::vector<char> stacks(FIBERS * (1 << 16));
  for (current_block = 0; current_block < blocks; ++current_block) {
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
  }
}

extern "C" int shared_size() { return sizeof(Shared); }
