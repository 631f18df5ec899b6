// The prediction by the base plus an update of low rank: codec/src/lowrank/predict.rs, bit for bit. One element is a chain
// of fused multiply-adds over the rank in ascending order.
#include "words.cuh"

// Rows that share what a thread reads of the right factor.
#define ROWS 8

// One word's prediction and its class: the base's word where sum or prediction is not finite.
template <int D, bool TWICE>
static __device__ __forceinline__ u32 finish(u32 base, float update, u8 *klass) {
    typedef Float<D> F;
    float b = F::value(base);
    float d = TWICE ? F::value(F::round(update)) : update;
    float y = b + d;
    u32 word = F::round(y);
    float p = F::value(word);
    float rest = F::rest(b, d, y, p);
    // 2^16 over the unit in the last place of p.
    u32 exponent = __float_as_uint(p) >> 23 & 0xff;
    exponent = exponent > F::LOWEST ? exponent : F::LOWEST;
    float unit = __uint_as_float((F::UNIT - exponent) << 23);
    float distance = 32768.0f - fabsf(rest) * unit;
    u32 step = __float_as_uint(distance > 0.0f ? distance : 0.0f) >> 22;
    step = (step < 269 ? 269 : step > 284 ? 284 : step) - 269;
    bool good = finite(y) && finite(p);
    *klass = good ? step | (rest < 0.0f ? 0x80 : 0) : 0;
    return good ? word : base;
}

// Elements first..first + count of a matrix with `cols` columns; words and classes hold those only. A thread has one column
// of ROWS rows; blocks cover columns by x, rows by y.
template <int D, bool TWICE>
static __device__ __forceinline__ void predict(const typename Float<D>::Word *base,
                                               typename Float<D>::Word *out, u8 *classes,
                                               const float *left, const float *right, u32 rank,
                                               u64 cols, u64 first, u64 count, float scale) {
    u64 col = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols || count == 0) return;
    u64 last_row = (first + count - 1) / cols;
    u64 row = first / cols + (u64)blockIdx.y * ROWS;
    for (; row <= last_row; row += (u64)gridDim.y * ROWS) {
        u32 rows = last_row - row + 1 < ROWS ? (u32)(last_row - row + 1) : ROWS;
        float sums[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[r] = 0.0f;
        for (u32 k = 0; k < rank; k++) {
            float v = right[k * cols + col];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // Rows past the end read the last one and are not stored.
                u64 at = r < rows ? row + r : last_row;
                sums[r] = __fmaf_rn(left[at * rank + k], v, sums[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            u64 at = (row + r) * cols + col;
            if (r < rows && at >= first && at - first < count) {
                u8 klass;
                out[at - first] = finish<D, TWICE>(base[at - first], sums[r] * scale, &klass);
                if (classes) classes[at - first] = klass;
            }
        }
    }
}

#define KERNEL(NAME, D, TWICE)                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                             \
        NAME(const Float<D>::Word *base, Float<D>::Word *out, u8 *classes, const float *left,     \
             const float *right, u32 rank, u64 cols, u64 first, u64 count, float scale) {         \
        predict<D, TWICE>(base, out, classes, left, right, rank, cols, first, count, scale);      \
    }

KERNEL(lowrank_bf16, BF16, false)
KERNEL(lowrank_bf16_twice, BF16, true)
KERNEL(lowrank_f16, F16, false)
KERNEL(lowrank_f16_twice, F16, true)
KERNEL(lowrank_f32, F32, false)
