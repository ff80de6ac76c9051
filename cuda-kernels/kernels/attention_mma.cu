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

// Places for a chunk's keys or values: one is read while copies to the others are under way.
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

// Of each chunk, a warp has the scores of 16 positions. The lane keeps those of its queries.
INLINE void keep_scores(float* scores, const float (&sums)[2][4], const Context& context, u32 slot,
                        float scale) {
    u32 lane = threadIdx.x % WARP, start = context.first / PART * PART;
    slot += threadIdx.x / WARP * 16 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 query = lane / 4 + i % 2 * 8, from = slot + i / 2 * 8;
        if (query >= GROUP) continue;
        float pair[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            u32 at = start + from + n;
            bool is_seen = at >= context.first && at < context.end;
            pair[n] = is_seen ? sums[i / 2][i % 2 * 2 + n] * scale : MINUS_INFINITY;
        }
        *(float2*)(scores + query * SCORE_STRIDE + from) = {pair[0], pair[1]};
    }
}

// Weights of 16 positions as A.
INLINE void load_weights(u32 (&a)[4], const float* scores, u32 slot) {
    u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 query = lane / 4 + i % 2 * 8, from = slot + lane % 4 * 2 + i / 2 * 8;
        a[i] = query < GROUP ? *(const u32*)(scores + query * SCORE_STRIDE + from) : 0;
    }
}

// Rows attend, each to the positions of its own sequence that it sees: the queries of a KV head are the
// first of 16 rows of A.
//
// queries [rows, heads, HEAD_DIM], out the same. Row r has position positions[r] and the blocks
// tables[table_of[r]][..]; a row whose table is NOBODY is padding. Grid: (parts, kv_heads, rows),
// `parts` as many as the row that sees most has. A row of one part is finished here; others leave
// partial_values [rows, heads, parts, HEAD_DIM] and partial_stats [rows, heads, parts] for
// `merge_parts`.
extern "C" __global__ void __launch_bounds__(PART_THREADS, HEAD_DIM <= 128 ? 4 : 2) attend_parts(
    ACT* __restrict__ out, float* __restrict__ partial_values, float2* __restrict__ partial_stats,
    const float* __restrict__ queries, const u8* __restrict__ pool, const u32* __restrict__ tables,
    const u32* __restrict__ table_of, const u32* __restrict__ positions, u32 table_blocks,
    u32 window, u64 block_bytes, u64 keys_at, u64 values_at, float scale) {
    DYNAMIC_SHARED(shared);
    float* scores = (float*)(shared + DEPTH * STAGE_BYTES);  // [GROUP, SCORE_STRIDE]
    float* rescales = scores + GROUP * SCORE_STRIDE;         // [CHUNKS, GROUP]
    float* maxima = rescales + CHUNKS * GROUP;               // [GROUP]

    u32 row = blockIdx.z, parts = gridDim.x, kv_head = blockIdx.y, heads = gridDim.y * GROUP;
    RowPart part = part_of(row, table_of, positions, window);
    if (part.first == part.end) return;
    u32 start = part.start;
    u64 plane = (u64)kv_head * PLANE * sizeof(KV);
    Context context = {pool + keys_at + plane,
                       pool + values_at + plane,
                       tables + (u64)table_of[row] * table_blocks,
                       block_bytes,
                       part.first,
                       part.end};
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

    for (u32 chunk = first_chunk; chunk < chunks; chunk++) {
        Address keys = wait_for_next() + 16 * warp * sizeof(KV) + lane_keys();
        float sums[2][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            add_scores(sums[0], sums[1], query[step], keys, step);
        }
        keep_scores(scores, sums, context, chunk * CHUNK, scale);
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
            u32 weights[2][4], slot = chunk * CHUNK + 32 * half;
            load_weights(weights[0], scores, slot);
            load_weights(weights[1], scores, slot + 16);
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
            if (part.is_whole) {
                store_pair(first * inverse, second * inverse, out + at * HEAD_DIM + column);
            } else {
                store_pair(first, second, partial_values + part_at * HEAD_DIM + column);
            }
        }
        if (!part.is_whole && threadIdx.x / WARP == 0 && pair == 0) {
            partial_stats[part_at] = {maxima[lanes_query[n]], sum};
        }
    }
}

