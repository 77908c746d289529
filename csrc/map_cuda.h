// Feature maps in CUDA kernels, read and written in packs of 16 bytes where memory allows.
#pragma once

#include <cstring>
#include <type_traits>

#include "launch_cuda.h"
#include "map.h"

namespace zoominnet {

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T values[N];
};

// Values in 16 bytes.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// How a kernel goes through maps: in packs along the rows, in packs along the channels (channels_last), or one value
// after the other, with any strides.
enum class Order { kColumns, kChannels, kAny };

// The order in which the maps of an operation can be read. float64 is for checks, not for speed.
class OrderOfMaps {
 public:
  // A map of which `columns` neighbours of a row, or kPack channels, are to be read at a time.
  template <class T>
  void include(const Map<T>& map, const Tensor& x, int columns) {
    const auto strides = x.strides(), sizes = x.sizes();
    const auto fits = [&](size_t inner, int pack) {
      bool fit = strides[inner] == 1 && sizes[inner] % pack == 0 &&
                 reinterpret_cast<uintptr_t>(map.data) % (pack * sizeof(T)) == 0;
      for (size_t d = 0; d < 4; ++d) {
        fit = fit && (d == inner || sizes[d] <= 1 || strides[d] % pack == 0);
      }
      return fit && x.numel() > 0 && sizeof(T) < sizeof(double);
    };
    columns_ = columns_ && fits(3, columns);
    channels_ = channels_ && fits(1, kPack<T>);
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
    // An assignment, of a uint4 too, would be taken apart into its values. This is a store of the ordinary kind (.wb) in
    // one instruction: what is written, the next kernel reads, so that no other level of the cache is better.
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
