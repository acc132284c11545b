// Interface of the kernels of one instruction set, which work on one tile of the similarity matrix.
//
// Headers of files compiled with -mavx... must not include inline functions of the standard library: the linker would
// keep one copy of such a function, possibly one with instructions that the processor lacks.
#pragma once
#include <cstdint>

namespace contrastive {

// Largest number of rows of a tile, and the distance between two rows of a Matrix, which is a multiple of every panel. The
// additional 16 prevent the entries of a column from sharing the same few cache lines.
constexpr int kLargestBlock = 384;
constexpr int kStride = kLargestBlock + 16;

// Entries (row, column) of the whole matrix that are candidates.
struct Candidates {
  int64_t rows, columns;
  bool upper;              // only entries with column > row
  int omitted;             // number of values in `omit`
  int64_t omit[3];         // entries with column - row equal to one of these values are excluded
  const int32_t* first;    // per row: the columns of its class are [first, last); null without classes
  const int32_t* last;
  bool same;               // whether the columns of the same class are candidates, or those of other classes
};

// Tile of the matrix, with vectors in packed panels [panel][depth][vectors of a panel] and zeros after the last vector.
template <class T>
struct Tile {
  const T* rows;
  const T* columns;
  int64_t depth;
  int64_t row, column;  // position of the tile's first entry in the matrix
  int height, width;
  const Candidates* candidates;
  T* strip;  // scratch: 8 rows of kStride
};

// Weights of the entries of a tile; in a strip of rows, all weights outside [first, last) are zero.
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

  // Computes the sums of exp2 over the rows [height] and over the columns [width] of a tile.
  void (*square_forward)(const Tile<T>&, double* row_sums, double* column_sums);
  // Computes the maximum of each row and the sum of exp2 of the differences from it.
  void (*rectangle_forward)(const Tile<T>&, T* tops, double* sums);
  // Computes out = exp2(S) (row_weight + column_weight); returns false if no entry of the tile is a candidate.
  bool (*square_weights)(const Tile<T>&, const T* row_weight, const T* column_weight, T* out);
  // Computes out = exp2(S - shift) weight, with shift and weight per row.
  bool (*rectangle_weights)(const Tile<T>&, const T* shift, const T* weight, T* out);
  // Computes out [height, depth] += matrix vectors, or [width, depth] += matrix^T vectors. `vectors` has packed panels
  // [panel][vector][gradient_panel features]; the rows of out are `depth` apart. Small entries may be omitted: in a row of
  // the result their sizes add up to at most `omit` for each entry that the row sums; with 0, none is omitted.
  void (*add_product)(const Matrix<T>&, bool transposed, const T* vectors, int64_t depth, T omit, T* out);
};

// Functions of single vectors [count, depth], see vectors.h. X is the type of the input, Z that of the unit vectors.
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