// A warp has 16 queries and, of wide heads, half of the columns: more do not fit into its registers.
// The two warps then compute the same scores.
constexpr int SPLIT = HEAD_DIM <= 128 ? 1 : 2;
constexpr int WARP_TILES = TILES / SPLIT;
constexpr int TILE_THREADS = TILE_QUERIES / 16 * SPLIT * WARP;

// What a lane has to do with: the warp's queries from the first one on, its tiles of the values from the
// first one on, its own two queries, and of each tile two columns.
struct Lane {
    u32 first_query, first_tile, query[2], column;
};

INLINE Lane this_lane() {
    u32 thread = this_thread(), warp = thread / WARP, lane = thread % WARP;
    u32 first_query = warp / SPLIT * 16, query = first_query + lane / 4;
    return {first_query, warp % SPLIT * WARP_TILES, {query, query + 8}, lane % 4 * 2};
}

// What somebody of the warp's queries sees, or what each of them does. Nothing where there are none.
INLINE Seen seen_by_warp(const Tile& tile, u32 window, bool is_each) {
    u32 query = this_lane().first_query, count = tile.rows * GROUP;
    if (query >= count) return {0, 0};
    Seen low = seen_by(tile, window, query);
    Seen high = seen_by(tile, window, smaller(query + 16, count) - 1);
    return is_each ? Seen{high.first, low.end} : Seen{low.first, high.end};
}

// Where the elements of a query of the tile begin, of [rows, heads, HEAD_DIM].
INLINE u64 place_of(const Tile& tile, u32 query) {
    u64 row = tile.row + query / GROUP;
    return ((row * gridDim.y + blockIdx.y) * GROUP + query % GROUP) * HEAD_DIM;
}

// The warp's queries in shared memory, as A of each step: [TILE_QUERIES / 16, STEPS, WARP].
INLINE uint4* lanes_place(uint4* shared_queries) {
    u32 thread = this_thread();
    return shared_queries + thread / WARP / SPLIT * STEPS * WARP + thread % WARP;
}

// Warps that have the same queries share the steps.
INLINE void stage_queries(uint4* shared_queries, const float* queries, const Tile& tile) {
    Lane lane = this_lane();
    const float* from[2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        bool is_one = lane.query[n] < tile.rows * GROUP;
        from[n] = is_one ? queries + place_of(tile, lane.query[n]) : nullptr;
    }
    for (int step = this_thread() / WARP % SPLIT; step < STEPS; step += SPLIT) {
        u32 a[4];
        load_queries(a, from[0], from[1], step);
        lanes_place(shared_queries)[step * WARP] = {a[0], a[1], a[2], a[3]};
    }
}

typedef float Scores[CHUNK / 8][4];  // sums of each 8 positions
typedef u32 Weights[CHUNK / 16][4];  // as A of each 16 positions

INLINE void compute_scores(Scores& scores, uint4* shared_queries, Address keys, float scale) {
    shared_queries = lanes_place(shared_queries);
    keys += lane_keys();
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) scores[i / 4][i % 4] = 0.0f;
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
}

// What the lane's queries do not see of a chunk has the score -infinity.
INLINE void hide_unseen(Scores& scores, const Tile& tile, u32 window, u32 chunk) {
    Lane lane = this_lane();
    Seen seen[2] = {seen_by(tile, window, lane.query[0]), seen_by(tile, window, lane.query[1])};
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) {
        u32 at = chunk + 8 * (i / 4) + lane.column + i % 2;
        bool is_seen = at >= seen[i % 4 / 2].first && at < seen[i % 4 / 2].end;
        if (!is_seen) scores[i / 4][i % 4] = MINUS_INFINITY;
    }
}

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

