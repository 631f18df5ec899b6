// Decodes strips and applies them to their predictions. Whatever the bytes, nothing is read or written outside of the strip's
// parts, predictions and words; a strip that no encoder wrote ends with a status other than zero, as it ends with an error in
// codec/src/strip.rs.
#include "strips.cuh"

// Bits of a part, least significant first; zeros past its end.
struct Bits {
    const u32 *words;
    u32 count;
    u64 at;

    __device__ __forceinline__ u32 word(u64 i) const { return i < count ? words[i] : 0; }
    // Up to 32 bits from a place on.
    __device__ __forceinline__ u32 peek(u64 place, u32 bits) const {
        u32 value = __funnelshift_r(word(place >> 5), word((place >> 5) + 1), (u32)place & 31);
        return bits < 32 ? value & ((1u << bits) - 1) : value;
    }
    // The next up to 64 bits.
    __device__ __forceinline__ u64 take(u32 bits) {
        u64 low = peek(at, bits < 32 ? bits : 32);
        u64 high = bits > 32 ? peek(at + 32, bits - 32) : 0;
        at += bits;
        return low | high << 32;
    }
    // The ones before the next zero, which is taken too; one more than `most` where they are more.
    __device__ __forceinline__ u64 ones(u64 most) {
        u64 found = 0;
        while (found <= most) {
            u32 run = __clz(__brev(~peek(at, 32)));
            if (run < 32) {
                at += run + 1;
                return found + run;
            }
            at += 32;
            found += 32;
        }
        return most + 1;
    }
};

// codec/src/patches.rs. Returns whether they are sound.
template <int D>
static __device__ bool patch(const Strip &strip, const u32 *words, u32 bytes) {
    typedef typename Float<D>::Word Word;
    const Word *prediction = (const Word *)strip.prediction;
    Word *out = (Word *)strip.words;
    Bits bits = {words, (bytes + 3) / 4, 0};
    // The count as LEB128: at most the strip's words, so that ten bytes are more than enough.
    u64 count = 0;
    for (u32 shift = 0;; shift += 7) {
        if (shift > 63 || bits.at >= (u64)bytes * 8) return false;
        u32 byte = (u32)bits.take(8);
        if (shift == 63 && (byte & 0x7f) > 1) return false;
        count |= (u64)(byte & 0x7f) << shift;
        if (byte < 0x80) break;
    }
    if (count > strip.count || bits.at + 16 > (u64)bytes * 8) return false;
    u32 gap = (u32)bits.take(8), size = (u32)bits.take(8);
    if (gap > 32 || size > 63) return false;
    u64 next = 0;
    for (u32 n = 0; n < (u32)count; n++) {
        u64 quotient = bits.ones(strip.count);
        if (quotient > strip.count) return false;
        u64 at = next + (quotient << gap) + bits.take(gap);
        if (at >= strip.count) return false;
        next = at + 1;
        u64 more = bits.ones(64 - size);
        if (more > 64 - size) return false;
        u32 length = size + (u32)more;
        u64 z = bits.take(length);
        z = (length < 64 ? z | 1ull << length : z) - (1ull << size);
        u64 d = (z >> 1) + 1;
        out[at] = moved<D>(prediction[at], (u32)(z & 1 ? 0 - d : d));
    }
    return (bits.at + 7) / 8 == bytes;
}

