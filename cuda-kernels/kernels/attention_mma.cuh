// What both kernels of `attention_mma.cu` do with a chunk: copy its keys and values to shared memory,
// multiply them there. One order of operations: who wants both to have the same bits changes it here.

constexpr int STEPS = HEAD_DIM / 16;
constexpr int TILES = HEAD_DIM / 8;  // of values, each of 8 columns
// 16 bytes more than a row has: consecutive rows are in other banks.
constexpr int KEY_STRIDE = CHUNK + 8, VALUE_STRIDE = HEAD_DIM + 8;
// A chunk's keys [HEAD_DIM, KEY_STRIDE] and values [CHUNK, VALUE_STRIDE] in shared memory.
constexpr int KEYS_BYTES = HEAD_DIM * KEY_STRIDE * sizeof(KV);
constexpr int VALUES_BYTES = CHUNK * VALUE_STRIDE * sizeof(KV);

// Keys and values of a sequence and a KV head, and which positions somebody here sees.
struct Context {
    const u8 *keys, *values;
    const u32* table;
    u64 block_bytes;
    u32 first, end;
};

// Begins to copy a chunk's keys as they lie. What lies in seen blocks without being seen comes along.
template <int THREADS> INLINE void stage_keys(Address to, const Context& context, u32 chunk) {
    // Positions of one copy lie in one block.
    constexpr u32 COUNT = BLOCK_SIZE % 8 == 0 ? 8 : 4, COPIES = CHUNK / COUNT;
    u32 thread = this_thread(), slot = thread % COPIES * COUNT, position = chunk + slot;
    bool is_seen = position + COUNT > context.first && position < context.end;
    const u8* block = context.keys;
    if (is_seen) block += context.table[position / BLOCK_SIZE] * context.block_bytes;
    const KV* from = (const KV*)block + position % BLOCK_SIZE;
    for (u32 d = thread / COPIES; d < HEAD_DIM; d += THREADS / COPIES) {
        Address at = to + (d * KEY_STRIDE + slot) * sizeof(KV);
        copy_later<COUNT * sizeof(KV)>(at, from + d * BLOCK_SIZE, is_seen);
    }
}

// Begins to copy a chunk's values; zeros where nobody sees.
template <int THREADS> INLINE void stage_values(Address to, const Context& context, u32 chunk) {
    constexpr u32 COPIES = HEAD_DIM / 8;
    for (u32 i = this_thread(); i < CHUNK * COPIES; i += THREADS) {
        u32 slot = i / COPIES, d = i % COPIES * 8, position = chunk + slot;
        bool is_seen = position >= context.first && position < context.end;
        const u8* block = context.values;
        if (is_seen) block += context.table[position / BLOCK_SIZE] * context.block_bytes;
        const KV* from = (const KV*)block + position % BLOCK_SIZE * HEAD_DIM + d;
        copy_later<16>(to + (slot * VALUE_STRIDE + d) * sizeof(KV), from, is_seen);
    }
}

// 16 elements of 16 queries as A: the lane's are of two queries, null where there is none.
INLINE void load_queries(u32 (&a)[4], const float* low, const float* high, int step) {
    const float* rows[2] = {low, high};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float pair[2] = {0.0f, 0.0f};
        u32 d = 16 * step + threadIdx.x % 4 * 2 + i / 2 * 8;
        if (rows[i % 2]) load_2(rows[i % 2] + d, pair);
        a[i] = narrow_pair(pair[0], pair[1], KV{});
    }
}

// Adds a step of the scores of 16 queries and 16 positions. `keys` are those of the lane: the chunk's,
// from the first of the positions and lane_keys() on.
INLINE void add_scores(float (&left)[4], float (&right)[4], const u32 (&a)[4], Address keys, int step) {
    u32 b[4];
    load_transposed(b, keys + 16 * step * KEY_STRIDE * sizeof(KV));
    multiply_add(left, a, b[0], b[1], KV{});
    multiply_add(right, a, b[2], b[3], KV{});
}

INLINE u32 lane_keys() {
    u32 lane = this_thread() % WARP;
    return (lane % 16 * KEY_STRIDE + lane / 16 * 8) * sizeof(KV);
}

// Adds the values of 32 positions, by their weights, to one tile. `values` are those of the lane: the
// chunk's, from the tile's first column and lane_values() on.
INLINE void add_values(float (&sums)[4], const u32 (&near)[4], const u32 (&far)[4], Address values) {
    u32 b[4];
    load_transposed(b, values);
    multiply_add(sums, near, b[0], b[1], KV{});
    multiply_add(sums, far, b[2], b[3], KV{});
}

INLINE u32 lane_values() { return this_thread() % WARP * VALUE_STRIDE * sizeof(KV); }

// Adds 16 weights to the sum of weights.
INLINE void add_weights(float (&sums)[4], const u32 (&weights)[4]) {
    u32 ones = narrow_pair(1.0f, 1.0f, KV{});
    multiply_add(sums, weights, ones, ones, KV{});
}

INLINE float rescale_between(float before, float max) {
    return before == max ? 1.0f : exponential(before - max);
}

INLINE void store_pair(float first, float second, f32* to) { *(float2*)to = {first, second}; }

template <class T> INLINE void store_pair(float first, float second, T* to) {
    *(u32*)to = narrow_pair(first, second, T{});
}
