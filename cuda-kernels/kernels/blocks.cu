// Many small blocks from one KV pool to another by one launch, in place of a copy of the driver's for each.

#define COPY_THREADS 256

// `to` and `from` are pools of blocks of `block_bytes`, a multiple of 16; pairs [gridDim.y, 2] has blocks
// of `from` and of `to`, no block of `to` twice. Grid: (as many as copy a block's bytes, blocks).
extern "C" __global__ void __launch_bounds__(COPY_THREADS) copy_blocks(
    u8* __restrict__ to, const u8* __restrict__ from, const u32* __restrict__ pairs,
    u64 block_bytes) {
    from += pairs[2 * blockIdx.y] * block_bytes;
    to += pairs[2 * blockIdx.y + 1] * block_bytes;
    u64 step = (u64)gridDim.x * COPY_THREADS * 16;
    u64 first = ((u64)blockIdx.x * COPY_THREADS + threadIdx.x) * 16;
    for (u64 at = first; at < block_bytes; at += step) {
        *(uint4*)(to + at) = *(const uint4*)(from + at);
    }
}
