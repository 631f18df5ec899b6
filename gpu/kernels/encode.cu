// Encodes strips, to the bytes of codec/src/strip.rs and codec/src/rans.rs. A warp has a strip: forwards it finds tokens, raw bits
// and patches, backwards it codes the tokens. The host puts the parts together and writes patches.
#include "strips.cuh"

// What comes of a strip, beside what is in its scratch memory.
struct Found {
    // Words that differ from their predictions.
    u32 changed;
    // log2 of the lanes, and whether a token other than 0 is coded.
    u32 lanes, is_coded;
    // The coder's words: where they begin, and how many.
    u32 first, words;
    u32 raw_bits, patches;
    u32 states[64];
};

// A strip's scratch memory, in parts of `words` (a multiple of 32) times some bytes. Raw bits are zero before.
struct Scratch {
    u8 *tables, *tokens;
    u16 *words;
    u32 *places, *distances, *raw;
};

static __device__ __forceinline__ Scratch scratch_of(const Strip &strip) {
    u64 n = (strip.count + 31) / 32 * 32;
    u8 *at = (u8 *)strip.coded;
    Scratch s = {at,
                 at + n,
                 (u16 *)(at + 2 * n),
                 (u32 *)(at + 4 * n),
                 (u32 *)(at + 8 * n),
                 (u32 *)(at + 12 * n)};
    return s;
}

static __device__ __forceinline__ u32 lanes_for(u32 bits) {
    return bits < 1000 ? 0 : bits < 4000 ? 2 : bits < 9000 ? 3 : bits < 120000 ? 5 : 6;
}

// codec/src/token.rs: the token of a magnitude, without its sign.
template <int D> static __device__ __forceinline__ u32 token_of(u32 size) {
    typedef Code<D> C;
    if (size < 1u << C::LOG) return size;
    u32 e = 31 - __clz(size);
    return (1u << C::LOG) + ((e - C::LOG) << C::SUB) + (size >> (e - C::SUB) & ((1u << C::SUB) - 1));
}

template <int D>
static __device__ __forceinline__ void tokens(const Strip &strip, const Tables &tables,
                                              const Scratch &s, u32 lane, Found *found,
                                              u32 *coded_count) {
    typedef typename Float<D>::Word Word;
    const Word *prediction = (const Word *)strip.prediction, *target = (const Word *)strip.words;
    Rows rows = {strip.scales, strip.left};
    u32 below = (1u << lane) - 1;
    u32 coded = 0, bits = 0, patches = 0, changed = 0, moved_coded = 0, any = 0;
    for (u32 from = 0; from < strip.count; from += 32) {
        u32 i = from + lane;
        bool here = i < strip.count;
        u32 word = here ? prediction[i] : 0, wanted = here ? target[i] : 0;
        u32 klass = here && strip.classes ? strip.classes[i] : 0;
        u32 table = table_of<D>(tables, strip, rows, from, lane, word, klass);
        u32 distance = order<D>(wanted) - order<D>(word);
        int d = Code<D>::BITS == 16 ? (int)(short)distance : (int)distance;
        u32 size = d < 0 ? 0 - (u32)d : (u32)d, token = token_of<D>(size);
        token = d < 0 ? 0 - token & 0xff : token;
        u32 as_coded = klass & 0x80 ? 0 - token & 0xff : token;
        bool has = table && (tables.intervals[(table - 1) * 256 + as_coded] & 0xffff) != 0;
        u32 mask = __ballot_sync(~0u, table != 0), differs = __ballot_sync(~0u, d != 0);
        u32 patched = __ballot_sync(~0u, d != 0 && !has);
        any |= __ballot_sync(~0u, has && as_coded != 0);
        u32 more = has ? raw_bits<D>(token) : 0;
        if (__any_sync(~0u, more != 0)) {
            u32 total, before = sum_before(more, lane, &total);
            if (more) {
                u64 value = (u64)(size & ((1u << more) - 1)) << (bits + before & 31);
                u32 *at = s.raw + (bits + before >> 5);
                atomicOr(at, (u32)value);
                if (value >> 32) atomicOr(at + 1, (u32)(value >> 32));
            }
            bits += total;
        }
        if (table) {
            u32 at = coded + __popc(mask & below);
            s.tables[at] = table;
            s.tokens[at] = has ? as_coded : 0;
        }
        if (patched >> lane & 1) {
            u32 at = patches + __popc(patched & below);
            s.places[at] = i;
            s.distances[at] = (u32)d;
        }
        coded += __popc(mask);
        patches += __popc(patched);
        changed += __popc(differs);
        moved_coded += __popc(differs & mask);
    }
    *coded_count = coded;
    if (lane == 0) {
        found->changed = changed;
        found->lanes = lanes_for(moved_coded * 4 + coded / 16);
        found->is_coded = any != 0;
        found->raw_bits = bits;
        found->patches = patches;
    }
}

