// The lattices D4 and E8 inside a cube, with numbered points (Conway and Sloane 1982, "Fast
// quantizing and decoding algorithms for lattice quantizers and codes").
//
// D_n: integer vectors with an even sum. E8: D8 and D8 + (1/2, ..., 1/2). Of them, the points
// with every integer coordinate in -Q .. Q - 1, every half-integer one in -Q + 1/2 .. Q - 1/2:
// one of each class modulo 2Q, (2Q)^8 of E8 and (2Q)^4 / 2 of D4.
//
// Thread-safe: values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcask {

enum class LatticeKind : uint8_t { kD4 = 4, kE8 = 8 };  // the number of dimensions

inline constexpr int kMinLatticeQ = 2, kMaxLatticeQ = 1024;

using LatticeIndex = unsigned __int128;

struct Lattice {
  LatticeKind kind = LatticeKind::kE8;
  int q = 38;

  int dimensions() const { return static_cast<int>(kind); }
  LatticeIndex points() const;
  int bits() const;  // of an index: ceil(log2(points()))

  // The nearest of the points to y (fp32; distances are summed in fp32, in the order of the
  // coordinates; of equally near ones: integers before halves, then the first coordinate that
  // may move), twice its coordinates. |y[i]| <= Q - 1/2 loses nothing to the cube's sides.
  void Nearest(const float* y, int* twice) const;

  LatticeIndex IndexOf(const int* twice) const;
  // False when the index is not below points().
  bool PointOf(LatticeIndex index, int* twice) const;
};

// A row of n elements (KakeyaLattice v1.4 and v1.5): its length, its direction turned by a
// Hadamard transform, the direction's largest element, and lattice points of blocks of 4 or 8.
//
// Two halves (length, largest element), then the indices side by side, little-endian:
// 32 + ceil(n / dimensions) * bits() bits, in whole bytes.
size_t LatticeRowBytes(const Lattice& lattice, size_t n);
inline constexpr size_t kMaxLatticeRow = 4096;
// Rows one after the other on both sides; x is finite, and overwritten. `signs`:
// HadamardSigns(n). False when a length is beyond a half's range.
bool EncodeLatticeRows(const Lattice& lattice, const float* signs, size_t n, float* x, size_t rows,
                       uint8_t* out);
// False when a half is negative or not finite, or an index no point.
bool DecodeLatticeRows(const Lattice& lattice, const float* signs, size_t n, const uint8_t* in,
                       size_t rows, float* x);

}  // namespace kvcask
