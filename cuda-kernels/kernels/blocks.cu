// Many small blocks of a KV pool into one contiguous buffer, and back: one long copy between cards or
// over a network then takes the place of many short ones.

#define COPY_THREADS 256

// Of each of a list of blocks, `bytes` from `offset` on lie in staging one after the other. All three
// are multiples of 16. Grid: (as many as copy a block's bytes, blocks).
INLINE void copy(const u8* __restrict__ from, u8* __restrict__ to, u64 bytes) {
    u64 step = (u64)gridDim.x * COPY_THREADS * 16;
    for (u64 at = ((u64)blockIdx.x * COPY_THREADS + threadIdx.x) * 16; at < bytes; at += step) {
        *(uint4*)(to + at) = *(const uint4*)(from + at);
    }
}

extern "C" __global__ void __launch_bounds__(COPY_THREADS) gather_blocks(
    u8* __restrict__ staging, const u8* __restrict__ pool, const u32* __restrict__ blocks,
    u64 block_bytes, u64 offset, u64 bytes) {
    copy(pool + blocks[blockIdx.y] * block_bytes + offset, staging + blockIdx.y * bytes, bytes);
}

// The blocks are distinct.
extern "C" __global__ void __launch_bounds__(COPY_THREADS) scatter_blocks(
    u8* __restrict__ pool, const u8* __restrict__ staging, const u32* __restrict__ blocks,
    u64 block_bytes, u64 offset, u64 bytes) {
    copy(staging + blockIdx.y * bytes, pool + blocks[blockIdx.y] * block_bytes + offset, bytes);
}
