// Products of pairs of bfloat16, x = high + low (covariance_products.py), by warpgroups: what the kernels of
// hopper.py share. Each warpgroup has 64 rows of what it makes.
//
// What tensor cores read from shared memory has the contraction along its rows. What threads write there lies in
// planes of 8 numbers of the contraction, 16 bytes for every row or column of the operand, padded against bank conflicts.
// What is copied there lies in rows of 64 numbers as in memory, so that 128 bytes stay together, the eighths of
// a row in an order of their own (swizzled). An accumulator holds rows g and g + 8 of its warp's 16, columns 2t and 2t + 1 of
// every 8 (lane = 4 g + t), and two of those are an operand's 16 columns as they are.

#define TOKENS 64
#define GROUPS (KDIM / 64)
#define TILES (KDIM / 8)
#define WIDTH (TOKENS / GROUPS)       // columns that a warpgroup makes of a matrix of tokens by tokens
#define TOKEN_PLANE (8 * TOKENS + 8)  // a plane with a row for every token, in halves
#define CHANNEL_PLANE (8 * KDIM + 8)  // with a row for every channel
#define EIGHTHS (TOKENS / 8)
#define SQUARE (TOKENS * TOKENS)
#define ROWS (THREADS / TILES)    // of tokens by channels that all threads copy at once, an eighth each
#define PARTS (THREADS / TOKENS)  // threads a token
#define WARPS (THREADS / 32)

// Where an eighth of a swizzled row lies.
DEVICE int swizzled(int row, int eighth) { return 64 * row + 8 * (eighth ^ (row & 7)); }

// Two neighbours as pairs: the high halves, and the low ones.
struct Halves { unsigned high, low; };

DEVICE Halves halves(float x, float y) {
  Halves h;
  h.high = bfloat16s(x, y);
  h.low = bfloat16s(x - as_float(h.high << 16), y - as_float(h.high & 0xffff0000u));
  return h;
}

// An operand's pair in shared memory; planes so far apart, or none: swizzled rows.
struct Operand {
  const HALF *high, *low;
  int plane;
};

// d += a b of pairs: 16 of the contraction; a in registers, or the 64 rows of this warpgroup in shared memory.
template <int COLUMNS> DEVICE void pair_product(float (*d)[4], const unsigned high[4], const unsigned low[4], const Operand &b) {
  product<COLUMNS>(d, high, b.low, b.plane);
  product<COLUMNS>(d, low, b.high, b.plane);
  product<COLUMNS>(d, high, b.high, b.plane);
}

template <int COLUMNS> DEVICE void pair_product(float (*d)[4], const Operand &a, const Operand &b) {
  product<COLUMNS>(d, a.high, a.plane, b.low, b.plane);
  product<COLUMNS>(d, a.low, a.plane, b.high, b.plane);
  product<COLUMNS>(d, a.high, a.plane, b.high, b.plane);
}

template <int COUNT> DEVICE void hold_all(float (*d)[4]) {
#pragma unroll
  for (int j = 0; j < COUNT; ++j) hold(d[j]);
}

template <int COUNT> DEVICE void finish(float (*d)[4]) {  // of all products begun
  group_commit();
  group_wait<0>();
  hold_all<COUNT>(d);
}

template <int COUNT> DEVICE void clear(float (*d)[4]) {
#pragma unroll
  for (int j = 0; j < COUNT; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) d[j][i] = 0.f;
}

// Eight neighbours as a pair, 16 bytes each.
DEVICE void store_eight(HALF *high, HALF *low, const float x[8]) {
  unsigned highs[4], lows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Halves h = halves(x[2 * i], x[2 * i + 1]);
    highs[i] = h.high, lows[i] = h.low;
  }
  store16(high, highs), store16(low, lows);
}

// A matrix of tokens by tokens as a pair: high, low.
typedef HALF Square[2][EIGHTHS][TOKEN_PLANE];

// Eighths c and c + 1 of its contraction, from a row on.
DEVICE Operand planes(const Square &x, int c, int row) { return {x[0][c] + 8 * row, x[1][c] + 8 * row, TOKEN_PLANE}; }

// What is copied: tokens by channels, 64 channels after 64; and as an operand with tokens for its rows, from one on.
typedef HALF Rows[GROUPS][64 * TOKENS];
DEVICE Operand rows_at(const Rows *x, int c, int row) {
  const int at = 64 * row + 8 * (c % 8);
  return {x[0][c / 8] + at, x[1][c / 8] + at, 0};
}

