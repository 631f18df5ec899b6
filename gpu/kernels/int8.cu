// INT8 of a difference, as codec/src/int8 computes it: scale = max |d| / 127 of a segment, code = d / scale to nearest, ties to
// even, rebuilt = base + code * scale, rounded once; a code of 0 leaves the base's word. Segments are cut from rows: a row of
// `row` elements has parts of `group`, the last perhaps shorter.
#include "words.cuh"

// Elements of a segment that a warp looks at.
#define PIECE 4096
// Elements of a thread: one vector load of 16-bit words.
#define RUN 8

struct Segments {
    u64 row, group, per_row;

    __device__ __forceinline__ u64 of(u64 i) const { return i / row * per_row + i % row / group; }
    __device__ __forceinline__ u64 start(u64 s) const {
        return s / per_row * row + s % per_row * group;
    }
    __device__ __forceinline__ u64 end(u64 s) const {
        u64 of_row = (s / per_row + 1) * row, of_group = start(s) + group;
        return of_row < of_group ? of_row : of_group;
    }
};

// The difference of two words: zero where they are the same, infinities too.
template <int D>
static __device__ __forceinline__ float difference(u32 target, u32 base) {
    float t = Float<D>::value(target), b = Float<D>::value(base);
    return target == base ? 0.0f : t - b;
}

// Rounds any value: a NaN stays one, quiet, with what fits of its bits.
template <int D> static __device__ __forceinline__ u32 rounded(float value);
template <> __device__ __forceinline__ u32 rounded<BF16>(float value) {
    u32 bits = __float_as_uint(value);
    return (bits & 0x7fffffff) > 0x7f800000u ? bits >> 16 | 0x40 : Float<BF16>::round(value);
}
template <> __device__ __forceinline__ u32 rounded<F16>(float value) {
    u32 bits = __float_as_uint(value);
    return (bits & 0x7fffffff) > 0x7f800000u ? (bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x1ff)
                                             : Float<F16>::round(value);
}
template <> __device__ __forceinline__ u32 rounded<F32>(float value) {
    return __float_as_uint(value);
}

// RUN words from `i` on: by vectors where all are there (buffers start at multiples of 256 bytes).
template <int D>
static __device__ __forceinline__ void load(const typename Float<D>::Word *words, u64 i, u64 count,
                                            u32 *to) {
    if (count - i >= RUN) {
        if (sizeof(typename Float<D>::Word) == 2) {
            uint4 v = *(const uint4 *)(words + i);
            u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int k = 0; k < RUN; k++) to[k] = k % 2 ? pairs[k / 2] >> 16 : pairs[k / 2] & 0xffff;
        } else {
            const uint4 *from = (const uint4 *)(words + i);
            uint4 a = from[0], b = from[1];
            to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
            to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < RUN; k++) to[k] = i + k < count ? words[i + k] : 0;
    }
}

template <int D>
static __device__ __forceinline__ void store(typename Float<D>::Word *words, u64 i, u64 count,
                                             const u32 *from) {
    if (count - i >= RUN) {
        if (sizeof(typename Float<D>::Word) == 2) {
            *(uint4 *)(words + i) =
                make_uint4(from[0] | from[1] << 16, from[2] | from[3] << 16,
                           from[4] | from[5] << 16, from[6] | from[7] << 16);
        } else {
            ((uint4 *)(words + i))[0] = make_uint4(from[0], from[1], from[2], from[3]);
            ((uint4 *)(words + i))[1] = make_uint4(from[4], from[5], from[6], from[7]);
        }
    } else {
#pragma unroll
        for (int k = 0; k < RUN; k++)
            if (i + k < count) words[i + k] = from[k];
    }
}

// The largest |d| of each segment, as bits; `bad` is the least element whose d is not finite. A warp has one piece.
template <int D>
static __device__ __forceinline__ void largest(const typename Float<D>::Word *target,
                                               const typename Float<D>::Word *base, u64 row,
                                               u64 group, u64 per_row, u64 pieces, u64 warps,
                                               u32 *out, u64 *bad) {
    Segments segments = {row, group, per_row};
    u64 warp = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (warp >= warps) return;
    u64 segment = warp / pieces;
    u64 start = segments.start(segment) + warp % pieces * PIECE, end = segments.end(segment);
    end = start + PIECE < end ? start + PIECE : end;
    u32 most = 0;
    for (u64 i = start + threadIdx.x % 32; i < end; i += 32) {
        u32 t = target[i];
        u32 d = __float_as_uint(base ? difference<D>(t, base[i]) : Float<D>::value(t)) & 0x7fffffff;
        if (d >= 0x7f800000u) {
            atomicMin(bad, i);
        }
        most = d > most ? d : most;
    }
    for (int half = 16; half > 0; half /= 2) {
        u32 other = __shfl_xor_sync(~0u, most, half);
        most = other > most ? other : most;
    }
    if (threadIdx.x % 32 == 0) atomicMax(out + segment, most);
}