// Turns a chunk's scores into weights, and scales what there is of the part. A query that sees nothing
// of the chunk has weights 0 and stays as it is.
INLINE void soften(Weights& weights, const Scores& scores, Sums& sums) {
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

INLINE void add_chunk(Sums& sums, const Weights& weights, Address values) {
    values += 8 * this_lane().first_tile * sizeof(KV) + lane_values();
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

INLINE void begin_whole(Sums& sums, Softened* softened) {
#pragma unroll
    for (int n = 0; n < 2; n++) softened[2 * threadIdx.x + n] = {MINUS_INFINITY, 0.0f};
#pragma unroll
    for (int i = 0; i < 4 * WARP_TILES; i++) sums.whole[i / 4][i % 4] = 0.0f;
}

// Merges a part that ends into those before. What softmax knows of those, of two queries of each thread,
// is in shared memory.
INLINE void end_part(Sums& sums, Softened* softened) {
    softened += 2 * this_thread();
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

INLINE void write_out(ACT* out, const Sums& sums, const Softened* softened, const Tile& tile) {
    Lane lane = this_lane();
#pragma unroll
    for (int n = 0; n < 2; n++) {
        if (lane.query[n] >= tile.rows * GROUP) continue;
        float inverse = 1.0f / softened[2 * threadIdx.x + n].sum;
        ACT* to = out + place_of(tile, lane.query[n]) + 8 * lane.first_tile + lane.column;
#pragma unroll
        for (int i = 0; i < WARP_TILES; i++) {
            const float* two = sums.whole[i] + 2 * n;
            store_pair(two[0] * inverse, two[1] * inverse, to + 8 * i);
        }
    }
}

// Tiles of rows attend, each row to the positions of its sequence up to its own, whose keys and
// values are in the pool.
//
// queries [rows, heads, HEAD_DIM], out the same, tables [sequences, table_blocks]. Grid: (tiles,
// kv_heads). What tile a row is in changes nothing.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1) attend_tiles(
    ACT* __restrict__ out, const float* __restrict__ queries, const u8* __restrict__ pool,
    const u32* __restrict__ tables, const Tile* __restrict__ tiles, u32 table_blocks, u32 window,
    u64 block_bytes, u64 keys_at, u64 values_at, float scale) {
    DYNAMIC_SHARED(shared);
    Address shared_keys = address_of(shared), shared_values = shared_keys + KEYS_BYTES;
    uint4* shared_queries = (uint4*)(shared + KEYS_BYTES + VALUES_BYTES);
    Softened* softened = (Softened*)(shared_queries + TILE_QUERIES / 16 * STEPS * WARP);

    Tile tile = tiles[blockIdx.x];
    u64 plane = (u64)blockIdx.y * PLANE * sizeof(KV);
    // With what any of the rows sees.
    Context context = {pool + keys_at + plane,
                       pool + values_at + plane,
                       tables + (u64)tile.table * table_blocks,
                       block_bytes,
                       first_seen(tile.start, window),
                       tile.start + tile.rows};

    stage_queries(shared_queries, queries, tile);
    Sums sums;
    begin_part(sums);
    begin_whole(sums, softened);
    u32 first_chunk = context.first / CHUNK * CHUNK;
    stage_keys<TILE_THREADS>(shared_keys, context, first_chunk);
    end_copies();
    for (u32 chunk = first_chunk; chunk < context.end; chunk += CHUNK) {
        wait_for_copies<0>();
        // The keys are there, and all are done with the values before.
        __syncthreads();
        stage_values<TILE_THREADS>(shared_values, context, chunk);
        end_copies();

        Seen any = seen_by_warp(tile, window, false), each = seen_by_warp(tile, window, true);
        bool is_seen = chunk < any.end && chunk + CHUNK > any.first;
        Weights weights;
        if (is_seen) {
            Scores scores;
            compute_scores(scores, shared_queries, shared_keys, scale);
            bool is_seen_by_each = chunk >= each.first && chunk + CHUNK <= each.end;
            if (!is_seen_by_each) hide_unseen(scores, tile, window, chunk);
            soften(weights, scores, sums);
        }

        wait_for_copies<0>();
        // The values are there, and all are done with the keys.
        __syncthreads();
        if (chunk + CHUNK < context.end) {
            stage_keys<TILE_THREADS>(shared_keys, context, chunk + CHUNK);
        }
        end_copies();
        if (is_seen) add_chunk(sums, weights, shared_values);
        // Where a part ends, it is merged into those before.
        if ((chunk + CHUNK) % PART == 0 || chunk + CHUNK >= context.end) {
            end_part(sums, softened);
            begin_part(sums);
        }
    }

    write_out(out, sums, softened, tile);
}