// A pair of tiles of an accumulator's 8 columns, rows g and g + 8: high, high, low, low.
DEVICE void pair_of(unsigned tiles[4], const float x[4]) {
  const Halves upper = halves(x[0], x[1]), lower = halves(x[2], x[3]);
  tiles[0] = upper.high, tiles[1] = lower.high, tiles[2] = upper.low, tiles[3] = lower.low;
}

// A product's left side of two of those.
DEVICE void left_of(unsigned high[4], unsigned low[4], const float x[4], const float y[4]) {
  unsigned one[4], other[4];
  pair_of(one, x), pair_of(other, y);
  high[0] = one[0], high[1] = one[1], high[2] = other[0], high[3] = other[1];
  low[0] = one[2], low[1] = one[3], low[2] = other[2], low[3] = other[3];
}

// What a warpgroup has made of a matrix of tokens by tokens, 64 rows and its WIDTH columns, for an operand whose rows are
// the same; turned, whose rows are its columns.
DEVICE void store_square(Square &to, const float x[WIDTH / 8][4]) {
  const int warp = THREAD / 32, tile = THREAD % 32 >> 3, line = THREAD & 7;  // of four tiles, whose place this lane tells
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    unsigned tiles[4];
    pair_of(tiles, x[j]);
    store_tiles(to[tile >> 1][WIDTH / 8 * (warp / 4) + j] + 8 * (16 * (warp % 4) + 8 * (tile & 1) + line), tiles);
  }
}

DEVICE void store_square_turned(Square &to, const float x[WIDTH / 8][4]) {
  const int warp = THREAD / 32, tile = THREAD % 32 >> 3, line = THREAD & 7;
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j) {
    unsigned tiles[4];
    pair_of(tiles, x[j]);
    store_turned(to[tile >> 1][2 * (warp % 4) + (tile & 1)] + 8 * (WIDTH * (warp / 4) + 8 * j + line), tiles);
  }
}

// The two tiles of what a warp has of a square, 8 columns each, that lie in a block of 16 from the left.
DEVICE void corner_of(float out[2][4], const float (*x)[4], int block) {
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[j & 1][i] = j < 2 || block == j / 2 ? x[j][i] : out[j & 1][i];
}

// Of the diagonal of a square what lies with this thread: of rows g and g + 8, where lane = 4 g + g / 2 (own_diagonal).
DEVICE bool own_diagonal(int lane) { return lane % 4 == lane / 4 >> 1; }
DEVICE void diagonal_of(float out[2], const float corner[2][4], int g) {
  out[0] = g & 1 ? corner[0][1] : corner[0][0], out[1] = g & 1 ? corner[1][3] : corner[1][2];
}

// The left side, this warp's 16 channels by tokens 8 c to 8 c + 15, of what lies with tokens for its rows.
DEVICE void turned_rows(unsigned tiles[4], const Rows &rows, int c) {
  const int tile = THREAD % 32 >> 3, line = THREAD & 7;
  const int token = 8 * c + 8 * (tile >> 1) + line, eighth = 2 * (THREAD / 32) + (tile & 1);
  load_turned(tiles, rows[eighth / 8] + swizzled(token, eighth % 8));
}

// The left side, 16 rows of tokens by channels 8 c to 8 c + 15, of what is copied.
DEVICE void rows_of(unsigned tiles[4], const Rows *x, int c) {
  const int tile = THREAD % 32 >> 3, token = 16 * (THREAD / 32 % 4) + 8 * (tile & 1) + (THREAD & 7);
  load_tiles(tiles, x[0][c / 8] + swizzled(token, (c + (tile >> 1)) % 8));
}

// The left side, 16 rows by eighths c and c + 1 of the contraction, of a matrix of tokens by tokens; or of it turned.
template <bool TURNED> DEVICE void square_rows(unsigned high[4], unsigned low[4], const Square &x, int c) {
  const int tile = THREAD % 32 >> 3, line = THREAD & 7, side = THREAD / 32 % 4;
  if (TURNED) {
    const int plane = 2 * side + (tile & 1), at = 8 * (8 * c + 8 * (tile >> 1) + line);
    load_turned(high, x[0][plane] + at), load_turned(low, x[1][plane] + at);
  } else {
    const int plane = c + (tile >> 1), at = 8 * (16 * side + 8 * (tile & 1) + line);
    load_tiles(high, x[0][plane] + at), load_tiles(low, x[1][plane] + at);
  }
}

// Two tiles of 8 columns side by side: where a thread's four numbers of a row begin.
DEVICE int beside() { return 8 * (THREAD & 1) + 4 * (THREAD >> 1 & 1); }

