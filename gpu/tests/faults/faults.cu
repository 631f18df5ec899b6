// Kernels that go wrong on purpose, each in one way, and one that does not: what the stand-in must tell apart.
typedef unsigned int u32;

extern "C" __global__ void out_of_bounds(u32 *data, u32 count) {
    u32 i = threadIdx.x;
    // Should be <.
    if (i <= count) data[i] = i;
}

extern "C" __global__ void out_of_bounds_read(const u32 *data, u32 *out, u32 count) {
    out[threadIdx.x] = data[threadIdx.x + count];
}

extern "C" __global__ void misaligned(const unsigned char *data, u32 *out) {
    out[threadIdx.x] = *(const u32 *)(data + 4 * threadIdx.x + 1);
}

// A vector load needs more than its elements do.
extern "C" __global__ void misaligned_vector(const u32 *data, u32 *out) {
    uint4 v = ((const uint4 *)(data + 2))[threadIdx.x];
    out[threadIdx.x] = v.x ^ v.y ^ v.z ^ v.w;
}

extern "C" __global__ void uninitialised_shared(u32 *out) {
    __shared__ u32 words[64];
    if (threadIdx.x != 7) words[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = words[threadIdx.x];
}

extern "C" __global__ void uninitialised_global(const u32 *data, u32 *out) {
    out[threadIdx.x] = data[threadIdx.x];
}

// No barrier between what a thread writes and another reads.
extern "C" __global__ void missing_barrier(u32 *out) {
    __shared__ volatile u32 words[64];
    words[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = words[63 - threadIdx.x];
}

extern "C" __global__ void divergent_barrier(u32 *out) {
    __shared__ u32 words[64];
    words[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 40) {
        __syncthreads();
        out[threadIdx.x] = words[39 - threadIdx.x];
    }
}

extern "C" __global__ void divergent_ballot(u32 *out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __ballot_sync(~0u, threadIdx.x & 1);
}

extern "C" __global__ void stray_shuffle(u32 *out) {
    // Lanes above 15 have left, and are read from.
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, 20);
}

extern "C" __global__ void endless(volatile u32 *data) {
    while (data[0] == 0) {
    }
}

// Out: per block the sum of its threads' numbers, how many are odd, the warps' ballots together; everything is in order.
extern "C" __global__ void sound(const u32 *data, u32 count, u32 *sums, u32 *odd, u32 *ballots) {
    __shared__ u32 parts[8];
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 value = i < count ? data[i] : 0;
    u32 ballot = __ballot_sync(~0u, value & 1);
    if (lane == 0) {
        atomicXor(ballots, ballot);
        atomicAdd(odd, __popc(ballot));
    }
    for (int step = 1; step < 32; step *= 2) {
        u32 below = __shfl_up_sync(~0u, value, step);
        if (lane >= step) value += below;
    }
    if (lane == 31) parts[warp] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 all = 0;
        for (u32 w = 0; w < blockDim.x / 32; w++) all += parts[w];
        sums[blockIdx.x] = all;
    }
}
