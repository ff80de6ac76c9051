// Attention on tensor cores, for a HEAD_DIM that is a multiple of 16 and a KV of 16 bits:
// `attention.cuh` says what both sources do.
//
// Queries are rounded to KV before they are multiplied with keys, weights before they are with values;
// sums are f32. A query has one order of operations in `attend_parts` and in `attend_tiles`, and so one
// result by both, whatever else is in its tile or step:
//
// - A score is summed over the head's elements, 16 at a time, and scaled then.
// - For a chunk, what there is of values is scaled by what the new largest score says, and the chunk's
//   are added, 16 positions at a time.
// - The sum of weights is the product with a column of ones: it has the rounding that values have.
//
// A position that a query does not see has weight 0, and one that nobody of the block of threads sees
// has values 0. So what is not written is never seen; but an infinite value of a later row of the tile
// makes NaN of the earlier ones, which `attend_parts` does not compute.

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
    u32 slot = threadIdx.x % COPIES * COUNT, position = chunk + slot;
    bool is_seen = position + COUNT > context.first && position < context.end;
    const u8* block = context.keys;
    if (is_seen) block += context.table[position / BLOCK_SIZE] * context.block_bytes;
    const KV* from = (const KV*)block + position % BLOCK_SIZE;
    for (u32 d = threadIdx.x / COPIES; d < HEAD_DIM; d += THREADS / COPIES) {
        Address at = to + (d * KEY_STRIDE + slot) * sizeof(KV);
        copy_later<COUNT * sizeof(KV)>(at, from + d * BLOCK_SIZE, is_seen);
    }
}