// From the last token to the first, a ring of them at a time.
static __device__ __forceinline__ void code(const Strip &strip, const Tables &tables,
                                            const Scratch &s, u32 lane, u32 coded, u32 log,
                                            Found *found) {
    u32 lanes = 1u << log, ring = lanes < 32 ? lanes : 32, shift = 32 - tables.precision;
    u32 near = LOWER, far = LOWER, at = strip.count;
    for (u32 group = (coded + ring - 1) / ring; group-- > 0;) {
        u32 j = group * ring + lane;
        bool mine = lane < ring && j < coded, is_far = lanes == 64 && (group & 1);
        u32 x = is_far ? far : near, frequency = 1, start = 0;
        if (mine) {
            u32 interval = tables.intervals[(s.tables[j] - 1u) * 256 + s.tokens[j]];
            frequency = interval & 0xffff;
            start = interval >> 16;
        }
        bool full = mine && (u64)x >= (u64)frequency << shift;
        u32 ballot = __ballot_sync(~0u, full), above = ballot & ~((2u << lane) - 1);
        if (full) {
            s.words[at - 1 - __popc(above)] = (u16)x;
            x >>= 16;
        }
        at -= __popc(ballot);
        if (mine) {
            u32 q = x / frequency;
            x = (q << tables.precision) + (x - q * frequency) + start;
            if (is_far) far = x;
            else near = x;
        }
    }
    found->states[lane] = near;
    found->states[lane + 32] = far;
    if (lane == 0) {
        found->first = at;
        found->words = strip.count - at;
    }
}

template <int D>
static __device__ __forceinline__ void encode(const Strip *strips, u32 count, const u32 *intervals,
                                              const u32 *map, u32 map_words, u32 table_count,
                                              u32 precision, int first, u32 fits, Found *found) {
    extern __shared__ u32 shared[];
    u32 *to = shared + WARPS * 8;
    for (u32 i = threadIdx.x; i < map_words; i += blockDim.x) to[i] = map[i];
    Tables tables = {intervals, 0, (const u8 *)to, precision, first};
    if (fits) {
        to += map_words;
        for (u32 i = threadIdx.x; i < table_count * 256; i += blockDim.x) to[i] = intervals[i];
        tables.intervals = to;
    }
    __syncthreads();
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, number = blockIdx.x * WARPS + warp;
    if (number >= count) return;
    Strip strip = strips[number];
    Scratch scratch = scratch_of(strip);
    u32 coded;
    tokens<D>(strip, tables, scratch, lane, found + number, &coded);
    __syncwarp();
    if (found[number].is_coded)
        code(strip, tables, scratch, lane, coded, found[number].lanes, found + number);
}

#define KERNEL(NAME, D)                                                                           \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                      \
        NAME(const Strip *strips, u32 count, const u32 *intervals, const u32 *map, u32 map_words, \
             u32 tables, u32 precision, int first, u32 fits, Found *found) {                      \
        encode<D>(strips, count, intervals, map, map_words, tables, precision, first, fits,       \
                  found);                                                                         \
    }

KERNEL(encode_bf16, BF16)
KERNEL(encode_f16, F16)
KERNEL(encode_f32, F32)
