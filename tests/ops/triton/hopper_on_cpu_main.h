// The launch of the kernel NAME.

static void *const *given;

// An argument of whatever type the kernel takes in its place.
struct Slot {
  void *x;
  template <typename T> operator T *() const { return (T *)x; }
  operator int() const { return (int)(long long)x; }
};

template <typename... Types, size_t... I> static void call(void (*run)(Types...), std::index_sequence<I...>) {
  run(Slot{given[I]}...);
}

template <typename... Types> static void call(void (*run)(Types...)) { call(run, std::index_sequence_for<Types...>()); }

static void kernel() {
  call(NAME);
}

static void nothing_is_under_way() {
  for (const auto &copies : under_way)
    if (!copies.empty()) std::abort();  // into the shared memory of a block that has left
}

extern "C" void launch(void *const *arguments, int blocks) {
  given = arguments, block_is_done = nothing_is_under_way;
  run_clusters(kernel, blocks);
}

extern "C" int shared_size() { return sizeof(Shared); }