// Begins to copy a chunk's values; zeros where nobody sees.
template <int THREADS> INLINE void stage_values(Address to, const Context& context, u32 chunk) {
    constexpr u32 COPIES = HEAD_DIM / 8;
    for (u32 i = threadIdx.x; i < CHUNK * COPIES; i += THREADS) {
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
    u32 lane = threadIdx.x % WARP;
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

INLINE u32 lane_values() { return threadIdx.x % WARP * VALUE_STRIDE * sizeof(KV); }

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

// Copies that are under way while another is read: each of a chunk's keys or values.
constexpr int DEPTH = HEAD_DIM <= 128 ? 3 : 2;
constexpr int STAGE_BYTES = KEYS_BYTES > VALUES_BYTES ? KEYS_BYTES : VALUES_BYTES;
constexpr int PART_WARPS = PART_THREADS / WARP;
constexpr int SCORE_STRIDE = PART + 8;
// A warp has every fourth tile of the values.
constexpr int PART_TILES = (TILES + PART_WARPS - 1) / PART_WARPS;

// A warp turns a query's scores of a part into weights, of which two lie where the first one's score
// was. Returns the largest score; `rescales` [CHUNKS, GROUP] say how values are scaled before a chunk's
// are added.
INLINE float soften(float* scores, float* rescales, u32 first_chunk, u32 chunks) {
    float max = MINUS_INFINITY;
    for (u32 chunk = first_chunk; chunk < chunks; chunk++) {
        float2* pair = (float2*)(scores + chunk * CHUNK) + threadIdx.x % WARP;
        float before = max, first = pair->x, second = pair->y;
        max = fmaxf(before, max_of_warp(fmaxf(first, second)));
        first = exponential(first - max), second = exponential(second - max);
        *(u32*)pair = narrow_pair(first, second, KV{});
        if (threadIdx.x % WARP == 0) rescales[chunk * GROUP] = rescale_between(before, max);
    }
    return max;
}

// Rows attend, each to the positions of its own sequence that it sees: the queries of a KV head are the
// first of 16 rows of A.
//
// queries [rows, heads, HEAD_DIM], out the same. Row r has position positions[r] and the blocks
// tables[table_of[r]][..]; a row whose table is NOBODY is padding. Grid: (parts, kv_heads, rows),
// `parts` as many as the row that sees most has. A row of one part is finished here; others leave
// partial_values [rows, heads, parts, HEAD_DIM] and partial_stats [rows, heads, parts] for
// `merge_parts`.
extern "C" __global__ void __launch_bounds__(PART_THREADS, 4) attend_parts(
    ACT* __restrict__ out, float* __restrict__ partial_values, float2* __restrict__ partial_stats,
    const float* __restrict__ queries, const u8* __restrict__ pool, const u32* __restrict__ tables,
    const u32* __restrict__ table_of, const u32* __restrict__ positions, u32 table_blocks,
    u32 window, u64 block_bytes, u64 keys_at, u64 values_at, float scale) {
    DYNAMIC_SHARED(shared);
    float* scores = (float*)(shared + DEPTH * STAGE_BYTES);  // [GROUP, SCORE_STRIDE]
    float* rescales = scores + GROUP * SCORE_STRIDE;         // [CHUNKS, GROUP]
    float* maxima = rescales + CHUNKS * GROUP;               // [GROUP]

    u32 row = blockIdx.z, parts = gridDim.x, kv_head = blockIdx.y, heads = gridDim.y * GROUP;
    if (table_of[row] == NOBODY) return;
    u32 position = positions[row];
    u32 seen = first_seen(position, window);
    u32 part = seen / PART + blockIdx.x, last_part = position / PART;
    if (part > last_part) return;
    u32 start = part * PART;
    u64 plane = (u64)kv_head * PLANE * sizeof(KV);
    Context context = {pool + keys_at + plane,
                       pool + values_at + plane,
                       tables + (u64)table_of[row] * table_blocks,
                       block_bytes,
                       larger(seen, start),
                       smaller(position + 1, start + PART)};
    u32 first_chunk = (context.first - start) / CHUNK;
    u32 chunks = (context.end - start + CHUNK - 1) / CHUNK;

    // Chunks' keys come one after the other, and then their values.
    Address ring = address_of(shared);
    u32 count = chunks - first_chunk, copied = 0, next = 0;
    auto copy_next = [&] {
        Address to = ring + copied % DEPTH * STAGE_BYTES;
        u32 chunk = start + (first_chunk + copied % count) * CHUNK;
        if (copied < count) {
            stage_keys<PART_THREADS>(to, context, chunk);
        } else if (copied < 2 * count) {
            stage_values<PART_THREADS>(to, context, chunk);
        }
        end_copies();
        copied++;
    };
    auto wait_for_next = [&] {
        wait_for_copies<DEPTH - 2>();
        // Also, all are done with what was before, where the next copy goes.
        __syncthreads();
        copy_next();
        return ring + next++ % DEPTH * STAGE_BYTES;
    };
    for (int i = 0; i < DEPTH - 1; i++) copy_next();

    u32 warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, pair = threadIdx.x % 4 * 2;
    // The lane's queries.
    u32 lanes_query[2] = {group, group + 8};
    u64 head = (u64)row * heads + kv_head * GROUP;
    u32 query[STEPS][4];
    {
        const float* from[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            bool is_one = lanes_query[n] < GROUP;
            from[n] = is_one ? queries + (head + lanes_query[n]) * HEAD_DIM : nullptr;
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) load_queries(query[step], from[0], from[1], step);
    }

    // Of each chunk, a warp has the scores of 16 positions.
    for (u32 chunk = first_chunk; chunk < chunks; chunk++) {
        Address keys = wait_for_next() + 16 * warp * sizeof(KV) + lane_keys();
        float sums[2][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            add_scores(sums[0], sums[1], query[step], keys, step);
        }
        u32 mine = chunk * CHUNK + 16 * warp + pair;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 slot = mine + i / 2 * 8, query = lanes_query[i % 2];
            const float* found = sums[i / 2] + i % 2 * 2;
            if (query >= GROUP) continue;
            float two[2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                u32 at = start + slot + n;
                bool is_seen = at >= context.first && at < context.end;
                two[n] = is_seen ? found[n] * scale : MINUS_INFINITY;
            }
            *(float2*)(scores + query * SCORE_STRIDE + slot) = {two[0], two[1]};
        }
    }
    __syncthreads();
    for (u32 n = warp; n < GROUP; n += PART_WARPS) {
        float max = soften(scores + n * SCORE_STRIDE, rescales + n, first_chunk, chunks);
        if (threadIdx.x % WARP == 0) maxima[n] = max;
    }

    float values[PART_TILES][4] = {}, weight_sums[4] = {};
    for (u32 chunk = first_chunk; chunk < chunks; chunk++) {
        Address staged = wait_for_next() + lane_values();
#pragma unroll
        for (int n = 0; n < 2; n++) {
            bool is_one = lanes_query[n] < GROUP;
            float rescale = is_one ? rescales[chunk * GROUP + lanes_query[n]] : 1.0f;
#pragma unroll
            for (int i = 2 * n; i < 2 * n + 2; i++) {
                weight_sums[i] *= rescale;
#pragma unroll
                for (int tile = 0; tile < PART_TILES; tile++) values[tile][i] *= rescale;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 weights[2][4];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                u32 slot = chunk * CHUNK + 32 * half + 8 * (i / 2) + pair, n = lanes_query[i % 2];
                const float* at = scores + n * SCORE_STRIDE + slot;
                weights[i / 4][i % 4] = n < GROUP ? *(const u32*)at : 0;
            }
            add_weights(weight_sums, weights[0]);
            add_weights(weight_sums, weights[1]);
#pragma unroll
            for (int i = 0; i < PART_TILES; i++) {
                u32 tile = warp + i * PART_WARPS;
                if (tile >= TILES) continue;
                u32 at = 32 * half * VALUE_STRIDE + 8 * tile;
                add_values(values[i], weights[0], weights[1], staged + at * sizeof(KV));
            }
        }
    }

    bool is_whole = seen / PART == last_part;
#pragma unroll
    for (int n = 0; n < 2; n++) {
        if (lanes_query[n] >= GROUP) continue;
        u64 at = head + lanes_query[n], part_at = at * parts + blockIdx.x;
        float sum = weight_sums[2 * n], inverse = 1.0f / sum;
#pragma unroll
        for (int i = 0; i < PART_TILES; i++) {
            u32 tile = warp + i * PART_WARPS, column = 8 * tile + pair;
            if (tile >= TILES) continue;
            float first = values[i][2 * n], second = values[i][2 * n + 1];
            if (is_whole) {
                store_pair(first * inverse, second * inverse, out + at * HEAD_DIM + column);
            } else {
                store_pair(first, second, partial_values + part_at * HEAD_DIM + column);
            }
        }
        if (!is_whole && threadIdx.x / WARP == 0 && pair == 0) {
            partial_stats[part_at] = {maxima[lanes_query[n]], sum};
        }
    }
}

// A warp has 16 queries and, of wide heads, half of the columns: more do not fit into its registers.
// The two warps then compute the same scores.
constexpr int SPLIT = HEAD_DIM <= 128 ? 1 : 2;
constexpr int WARP_TILES = TILES / SPLIT;
constexpr int TILE_THREADS = TILE_QUERIES / 16 * SPLIT * WARP;
// What a lane has of its two queries: of the present part, and of those before.
struct Sums {
    float max[2], weights[4];
    float part[WARP_TILES][4], whole[WARP_TILES][4];
};

INLINE void begin_part(Sums& sums) {
    sums.max[0] = sums.max[1] = MINUS_INFINITY;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums.weights[i] = 0.0f;
#pragma unroll
        for (int tile = 0; tile < WARP_TILES; tile++) sums.part[tile][i] = 0.0f;
    }
}

