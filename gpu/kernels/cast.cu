// Words of one float dtype from those of another, with one rounding: codec/src/cast.rs.
#include "words.cuh"

// Every NaN becomes the same one.
template <int D> static __device__ __forceinline__ u32 no_number() {
    return D == BF16 ? 0x7fc0u : D == F16 ? 0x7e00u : 0x7fc00000u;
}

template <int F, int T>
static __device__ __forceinline__ void cast(const typename Float<F>::Word *from,
                                            typename Float<T>::Word *to, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float value = Float<F>::value(from[i]);
    bool is_number = (__float_as_uint(value) & 0x7fffffff) <= 0x7f800000u;
    to[i] = is_number ? Float<T>::round(value) : no_number<T>();
}

#define KERNEL(NAME, F, T)                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                             \
        cast_##NAME(const Float<F>::Word *from, Float<T>::Word *to, u64 count) {                  \
        cast<F, T>(from, to, count);                                                              \
    }

KERNEL(bf16_f16, BF16, F16)
KERNEL(bf16_f32, BF16, F32)
KERNEL(f16_bf16, F16, BF16)
KERNEL(f16_f32, F16, F32)
KERNEL(f32_bf16, F32, BF16)
KERNEL(f32_f16, F32, F16)
