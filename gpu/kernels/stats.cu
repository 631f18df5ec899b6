// Statistics of an update, as codec/src/stats.rs sums them: a chunk of 2^16 elements in 32 lanes, the lanes by halves. A warp
// has one chunk; the caller adds chunks in order.
#include "words.cuh"

#define CHUNK 65536

struct Part {
    u64 changed;
    double sum, sum_sq, max_abs, dot, base_sq, target_sq;
};

// The bits of a value as f64: a NaN is quiet and keeps its bits, which a conversion here would drop.
static __device__ __forceinline__ u64 bits(float value) {
    u32 word = __float_as_uint(value);
    return (word & 0x7fffffff) > 0x7f800000u
               ? (u64)(word >> 31) << 63 | 0x7ff8000000000000ull | (u64)(word & 0x7fffff) << 29
               : (u64)__double_as_longlong((double)value);
}

template <int D>
static __device__ __forceinline__ double load(const void *data, u64 i, u32 *word) {
    *word = ((const typename Float<D>::Word *)data)[i];
    return (double)Float<D>::value(*word);
}

static __device__ __forceinline__ double shuffled(double x, int mask) {
    return __hiloint2double(__shfl_xor_sync(~0u, __double2hiint(x), mask),
                            __shfl_xor_sync(~0u, __double2loint(x), mask));
}

static __device__ __forceinline__ bool finite(double x) {
    return (__double2hiint(x) & 0x7ff00000) != 0x7ff00000;
}

template <int T, int B>
static __device__ __forceinline__ void stats(const void *target, const void *base, u64 count,
                                             Part *parts) {
    u64 chunk = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    u32 lane = threadIdx.x % 32;
    u64 start = chunk * CHUNK;
    // The whole warp leaves or stays.
    if (start >= count) return;
    u64 end = count - start < CHUNK ? count : start + CHUNK;
    u32 changed = 0;
    double sum = 0, sum_sq = 0, max_abs = 0, dot = 0, base_sq = 0, target_sq = 0;
    for (u64 i = start + lane; i < end; i += 32) {
        u32 t, b;
        double x = load<T>(target, i, &t), y = load<B>(base, i, &b);
        changed += T == B ? t != b : bits(Float<T>::value(t)) != bits(Float<B>::value(b));
        if (finite(x) && finite(y)) {
            double d = x - y;
            sum += d;
            sum_sq += d * d;
            max_abs = fabs(d) > max_abs ? fabs(d) : max_abs;
            dot += x * y;
            base_sq += y * y;
            target_sq += x * x;
        }
    }
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
        changed += __shfl_xor_sync(~0u, changed, half);
        sum += shuffled(sum, half);
        sum_sq += shuffled(sum_sq, half);
        double other = shuffled(max_abs, half);
        max_abs = other > max_abs ? other : max_abs;
        dot += shuffled(dot, half);
        base_sq += shuffled(base_sq, half);
        target_sq += shuffled(target_sq, half);
    }
    if (lane == 0) {
        Part part = {changed, sum, sum_sq, max_abs, dot, base_sq, target_sq};
        parts[chunk] = part;
    }
}

#define KERNEL(NAME, T, B)                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                             \
        NAME(const void *target, const void *base, u64 count, Part *parts) {                      \
        stats<T, B>(target, base, count, parts);                                                  \
    }

KERNEL(stats_bf16_bf16, BF16, BF16)
KERNEL(stats_f16_f16, F16, F16)
KERNEL(stats_f32_f32, F32, F32)
KERNEL(stats_bf16_f32, BF16, F32)
KERNEL(stats_f32_bf16, F32, BF16)
KERNEL(stats_f16_f32, F16, F32)
KERNEL(stats_f32_f16, F32, F16)
KERNEL(stats_bf16_f16, BF16, F16)
KERNEL(stats_f16_bf16, F16, BF16)
