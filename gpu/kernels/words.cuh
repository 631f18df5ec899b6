// Words of the float dtypes as f32 values and back, by the very operations of codec/src/lowrank/predict.rs. Compiled without
// contraction (-fmad=false): a fused multiply-add happens only where one is written.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum Dtype { BF16 = 0, F16 = 1, F32 = 2 };

template <int D> struct Float;

template <> struct Float<BF16> {
    typedef u16 Word;
    static constexpr u32 LOWEST = 24, UNIT = 277;
    static __device__ __forceinline__ float value(u32 word) { return __uint_as_float(word << 16); }
    static __device__ __forceinline__ u32 round(float value) {
        u32 bits = __float_as_uint(value);
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static __device__ __forceinline__ float rest(float, float, float y, float p) { return y - p; }
};

template <> struct Float<F16> {
    typedef u16 Word;
    static constexpr u32 LOWEST = 113, UNIT = 280;
    static __device__ __forceinline__ float value(u32 word) {
        float magnitude = __uint_as_float((word & 0x7fff) << 13) * __uint_as_float(239u << 23);
        u32 bits = (word & 0x7c00) == 0x7c00 ? 0x7f800000u | (word & 0x3ff) << 13
                                             : __float_as_uint(magnitude);
        return __uint_as_float(bits | (word & 0x8000) << 16);
    }
    static __device__ __forceinline__ u32 round(float value) {
        u32 bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
        u32 small = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
        u32 normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1)) >> 13;
        u32 rounded = magnitude < 113u << 23 ? small : normal;
        rounded = magnitude >= 0x477ff000u ? 0x7c00u : rounded;
        return rounded | (bits >> 16 & 0x8000);
    }
    static __device__ __forceinline__ float rest(float, float, float y, float p) { return y - p; }
};

template <> struct Float<F32> {
    typedef u32 Word;
    static constexpr u32 LOWEST = 40, UNIT = 293;
    static __device__ __forceinline__ float value(u32 word) { return __uint_as_float(word); }
    static __device__ __forceinline__ u32 round(float value) { return __float_as_uint(value); }
    // The rounding error of the sum itself (Knuth's two-sum).
    static __device__ __forceinline__ float rest(float b, float d, float y, float) {
        float bb = y - b;
        return (b - (y - bb)) + (d - bb);
    }
};

static __device__ __forceinline__ bool finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}
