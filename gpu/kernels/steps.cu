// Predictions that are the base's words moved by a step that depends on their mantissa: codec/src/shift.rs.
#include "words.cuh"

template <int D, u32 EXPONENT, u32 MANTISSA>
static __device__ __forceinline__ void move(const typename Float<D>::Word *base,
                                            typename Float<D>::Word *out, const int *steps,
                                            u64 count) {
    constexpr u32 TOP = (1u << EXPONENT) - 1, KEPT = MANTISSA < 8 ? MANTISSA : 8;
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    u32 word = base[i], field = word >> MANTISSA & TOP;
    u32 step = steps[word >> (MANTISSA - KEPT) & ((1u << KEPT) - 1)];
    out[i] = field == 0 || field == TOP ? word : word + step;
}

#define KERNEL(NAME, D, EXPONENT, MANTISSA)                                                       \
    extern "C" __global__ void __launch_bounds__(256) NAME(                                       \
        const Float<D>::Word *base, Float<D>::Word *out, const int *steps, u64 count) {           \
        move<D, EXPONENT, MANTISSA>(base, out, steps, count);                                     \
    }

KERNEL(steps_bf16, BF16, 8, 7)
KERNEL(steps_f16, F16, 5, 10)
KERNEL(steps_f32, F32, 8, 23)
