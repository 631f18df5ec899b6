// What the decomposition of a difference needs besides products of matrices: the difference itself, what is known of its rounding,
// and blocks as f64.
#include "words.cuh"

// The variance of what rounding to a dtype did to a value, a twelfth of the square of its unit in the last place:
// delta/src/svd/floats.rs.
template <int D> static __device__ __forceinline__ float variance(float value) {
    constexpr int MANTISSA = D == F32 ? 23 : D == F16 ? 10 : 7, LEAST = D == F16 ? -14 : -126;
    int exponent = (int)(__float_as_uint(value) >> 23 & 0xff) - 127;
    int unit = (exponent > LEAST ? exponent : LEAST) - MANTISSA;
    int bits = 2 * unit + 127;
    bits = bits < 0 ? 0 : bits > 254 ? 254 : bits;
    return __fdiv_rn(__uint_as_float((u32)bits << 23), 12.0f);
}

// That of both words of an element; what is equal differs by no rounding.
template <int T, int B> static __device__ __forceinline__ double noise(float t, float b) {
    return t == b ? 0.0 : (double)(variance<T>(t) + variance<B>(b));
}

static __device__ __forceinline__ double shuffled(double x, int mask) {
    return __hiloint2double(__shfl_xor_sync(~0u, __double2hiint(x), mask),
                            __shfl_xor_sync(~0u, __double2loint(x), mask));
}

// Rows of `cols` elements, or a part of one: what is left of the tuned words less the base's, and for each row the sum of its
// squares and that of its variances, added to what was there. A warp has a row.
template <int T, int B>
static __device__ __forceinline__ void difference(const typename Float<T>::Word *tuned,
                                                  const typename Float<B>::Word *base, u64 rows,
                                                  u64 cols, float *out, double *sums) {
    u64 row = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    double squares = 0, variances = 0;
    for (u64 j = threadIdx.x % 32; j < cols; j += 32) {
        u64 i = row * cols + j;
        float t = Float<T>::value(tuned[i]), b = Float<B>::value(base[i]), d = t - b;
        out[i] = d;
        squares += (double)d * (double)d;
        variances += noise<T, B>(t, b);
    }
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
        squares += shuffled(squares, half);
        variances += shuffled(variances, half);
    }
    if (threadIdx.x % 32 == 0) {
        sums[2 * row] += squares;
        sums[2 * row + 1] += variances;
    }
}

// The variances of each column, added to what was there. A thread has a column.
template <int T, int B>
static __device__ __forceinline__ void columns(const typename Float<T>::Word *tuned,
                                               const typename Float<B>::Word *base, u64 rows,
                                               u64 cols, double *sums) {
    u64 j = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= cols) return;
    double sum = 0;
    for (u64 row = 0; row < rows; row++) {
        u64 i = row * cols + j;
        sum += noise<T, B>(Float<T>::value(tuned[i]), Float<B>::value(base[i]));
    }
    sums[j] += sum;
}

#define KERNELS(NAME, T, B)                                                                       \
    extern "C" __global__ void __launch_bounds__(128) svd_difference_##NAME(                      \
        const Float<T>::Word *tuned, const Float<B>::Word *base, u64 rows, u64 cols, float *out,  \
        double *sums) {                                                                           \
        difference<T, B>(tuned, base, rows, cols, out, sums);                                     \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(128) svd_columns_##NAME(                         \
        const Float<T>::Word *tuned, const Float<B>::Word *base, u64 rows, u64 cols,              \
        double *sums) {                                                                           \
        columns<T, B>(tuned, base, rows, cols, sums);                                             \
    }

KERNELS(bf16_bf16, BF16, BF16)
KERNELS(f16_f16, F16, F16)
KERNELS(f32_f32, F32, F32)
KERNELS(bf16_f32, BF16, F32)
KERNELS(f32_bf16, F32, BF16)
KERNELS(f16_f32, F16, F32)
KERNELS(f32_f16, F32, F16)
KERNELS(bf16_f16, BF16, F16)
KERNELS(f16_bf16, F16, BF16)

// Numbers times a power of two.
extern "C" __global__ void __launch_bounds__(256) svd_scale(float *values, u64 count, float by) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) values[i] *= by;
}

// `count` numbers of columns of `rows`, as f64: one column begins `stride` numbers after another.
extern "C" __global__ void __launch_bounds__(256)
    svd_widen(const float *from, u64 stride, u64 rows, u64 count, double *to) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = (double)from[i / rows * stride + i % rows];
}
