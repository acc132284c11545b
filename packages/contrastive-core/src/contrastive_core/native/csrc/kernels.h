// What the code of one instruction set offers to the rest: work on one tile of the similarity matrix.
//
// Headers seen by files compiled with -mavx... must bring no inline function of the standard library along: the linker
// would keep one copy of it, perhaps the one with instructions that the processor lacks.
#pragma once
#include <cstdint>

namespace contrastive {

// Rows of a tile at most, and the distance between two rows of a Matrix. A multiple of every panel; the odd 16 keep the
// rows of a column from falling into the same few lines of the cache.
constexpr int kLargestBlock = 384;
constexpr int kStride = kLargestBlock + 16;

// Which entries (row, column) of the whole matrix count.
struct Candidates {
  int64_t rows, columns;
  bool upper;              // only those with column > row
  int omitted;             // how many of `omit` there are
  int64_t omit[3];         // left out are the entries with column - row equal to one of these
  const int32_t* first;    // per row: the columns of its class are [first, last); null: there are no classes
  const int32_t* last;
  bool same;               // count the columns of the class, or the others
};

// A tile: vectors in packed panels, [panel][depth][vectors of a panel], zeros after the last vector.
template <class T>
struct Tile {
  const T* rows;
  const T* columns;
  int64_t depth;
  int64_t row, column;  // of its first entry in the matrix
  int height, width;
  const Candidates* candidates;
  T* strip;  // scratch: 8 rows of kStride
};

// Numbers for the entries of a tile, with what is known to be zero: outside [first, last) of a strip of rows everything.
template <class T>
struct Matrix {
  T* at;  // [kLargestBlock][kStride]
  int height, width;
  bool upper;  // zero on and below the diagonal
};

template <class T>
struct Kernels {
  int panel;           // vectors in a packed panel of a Tile
  int gradient_panel;  // features in a packed panel of add_product

  // Sums of exp2 over the rows [height] and over the columns [width] of a tile.
  void (*square_forward)(const Tile<T>&, double* row_sums, double* column_sums);
  // Maximum of each row, and the sum of exp2 of the distances to it.
  void (*rectangle_forward)(const Tile<T>&, T* tops, double* sums);
  // out = exp2(S) (row_weight + column_weight); false if no entry of the tile counts.
  bool (*square_weights)(const Tile<T>&, const T* row_weight, const T* column_weight, T* out);
  // out = exp2(S - shift) weight, both per row.
  bool (*rectangle_weights)(const Tile<T>&, const T* shift, const T* weight, T* out);
  // out [height, depth] += matrix vectors, or [width, depth] += matrix^T vectors. `vectors` in packed panels,
  // [panel][vector][gradient_panel features]; rows of out lie `depth` apart. Small entries may be left out: in a row of the
  // result their sizes add up to `omit` at most for each entry that the row sums; 0: none.
  void (*add_product)(const Matrix<T>&, bool transposed, const T* vectors, int64_t depth, T omit, T* out);
};

// Of single vectors [count, depth]: see vectors.h. X is the type of the input, Z that of the directions.
template <class X, class Z>
struct Directions {
  void (*unit)(const X* x, int64_t count, int64_t depth, Z* z, double* length);
  void (*gradient)(const Z* gradient, const Z* z, const double* length, int64_t count, int64_t depth, X* out);
};

template <class T>
struct Pairs {
  void (*similarity)(const T* a, const T* b, int64_t count, int64_t depth, double* out);
  void (*gradient)(const double* gradient, const T* a, const T* b, int64_t count, int64_t depth, T* da, T* db);
};

struct InstructionSet {
  const char* name;
  Kernels<float> single;
  Kernels<double> twice;
  Directions<float, float> directions;
  Directions<float, double> exact_directions;
  Directions<double, double> directions_of_doubles;
  Pairs<float> pairs;
  Pairs<double> pairs_of_doubles;
};

extern const InstructionSet kAvx512, kAvx2;

}  // namespace contrastive
