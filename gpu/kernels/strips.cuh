// Strips of the block format (docs/format-codec.md), as codec/src/strip.rs codes them: what decoder and encoder share. A warp
// has a strip; 32 words are a group, the token of a word belongs to the lane that its number among the coded words says.
#pragma once
#include "words.cuh"

// Contexts of a map, and what a row's scale is where its words are not coded.
#define CONTEXTS 56
#define UNCHANGED (-32768)
// Every state of the coder is this or more between tokens.
#define LOWER 65536u
// Warps of a block.
#define WARPS 8

// One strip. Addresses of words and classes are of the strip's own; `scales` begins with the row of its first word.
struct Strip {
    const void *prediction;
    // Of a low-rank prediction, or null.
    const u8 *classes;
    // Decoding: where the words go. Encoding: the words.
    void *words;
    const short *scales;
    // Decoding: the parts, each from a multiple of four bytes on. Encoding: see encode.cu.
    u32 *coded;
    // Bytes of the parts.
    u32 coded_bytes, raw_bytes, patch_bytes;
    u32 count;
    // Words of a row (32 at least, or all of the strip's in one), and of the strip's first row those that the strip has.
    u32 row, left;
    // log2 of the lanes, and whether there is a coder's part.
    u32 lanes;
    u32 is_coded;
};

// The frequency tables, in shared memory where they fit.
struct Tables {
    // For each table and token the frequency, and in the upper half where its interval starts.
    const u32 *intervals;
    // For each table and slot its token.
    const u8 *tokens;
    // For each class and context the table, from 1, or 0.
    const u8 *map;
    u32 precision;
    int first;
};

template <int D> struct Code;
template <> struct Code<BF16> {
    static constexpr u32 BITS = 16, SHIFT = 7, EXPONENTS = 255, LOG = 5, SUB = 3;
};
template <> struct Code<F16> {
    static constexpr u32 BITS = 16, SHIFT = 10, EXPONENTS = 31, LOG = 5, SUB = 3;
};
template <> struct Code<F32> {
    static constexpr u32 BITS = 32, SHIFT = 23, EXPONENTS = 255, LOG = 4, SUB = 2;
};

// A word's place in the floats' order, and back.
template <int D> static __device__ __forceinline__ u32 order(u32 word) {
    constexpr u32 top = 1u << (Code<D>::BITS - 1), all = top | (top - 1);
    return word & top ? ~word & all : word | top;
}
template <int D> static __device__ __forceinline__ u32 unorder(u32 ordered) {
    constexpr u32 top = 1u << (Code<D>::BITS - 1), all = top | (top - 1);
    return ordered & top ? ordered & ~top : ~ordered & all;
}
// The word at a distance, which wraps.
template <int D> static __device__ __forceinline__ u32 moved(u32 word, u32 distance) {
    constexpr u32 top = 1u << (Code<D>::BITS - 1), all = top | (top - 1);
    return unorder<D>((order<D>(word) + distance) & all);
}

// Raw bits of a token.
template <int D> static __device__ __forceinline__ u32 raw_bits(u32 token) {
    typedef Code<D> C;
    int t = (signed char)token;
    u32 size = t < 0 ? -t : t;
    if (size < 1u << C::LOG) return 0;
    u32 bits = ((size - (1u << C::LOG)) >> C::SUB) + C::LOG - C::SUB;
    return bits < C::BITS - 1 ? bits : C::BITS - 1;
}

// The sum of `value` over the lanes before this one, and over all.
static __device__ __forceinline__ u32 sum_before(u32 value, u32 lane, u32 *total) {
    u32 sum = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    *total = __shfl_sync(~0u, sum, 31);
    return sum - value;
}

// Copies the tables to `shared` if they shall be there (as host code lays it out): the block's queues, the map, intervals, tokens.
static __device__ __forceinline__ Tables take_tables(u32 *shared, const u32 *intervals,
                                                     const u32 *tokens, const u32 *map,
                                                     u32 map_words, u32 tables, u32 precision,
                                                     int first, u32 fits) {
    u32 *to = shared + WARPS * 8;
    for (u32 i = threadIdx.x; i < map_words; i += blockDim.x) to[i] = map[i];
    Tables found = {intervals, (const u8 *)tokens, (const u8 *)to, precision, first};
    if (fits) {
        to += map_words;
        u32 count = tables * 256;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) to[i] = intervals[i];
        found.intervals = to;
        to += count;
        count = tables << precision >> 2;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) to[i] = tokens[i];
        found.tokens = (const u8 *)to;
    }
    __syncthreads();
    return found;
}

// Which table each word of a group has, as groups follow one another through the rows.
struct Rows {
    const short *scale;
    // The word in the strip where the row ends.
    u32 end;
};

template <int D>
static __device__ __forceinline__ u32 table_of(const Tables &tables, const Strip &strip, Rows &rows,
                                               u32 from, u32 lane, u32 word, u32 klass) {
    // A group lies in two rows at most.
    if (from >= rows.end) {
        rows.scale++;
        rows.end += strip.row;
    }
    u32 i = from + lane;
    if (i >= strip.count) return 0;
    int scale = i < rows.end ? rows.scale[0] : rows.scale[1];
    int exponent = word >> Code<D>::SHIFT & Code<D>::EXPONENTS;
    int context = scale - 4 * (exponent < 1 ? 1 : exponent) - tables.first;
    context = context < 0 ? 0 : context > CONTEXTS - 1 ? CONTEXTS - 1 : context;
    u32 table = tables.map[(klass & 15) * CONTEXTS + context];
    return scale == UNCHANGED ? 0 : table;
}

// Of a ballot of the lanes of a ring of `ring`, the bits in the order of the ring from `first` on.
static __device__ __forceinline__ u32 turned(u32 ballot, u32 ring, u32 first) {
    return ring == 32 ? __funnelshift_r(ballot, ballot, first)
                      : (ballot | ballot << ring) >> (first & (ring - 1)) & ((1u << ring) - 1);
}