// Of two neighbours in either of two such tiles that a lane and its neighbour have: four of the one, or of the other.
DEVICE void four_of(unsigned four[4], const float *x, const float *y, bool other) {
  const float one = shuffle_xor(other ? x[0] : y[0], 1), two = shuffle_xor(other ? x[1] : y[1], 1);
  four[0] = as_bits(other ? one : x[0]), four[1] = as_bits(other ? two : x[1]);
  four[2] = as_bits(other ? y[0] : one), four[3] = as_bits(other ? y[1] : two);
}

// Such tiles to rows so far apart: neighbours swap, so that a thread has four numbers of a row, and
// a warp's instruction is 64 bytes of each of its rows. What the first cache takes is counted by rows.
DEVICE void store_beside(float *to, int apart, const float x[4], const float y[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    unsigned four[4];
    four_of(four, x + i, y + i, THREAD & 1);
    send16(to + apart * 4 * i + beside(), four);
  }
}

// Such tiles from what a thread has fetched of rows g and g + 8.
DEVICE void from_beside(float x[4], float y[4]) {
  const bool odd = THREAD & 1;
  const float upper[4] = {x[0], x[1], x[2], x[3]}, lower[4] = {y[0], y[1], y[2], y[3]};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float up = shuffle_xor(odd ? upper[i] : upper[2 + i], 1), down = shuffle_xor(odd ? lower[i] : lower[2 + i], 1);
    x[i] = odd ? up : upper[i], y[i] = odd ? upper[2 + i] : up;
    x[2 + i] = odd ? down : lower[i], y[2 + i] = odd ? lower[2 + i] : down;
  }
}

// What has a row a token, so far apart, as tiles of 8 tokens with channels for their rows: a thread fetches two neighbours of
// its warp's 16 channels, of two tokens, and has them where they belong once they are turned.
DEVICE void fetch_channels(float (*x)[4], const float *from, int apart, int live) {
  const int lane = THREAD % 32, token = 2 * (lane % 4);
  from += (long long)token * apart + 16 * (THREAD / 32) + 2 * (lane / 4);
#pragma unroll
  for (int c = 0; c < EIGHTHS; ++c, from += 8ll * apart)
#pragma unroll
    for (int i = 0; i < 2; ++i) fetch2(x[c] + 2 * i, from + i * apart, 8 * c + token + i < live);
}

DEVICE void turn_channels(float x[4]) {
  const int lane = THREAD % 32, g = lane / 4, near = 4 * (g >> 1) + lane % 4;  // who has row g; row g + 8: half a warp on
  const bool odd = g & 1, far = g > 3;
  float out[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // who is far gives the second of its two first, so that nobody has to give both at once
    const float first = shuffle(far ? x[2 * i + 1] : x[2 * i], odd ? near + 16 : near);
    const float second = shuffle(far ? x[2 * i] : x[2 * i + 1], odd ? near : near + 16);
    out[i] = odd ? second : first, out[2 + i] = odd ? first : second;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = out[i];
}

// Two neighbours of such: tile j of two, number i of an accumulator's four.
DEVICE float one_of(const unsigned tiles[4], int j, int i) {
  const unsigned two = tiles[2 * j + (i >> 1)];
  return as_float(i & 1 ? two & 0xffff0000u : two << 16);
}

// The sum of the squares of eight neighbours.
DEVICE float squares_of_eight(const HALF *at) {
  unsigned x[4];
  load16(x, at);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float lower = as_float(x[i] << 16), upper = as_float(x[i] & 0xffff0000u);
    sum += lower * lower + upper * upper;
  }
  return sum;
}

// The two sums of the logs of ratios over the tokens up to each, of two tokens a lane, whose differences are exact to rounding
// (ratios.py): of multiples of 1/256, and of what is left.
DEVICE void sum_logs(float *coarse, float *fine, const float x[2], int lane) {
  float part[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) part[0][i] = round_down(x[i] * 256.f + .5f) * .00390625f, part[1][i] = x[i] - part[0][i];
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    float up_to = part[which][0] + part[which][1];
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      const float more = shuffle(up_to, lane - step & 31);
      if (lane >= step) up_to += more;
    }
    const float last = shuffle(up_to, lane - 1 & 31), before = lane ? last : 0.f;
    store2((which ? fine : coarse) + 2 * lane, before + part[which][0], before + (part[which][0] + part[which][1]));
  }
}

// R_t / R_u from the two sums of either, where u comes before t.
DEVICE float below(const float of[2], const float sum[2], bool is) {
  return is ? exponential((of[0] - sum[0]) + (of[1] - sum[1])) : 0.f;
}
