// The inverse U = (I + X)^-1 of a lower triangle of tokens by tokens for covariance_prepare.cu: blocks of 16 on the diagonal
// are substituted, a column a lane; twice over the next of a pair of blocks joins the one before it,
//
//   U_21 = -U_22 X_21 U_11
//
// by single warps, each with 16 rows. As products of whole squares by warpgroups these took a quarter of the kernel's time,
// most of it for zeros and for meetings.
//
// U and X lie turned: as an operand with columns for its rows.

#define SIDE 16  // of a block that is substituted

// What corner_of gives, put back.
DEVICE void set_corner(float (*x)[4], const float from[2][4], int block) {
#pragma unroll
  for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) x[j][i] = block == j / 2 ? from[j & 1][i] : x[j][i];
}

// One column of the inverse of a block of 16, unit lower triangular, of which shared memory holds what is below.
DEVICE void substitute(float u[SIDE], const float (*below)[SIDE + 4], int own) {
#pragma unroll
  for (int i = 0; i < SIDE; ++i) u[i] = i == own ? 1.f : 0.f;
#pragma unroll
  for (int j = 0; j < SIDE - 1; ++j) {
    float x[SIDE];
#pragma unroll
    for (int i = j & ~3; i < SIDE; i += 4) load4(x + i, below[j] + i);
#pragma unroll
    for (int i = j + 1; i < SIDE; ++i) u[i] -= x[i] * u[j];
  }
}

// d (16 rows by 8) += a b of pairs, 16 of the contraction, from plane `of` on, and 8 columns of b.
DEVICE void warp_pair_product(float d[4], const unsigned high[4], const unsigned low[4], const Square &b, int of, int column) {
  const int place = 8 * column + 2 * (THREAD & 31);  // a lane's two numbers of 8 columns by 8
  unsigned highs[2], lows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) highs[i] = load_two(b[0][of + i] + place), lows[i] = load_two(b[1][of + i] + place);
  warp_product(d, high, lows), warp_product(d, low, highs), warp_product(d, high, highs);
}

// This warp's 16 rows, the `side`th, of U_21, where U_11 has SIZE rows from the `first`th on; U gets them, too.
template <int SIZE> DEVICE void join(float (*out)[4], Square &u, const Square &x, int first, int side) {
  const int tile = THREAD % 32 >> 3, line = THREAD & 7;
  float half_way[SIZE / 8][4];
  clear<SIZE / 8>(half_way), clear<SIZE / 8>(out);
#pragma unroll
  for (int c = SIZE / 8; c < SIZE / 4; c += 2) {
    const int at = 8 * (first + 8 * c + 8 * (tile >> 1) + line), plane = 2 * side + (tile & 1);
    unsigned high[4], low[4];
    load_turned(high, u[0][plane] + at), load_turned(low, u[1][plane] + at);
#pragma unroll
    for (int j = 0; j < SIZE / 8; ++j) warp_pair_product(half_way[j], high, low, x, first / 8 + c, first + 8 * j);
  }
#pragma unroll
  for (int c = 0; c < SIZE / 8; c += 2) {
    unsigned high[4], low[4];
    left_of(high, low, half_way[c], half_way[c + 1]);
#pragma unroll
    for (int j = 0; j <= c + 1; ++j) warp_pair_product(out[j], high, low, u, first / 8 + c, first + 8 * j);  // others: zeros
  }
#pragma unroll
  for (int j = 0; j < SIZE / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[j][i] = -out[j][i];
    unsigned tiles[4];
    pair_of(tiles, out[j]);
    store_turned(u[tile >> 1][2 * side + (tile & 1)] + 8 * (first + 8 * j + line), tiles);
  }
}