// The coder's part. Returns whether it and the raw bits are sound.
template <int D>
static __device__ __forceinline__ bool tokens(const Strip &strip, const Tables &tables, u8 *queue,
                                              const u32 *raw, u32 lane) {
    typedef typename Float<D>::Word Word;
    typedef Code<D> C;
    const Word *prediction = (const Word *)strip.prediction;
    Word *out = (Word *)strip.words;
    u32 lanes = 1u << strip.lanes, ring = lanes < 32 ? lanes : 32;
    if (strip.coded_bytes < 4 * lanes) return false;
    const unsigned short *words = (const unsigned short *)(strip.coded + lanes);
    u32 available = (strip.coded_bytes - 4 * lanes) / 2;
    // Lane `lane`, and of 64 lanes lane `lane + 32` too.
    u32 near = lane < lanes ? strip.coded[lane] : LOWER;
    u32 far = lanes == 64 ? strip.coded[lane + 32] : LOWER;
    if (__any_sync(~0u, near < LOWER || far < LOWER)) return false;
    u32 whole = (1u << tables.precision) - 1;
    Bits bits = {raw, (strip.raw_bytes + 3) / 4, 0};
    Rows rows = {strip.scales, strip.left};
    // Coded words so far, and words of the coder.
    u32 next = 0, at = 0;
    for (u32 from = 0; from < strip.count; from += 32) {
        u32 i = from + lane;
        bool here = i < strip.count;
        u32 word = here ? prediction[i] : 0;
        u32 klass = here && strip.classes ? strip.classes[i] : 0;
        u32 table = table_of<D>(tables, strip, rows, from, lane, word, klass);
        u32 mask = __ballot_sync(~0u, table != 0);
        u32 token = 0;
        if (mask) {
            u32 count = __popc(mask), rank = __popc(mask & ((1u << lane) - 1));
            if (table) queue[rank] = table;
            __syncwarp();
            for (u32 done = 0; done < count; done += ring) {
                u32 first = next + done, number = (lane - first) & (ring - 1);
                bool mine = lane < ring && number < count - done;
                bool is_far = lanes == 64 && (first + number & 32);
                u32 x = LOWER, symbol = 0;
                if (mine) {
                    u32 t = queue[done + number] - 1u, state = is_far ? far : near;
                    u32 slot = state & whole;
                    symbol = tables.tokens[(t << tables.precision) + slot];
                    u32 interval = tables.intervals[t * 256 + symbol];
                    x = (interval & 0xffff) * (state >> tables.precision) + slot - (interval >> 16);
                }
                bool wants = x < LOWER;
                u32 ballot = __ballot_sync(~0u, wants);
                if (wants) {
                    u32 place = at + __popc(turned(ballot, ring, first) & ((1u << number) - 1));
                    x = x << 16 | (place < available ? words[place] : 0);
                }
                at += __popc(ballot);
                if (mine) {
                    if (is_far) far = x;
                    else near = x;
                    queue[done + number] = symbol;
                }
            }
            __syncwarp();
            if (table) token = queue[rank];
            __syncwarp();
            if (klass & 0x80) token = 0 - token & 0xff;
            next += count;
        }
        int t = (signed char)token;
        u32 size = t < 0 ? -t : t, more = raw_bits<D>(token);
        if (__any_sync(~0u, more != 0)) {
            u32 total, before = sum_before(more, lane, &total);
            if (more) {
                u32 lead = 1u << C::SUB | (size - (1u << C::LOG) & ((1u << C::SUB) - 1));
                size = lead << more | bits.peek(bits.at + before, more);
            }
            bits.at += total;
        }
        if (here) out[i] = moved<D>(word, t < 0 ? 0 - size : size);
    }
    bool sound = near == LOWER && far == LOWER && at == available && !(strip.coded_bytes & 1) &&
                 (bits.at + 7) / 8 == strip.raw_bytes;
    return __all_sync(~0u, sound);
}

template <int D>
static __device__ __forceinline__ void decode(const Strip *strips, u32 count, const u32 *intervals,
                                              const u32 *token_words, const u32 *map, u32 map_words,
                                              u32 table_count, u32 precision, int first, u32 fits,
                                              u32 *status) {
    extern __shared__ u32 shared[];
    Tables tables = take_tables(shared, intervals, token_words, map, map_words, table_count,
                                precision, first, fits);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, number = blockIdx.x * WARPS + warp;
    if (number >= count) return;
    Strip strip = strips[number];
    const u32 *raw = strip.coded + (strip.coded_bytes + 3) / 4;
    bool sound = true;
    if (strip.is_coded) {
        sound = tokens<D>(strip, tables, (u8 *)(shared + warp * 8), raw, lane);
    } else {
        typedef typename Float<D>::Word Word;
        for (u32 i = lane; i < strip.count; i += 32)
            ((Word *)strip.words)[i] = ((const Word *)strip.prediction)[i];
    }
    __syncwarp();
    if (lane == 0) {
        if (sound && strip.patch_bytes)
            sound = patch<D>(strip, raw + (strip.raw_bytes + 3) / 4, strip.patch_bytes);
        status[number] = sound ? 0 : 1;
    }
}

#define KERNEL(NAME, D)                                                                           \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                      \
        NAME(const Strip *strips, u32 count, const u32 *intervals, const u32 *tokens,             \
             const u32 *map, u32 map_words, u32 tables, u32 precision, int first, u32 fits,       \
             u32 *status) {                                                                       \
        decode<D>(strips, count, intervals, tokens, map, map_words, tables, precision, first,     \
                  fits, status);                                                                  \
    }

KERNEL(decode_bf16, BF16)
KERNEL(decode_f16, F16)
KERNEL(decode_f32, F32)