// Scales in place of the largest magnitudes.
extern "C" __global__ void __launch_bounds__(256) int8_scales(float *scales, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float largest = scales[i], scale = __fdiv_rn(largest, 127.0f);
    // A scale that underflows is the smallest positive number.
    scales[i] = largest > 0.0f && scale == 0.0f ? __uint_as_float(1) : scale;
}

template <int D>
static __device__ __forceinline__ void quantise(const typename Float<D>::Word *target,
                                                const typename Float<D>::Word *base,
                                                const float *scales, u64 row, u64 group,
                                                u64 per_row, u64 count, signed char *codes) {
    Segments segments = {row, group, per_row};
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    if (i >= count) return;
    u32 t[RUN], b[RUN];
    load<D>(target, i, count, t);
    if (base) load<D>(base, i, count, b);
    u64 segment = segments.of(i), end = segments.end(segment);
    float scale = scales[segment];
    u32 out[RUN];
#pragma unroll
    for (int k = 0; k < RUN; k++) {
        if (i + k >= end && i + k < count) {
            end = segments.end(++segment);
            scale = scales[segment];
        }
        float d = base ? difference<D>(t[k], b[k]) : Float<D>::value(t[k]);
        float code = rintf(__fdiv_rn(d, scale));
        code = fminf(fmaxf(code, -127.0f), 127.0f);
        out[k] = scale == 0.0f ? 0 : (u32)(int)code & 0xff;
    }
    if (count - i >= RUN) {
        *(uint2 *)(codes + i) = make_uint2(out[0] | out[1] << 8 | out[2] << 16 | out[3] << 24,
                                           out[4] | out[5] << 8 | out[6] << 16 | out[7] << 24);
    } else {
#pragma unroll
        for (int k = 0; k < RUN; k++)
            if (i + k < count) codes[i + k] = (signed char)out[k];
    }
}

// Without a base the value alone. Words and codes begin with the element `first`, scales with the tensor's.
template <int D>
static __device__ __forceinline__ void apply(const typename Float<D>::Word *base,
                                             const signed char *codes, const float *scales,
                                             u64 row, u64 group, u64 per_row, u64 first, u64 count,
                                             typename Float<D>::Word *out) {
    Segments segments = {row, group, per_row};
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    if (i >= count) return;
    u32 words[RUN];
    int c[RUN];
    if (base) {
        load<D>(base, i, count, words);
    } else {
#pragma unroll
        for (int k = 0; k < RUN; k++) words[k] = 0;
    }
    if (count - i >= RUN) {
        uint2 v = *(const uint2 *)(codes + i);
#pragma unroll
        for (int k = 0; k < RUN; k++) c[k] = (signed char)((k < 4 ? v.x : v.y) >> k % 4 * 8);
    } else {
#pragma unroll
        for (int k = 0; k < RUN; k++) c[k] = i + k < count ? codes[i + k] : 0;
    }
    u64 segment = segments.of(first + i), end = segments.end(segment) - first;
    float scale = scales[segment];
#pragma unroll
    for (int k = 0; k < RUN; k++) {
        if (i + k >= end && i + k < count) {
            end = segments.end(++segment) - first;
            scale = scales[segment];
        }
        float b = Float<D>::value(words[k]);
        float y = b + (float)c[k] * scale;
        // A NaN of the base keeps its bits, as it does on a CPU.
        u32 bits = __float_as_uint(b);
        y = (bits & 0x7fffffff) > 0x7f800000u ? __uint_as_float(bits | 0x400000) : y;
        words[k] = c[k] == 0 ? words[k] : rounded<D>(y);
    }
    store<D>(out, i, count, words);
}

#define KERNELS(NAME, D)                                                                          \
    extern "C" __global__ void __launch_bounds__(128) int8_largest_##NAME(                        \
        const Float<D>::Word *target, const Float<D>::Word *base, u64 row, u64 group,             \
        u64 per_row, u64 pieces, u64 warps, u32 *out, u64 *bad) {                                 \
        largest<D>(target, base, row, group, per_row, pieces, warps, out, bad);                   \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) int8_quantise_##NAME(                       \
        const Float<D>::Word *target, const Float<D>::Word *base, const float *scales, u64 row,   \
        u64 group, u64 per_row, u64 count, signed char *codes) {                                  \
        quantise<D>(target, base, scales, row, group, per_row, count, codes);                     \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) int8_apply_##NAME(                          \
        const Float<D>::Word *base, const signed char *codes, const float *scales, u64 row,       \
        u64 group, u64 per_row, u64 first, u64 count, Float<D>::Word *out) {                      \
        apply<D>(base, codes, scales, row, group, per_row, first, count, out);                    \
    }

KERNELS(bf16, BF16)
KERNELS(f16, F16)
KERNELS(f32, F32)
