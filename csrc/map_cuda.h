// Feature maps in CUDA kernels, read and written in packs of 16 bytes where memory allows.
#pragma once

#include <cstring>
#include <type_traits>

#include "launch_cuda.h"
#include "map.h"

namespace zoominnet {

// One access to memory, or several of 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T values[N];
};

// Values in 16 bytes.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// How a kernel goes through maps: in packs along the rows, in packs along the channels (channels_last), or one value
// after the other, with any strides.
enum class Order { kColumns, kChannels, kAny };

// Whether memory allows to take a tensor's values, the first of which is at `data`, in packs along dimension `inner`.
template <class T>
bool fits_in_packs(const T* data, const Tensor& x, int64_t inner, int pack) {
  const size_t bytes = std::min<size_t>(pack * sizeof(T), 16);
  bool fits = x.numel() > 0 && x.stride(inner) == 1 && x.size(inner) % pack == 0 &&
              reinterpret_cast<uintptr_t>(data) % bytes == 0;
  for (int64_t d = 0; d < x.dim(); ++d) {
    fits = fits && (d == inner || x.size(d) <= 1 || x.stride(d) % pack == 0);
  }
  return fits;
}

// The order in which the maps of an operation can be read. float64 is for checks, not for speed.
class OrderOfMaps {
 public:
  // A map of which `columns` neighbours of a row, or kPack channels, are to be read at a time.
  template <class T>
  void include(const Map<T>& map, const Tensor& x, int columns) {
    constexpr bool fast = sizeof(T) < sizeof(double);
    columns_ = columns_ && fast && fits_in_packs(map.data, x, 3, columns);
    channels_ = channels_ && fast && fits_in_packs(map.data, x, 1, kPack<T>);
  }

  Order best() const { return columns_ ? Order::kColumns : channels_ ? Order::kChannels : Order::kAny; }

 private:
  bool columns_ = true, channels_ = true;
};

// N values, from a pack if `packed`, else `stride` apart.
template <int N, bool packed, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from, int64_t stride) {
  if constexpr (packed) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
  } else {
    Pack<T, N> pack;
    for (int n = 0; n < N; ++n) {
      pack.values[n] = from[n * stride];
    }
    return pack;
  }
}

template <int N, bool packed, class T>
__device__ __forceinline__ void store_pack(T* to, int64_t stride, const Pack<T, N>& pack) {
  if constexpr (packed) {
    // An assignment, of a uint4 too, would be taken apart into its values. This is a store of the ordinary kind (.wb)
    // in one instruction: what is written, the next kernel reads, so that no other level of the cache is better.
    using Word = std::conditional_t<sizeof(pack) == 16, uint4, uint2>;
    static_assert(sizeof(Word) == sizeof(pack));
    Word word;
    memcpy(&word, &pack, sizeof(word));
    __stwb(reinterpret_cast<Word*>(to), word);
  } else {
    for (int n = 0; n < N; ++n) {
      to[n * stride] = pack.values[n];
    }
  }
}

template <class T>
__device__ __forceinline__ Accumulated<T> widen(T value) {
  return convert<Accumulated<T>>(value);
}

// A position in sizes that are given from the innermost to the outermost but one.
struct Position {
  int64_t inner, second, third, outer;
};

__device__ __forceinline__ Position find_position(int64_t index, int64_t inner, int64_t second, int64_t third) {
  const Division a = divide(index, inner), b = divide(a.quotient, second), c = divide(b.quotient, third);
  return {a.remainder, b.remainder, c.remainder, c.quotient};
}

}  // namespace zoominnet