// Merges a part that ends into those before, of which softmax knows `softened`.
INLINE void end_part(Sums& sums, Softened* softened) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        Softened before = softened[n];
        Merge scales = merge(before, Softened{sums.max[n], sums.weights[2 * n]});
        softened[n] = before;
#pragma unroll
        for (int tile = 0; tile < WARP_TILES; tile++) {
#pragma unroll
            for (int i = 2 * n; i < 2 * n + 2; i++) {
                sums.whole[tile][i] = merged(scales, sums.whole[tile][i], sums.part[tile][i]);
            }
        }
    }
}

// Scores of what the lane's queries do not see: -infinity. `start` is the lane's first position.
INLINE void hide(float (&scores)[CHUNK / 8][4], const Seen (&seen)[2], u32 start) {
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) {
        u32 at = start + 8 * (i / 4) + i % 2;
        bool is_seen = at >= seen[i % 4 / 2].first && at < seen[i % 4 / 2].end;
        if (!is_seen) scores[i / 4][i % 4] = MINUS_INFINITY;
    }
}

// Turns a chunk's scores into weights, as A of each 16 positions, and scales what there is of the part.
// A query that sees nothing of the chunk has weights 0 and stays as it is.
INLINE void soften(u32 (&weights)[CHUNK / 16][4], float (&scores)[CHUNK / 8][4], Sums& sums) {
    float rescale[2], max[2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        max[n] = sums.max[n];
#pragma unroll
        for (int tile = 0; tile < CHUNK / 8; tile++) {
            max[n] = fmaxf(max[n], fmaxf(scores[tile][2 * n], scores[tile][2 * n + 1]));
        }
        max[n] = fmaxf(max[n], __shfl_xor_sync(EVERYONE, max[n], 1));
        max[n] = fmaxf(max[n], __shfl_xor_sync(EVERYONE, max[n], 2));
        rescale[n] = rescale_between(sums.max[n], max[n]);
        sums.max[n] = max[n];
        if (max[n] == MINUS_INFINITY) max[n] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < CHUNK / 4; i++) {
        const float* two = scores[i / 2] + i % 2 * 2;
        float first = exponential(two[0] - max[i % 2]), second = exponential(two[1] - max[i % 2]);
        weights[i / 4][i % 4] = narrow_pair(first, second, KV{});
    }
    // After some chunks, the largest score is rarely another.
    if (!__ballot_sync(EVERYONE, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums.weights[i] *= rescale[i / 2];
#pragma unroll
        for (int tile = 0; tile < WARP_TILES; tile++) sums.part[tile][i] *= rescale[i / 2];
    }
}

// Where the elements of a query of the tile begin, of [rows, heads, HEAD_DIM].
INLINE u64 place_of(const Tile& tile, u32 query) {
    u64 row = tile.row + query / GROUP;
    return ((row * gridDim.y + blockIdx.y) * GROUP + query % GROUP) * HEAD_DIM;
}

// Tiles of rows attend, each row to the positions of its sequence up to its own, whose keys and
// values are in the pool.
//
// queries [rows, heads, HEAD_DIM], out the same, tables [sequences, table_blocks]. Grid: (tiles,
// kv_heads). What tile a row is in changes nothing.
extern "C" __global__ void __launch_bounds__(TILE_THREADS) attend_tiles(
    ACT* __restrict__ out, const float* __restrict__ queries, const u8* __restrict__ pool,
    const u32* __restrict__ tables, const Tile* __restrict__ tiles, u32 table_blocks, u32 window,
    u64 block_bytes, u64 keys_at, u64 values_at, float scale) {
    DYNAMIC_SHARED(shared);
    Address shared_keys = address_of(shared), shared_values = shared_keys + KEYS_BYTES;
    // Queries as A of each step: [TILE_QUERIES / 16, STEPS, WARP].
    uint4* shared_queries = (uint4*)(shared + KEYS_BYTES + VALUES_BYTES);
    // What softmax knows of the parts before: two queries of each thread.
    Softened* softened = (Softened*)(shared_queries + TILE_QUERIES / 16 * STEPS * WARP);
    softened += 2 * threadIdx.x;

    Tile tile = tiles[blockIdx.x];
    u32 count = tile.rows * GROUP;
    u64 plane = (u64)blockIdx.y * PLANE * sizeof(KV);
    // With what any of the rows sees.
    Context context = {pool + keys_at + plane,
                       pool + values_at + plane,
                       tables + (u64)tile.table * table_blocks,
                       block_bytes,
                       first_seen(tile.start, window),
                       tile.start + tile.rows};

    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, pair = lane % 4 * 2;
    u32 first_query = warp / SPLIT * 16, first_tile = warp % SPLIT * WARP_TILES;
    u32 lanes_query[2] = {first_query + lane / 4, first_query + lane / 4 + 8};
    // Positions of the warp's first query and behind its last one; the lanes' lie between.
    u32 low = tile.start + first_query / GROUP, end = 0;
    if (first_query < count) end = tile.start + (smaller(first_query + 16, count) - 1) / GROUP + 1;

    const float* from[2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        u64 at = place_of(tile, lanes_query[n]);
        from[n] = lanes_query[n] < count ? queries + at : nullptr;
    }
    shared_queries += warp / SPLIT * STEPS * WARP + lane;
    for (int step = warp % SPLIT; step < STEPS; step += SPLIT) {
        u32 a[4];
        load_queries(a, from[0], from[1], step);
        shared_queries[step * WARP] = {a[0], a[1], a[2], a[3]};
    }

    Sums sums;
    begin_part(sums);
    softened[0] = softened[1] = {MINUS_INFINITY, 0.0f};
#pragma unroll
    for (int i = 0; i < 4 * WARP_TILES; i++) sums.whole[i / 4][i % 4] = 0.0f;

    u32 first_chunk = context.first / CHUNK * CHUNK;
    stage_keys<TILE_THREADS>(shared_keys, context, first_chunk);
    end_copies();
    for (u32 chunk = first_chunk; chunk < context.end; chunk += CHUNK) {
        wait_for_copies<0>();
        // The keys are there, and all are done with the values before.
        __syncthreads();
        stage_values<TILE_THREADS>(shared_values, context, chunk);
        end_copies();

        bool is_seen = chunk < end && chunk + CHUNK > first_seen(low, window);
        u32 weights[CHUNK / 16][4];
        if (is_seen) {
            float scores[CHUNK / 8][4] = {};
            Address keys = shared_keys + lane_keys();
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                uint4 query = shared_queries[step * WARP];
                u32 a[4] = {query.x, query.y, query.z, query.w};
#pragma unroll
                for (int i = 0; i < CHUNK / 8; i += 2) {
                    add_scores(scores[i], scores[i + 1], a, keys + 8 * i * sizeof(KV), step);
                }
            }
#pragma unroll
            for (int i = 0; i < CHUNK / 2; i++) scores[i / 4][i % 4] *= scale;
            bool is_seen_by_all = chunk >= first_seen(end - 1, window) && chunk + CHUNK <= low + 1;
            if (!is_seen_by_all) {
                Seen seen[2] = {seen_by(tile, window, lanes_query[0]),
                                seen_by(tile, window, lanes_query[1])};
                hide(scores, seen, chunk + pair);
            }
            soften(weights, scores, sums);
        }

        wait_for_copies<0>();
        // The values are there, and all are done with the keys.
        __syncthreads();
        if (chunk + CHUNK < context.end) {
            stage_keys<TILE_THREADS>(shared_keys, context, chunk + CHUNK);
        }
        end_copies();
        if (is_seen) {
            Address values = shared_values + 8 * first_tile * sizeof(KV) + lane_values();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32(&near)[4] = weights[2 * half], (&far)[4] = weights[2 * half + 1];
                add_weights(sums.weights, near);
                add_weights(sums.weights, far);
#pragma unroll
                for (int i = 0; i < WARP_TILES; i++) {
                    u32 at = 32 * half * VALUE_STRIDE + 8 * i;
                    add_values(sums.part[i], near, far, values + at * sizeof(KV));
                }
            }
        }
        // Where a part ends, it is merged into those before.
        if ((chunk + CHUNK) % PART == 0 || chunk + CHUNK >= context.end) {
            end_part(sums, softened);
            begin_part(sums);
        }
    }

#pragma unroll
    for (int n = 0; n < 2; n++) {
        if (lanes_query[n] >= count) continue;
        float inverse = 1.0f / softened[n].sum;
        ACT* to = out + place_of(tile, lanes_query[n]) + 8 * first_tile + pair;
#pragma unroll
        for (int i = 0; i < WARP_TILES; i++) {
            const float* two = sums.whole[i] + 2 * n;
            store_pair(two[0] * inverse, two[1] * inverse, to + 8 * i);
        }
    }
}
