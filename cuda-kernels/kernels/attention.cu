// Attention in f32, one number at a time, for any HEAD_DIM and KV: `attention.cuh` says what both
// sources do. Here a query's order of operations is that of the CPU's kernels (`engine/src/kernels/
// attention`), and so are its bits: a score is summed over the head's elements in order, by one
// thread. Keys lie transposed in their block, so that threads have consecutive positions and nothing
// is added across threads. TILE_QUERIES is 16, 32 or 64.

#define TILE_THREADS (4 * TILE_QUERIES)

constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }

// Queries of a KV head that one block of threads takes; more are several blocks of threads.
constexpr int QUERIES = GROUP < 8 ? GROUP : 8;
constexpr int SUBGROUPS = (GROUP + QUERIES - 1) / QUERIES;
// When values are added, a thread has two columns, and the queries of one of several sets.
constexpr int PAIRS = HEAD_DIM / 2;
constexpr int SETS = PART_THREADS / PAIRS < QUERIES ? PART_THREADS / PAIRS : QUERIES;
constexpr int SET_QUERIES = (QUERIES + SETS - 1) / SETS;
// Numbers of a position or element for all queries: whole float4.
constexpr int STRIDE = round_up(round_up(QUERIES, SET_QUERIES), 4);

// A warp turns the scores of a chunk (`stride` apart) into weights, and returns by how much all that
// the query has so far is scaled. Positions that are not seen have the score -infinity.
INLINE float soften(float* scores, int stride, Softened& softened) {
    u32 lane = threadIdx.x % WARP;
    float* low_at = scores + lane * stride;
    float* high_at = low_at + WARP * stride;
    float low = *low_at, high = *high_at;
    float max = fmaxf(softened.max, max_of_warp(fmaxf(low, high)));
    low = exponential(low - max), high = exponential(high - max);
    *low_at = low, *high_at = high;
    // Position n goes to lane n mod 16, as on the CPU.
    float sum = low + __shfl_down_sync(EVERYONE, low, 16);
    sum += high;
    sum += __shfl_down_sync(EVERYONE, high, 16);
    float rescale = softened.max == max ? 1.0f : exponential(softened.max - max);
    softened = {max, softened.sum * rescale + sum_of_16_lanes(sum)};
    return rescale;
}

// Rows attend, each to the positions of its own sequence that it sees.
//
// queries [rows, heads, HEAD_DIM], out the same. Row r has position positions[r] and the blocks
// tables[table_of[r]][..]; a row whose table is NOBODY is padding. Grid: (parts, kv_heads * SUBGROUPS,
// rows), `parts` as many as the row that sees most has. A row of one part is finished here; others
// leave partial_values [rows, heads, parts, HEAD_DIM] and partial_stats [rows, heads, parts] for
// `merge_parts`.
extern "C" __global__ void __launch_bounds__(PART_THREADS) attend_parts(
    ACT* __restrict__ out, float* __restrict__ partial_values, float2* __restrict__ partial_stats,
    const float* __restrict__ queries, const u8* __restrict__ pool, const u32* __restrict__ tables,
    const u32* __restrict__ table_of, const u32* __restrict__ positions, u32 table_blocks,
    u32 window, u64 block_bytes, u64 keys_at, u64 values_at, float scale) {
    DYNAMIC_SHARED(shared);
    float* shared_queries = (float*)shared;                    // [HEAD_DIM, STRIDE]
    float* weights = shared_queries + HEAD_DIM * STRIDE;       // [PART, STRIDE]
    float* rescales = weights + PART * STRIDE;                 // [CHUNKS, STRIDE]
    Softened* stats = (Softened*)(rescales + CHUNKS * STRIDE); // [STRIDE]

    u32 row = blockIdx.z, parts = gridDim.x;
    u32 kv_head = blockIdx.y / SUBGROUPS, subgroup = blockIdx.y % SUBGROUPS;
    u32 heads = gridDim.y / SUBGROUPS * GROUP;
    u32 head = kv_head * GROUP + subgroup * QUERIES;
    u32 count = smaller(QUERIES, GROUP - subgroup * QUERIES);
    RowPart part = part_of(row, table_of, positions, window);
    u32 start = part.start, first = part.first, end = part.end;
    if (first == end) return;
    const u32* table = tables + (u64)table_of[row] * table_blocks;
    const u8* keys_plane = pool + keys_at + (u64)kv_head * PLANE * sizeof(KV);
    const u8* values_plane = pool + values_at + (u64)kv_head * PLANE * sizeof(KV);

    const float* row_queries = queries + ((u64)row * heads + head) * HEAD_DIM;
    for (u32 i = threadIdx.x; i < HEAD_DIM * STRIDE; i += PART_THREADS) {
        u32 query = i / HEAD_DIM, d = i % HEAD_DIM;
        float element = query < count ? row_queries[query * HEAD_DIM + d] * scale : 0.0f;
        shared_queries[d * STRIDE + query] = element;
    }
    __syncthreads();

    // A thread has four consecutive positions, which lie in one block.
    u32 mine = start + 4 * threadIdx.x;
    float scores[STRIDE][4];
#pragma unroll
    for (int query = 0; query < STRIDE; query++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[query][i] = 0.0f;
    }
    if (mine + 3 >= first && mine < end) {
        const u8* block = keys_plane + table[mine / BLOCK_SIZE] * block_bytes;
        const KV* keys = (const KV*)block + mine % BLOCK_SIZE;
#pragma unroll 8
        for (int d = 0; d < HEAD_DIM; d++) {
            float key[4];
            load_4(keys + d * BLOCK_SIZE, key);
#pragma unroll
            for (int query = 0; query < STRIDE; query += 4) {
                float element[4];
                load_4(shared_queries + d * STRIDE + query, element);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    if (query + n >= QUERIES) continue;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        scores[query + n][i] = fmaf(element[n], key[i], scores[query + n][i]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bool is_seen = mine + i >= first && mine + i < end;
#pragma unroll
        for (int query = 0; query < STRIDE; query++) {
            weights[(4 * threadIdx.x + i) * STRIDE + query] =
                is_seen ? scores[query][i] : MINUS_INFINITY;
        }
    }
    __syncthreads();

    u32 first_chunk = (first - start) / CHUNK, chunks = (end - start + CHUNK - 1) / CHUNK;
    for (u32 query = threadIdx.x / WARP; query < QUERIES; query += PART_THREADS / WARP) {
        Softened softened = {MINUS_INFINITY, 0.0f};
        for (u32 chunk = first_chunk; chunk < chunks; chunk++) {
            float* chunk_scores = weights + chunk * CHUNK * STRIDE + query;
            float rescale = soften(chunk_scores, STRIDE, softened);
            if (threadIdx.x % WARP == 0) rescales[chunk * STRIDE + query] = rescale;
        }
        if (threadIdx.x % WARP == 0) stats[query] = softened;
    }
    __syncthreads();

    u32 set = threadIdx.x / PAIRS, column = threadIdx.x % PAIRS * 2;
    u32 set_query = set * SET_QUERIES;
    if (set_query >= QUERIES) return;
    float sums[SET_QUERIES][2];
#pragma unroll
    for (int i = 0; i < SET_QUERIES; i++) sums[i][0] = sums[i][1] = 0.0f;
    for (u32 chunk = first_chunk; chunk < chunks; chunk++) {
#pragma unroll
        for (int i = 0; i < SET_QUERIES; i++) {
            if (set_query + i >= QUERIES) continue;
            float rescale = rescales[chunk * STRIDE + set_query + i];
            sums[i][0] *= rescale, sums[i][1] *= rescale;
        }
        u32 from = larger(first, start + chunk * CHUNK);
        u32 to = smaller(end, start + chunk * CHUNK + CHUNK);
        while (from < to) {
            u32 slot = from % BLOCK_SIZE, slots = smaller(BLOCK_SIZE - slot, to - from);
            const u8* block = values_plane + table[from / BLOCK_SIZE] * block_bytes;
            const KV* values = (const KV*)block + slot * HEAD_DIM + column;
            const float* weight = weights + (from - start) * STRIDE + set_query;
#pragma unroll 8
            for (u32 i = 0; i < slots; i++) {
                float value[2];
                load_2(values + i * HEAD_DIM, value);
#pragma unroll
                for (int n = 0; n < SET_QUERIES; n++) {
                    sums[n][0] = fmaf(weight[i * STRIDE + n], value[0], sums[n][0]);
                    sums[n][1] = fmaf(weight[i * STRIDE + n], value[1], sums[n][1]);
                }
            }
            from += slots;
        }
    }

#pragma unroll
    for (int i = 0; i < SET_QUERIES; i++) {
        u32 query = set_query + i;
        if (query >= count) continue;
        u64 at = (u64)row * heads + head + query;
        if (part.is_whole) {
            float inverse = 1.0f / stats[query].sum;
            narrow(sums[i][0] * inverse, out[at * HEAD_DIM + column]);
            narrow(sums[i][1] * inverse, out[at * HEAD_DIM + column + 1]);
        } else {
            u64 part_at = at * parts + blockIdx.x;
            float* values = partial_values + part_at * HEAD_DIM + column;
            values[0] = sums[i][0], values[1] = sums[i][1];
            if (column == 0) partial_stats[part_at] = {stats[query].max, stats[query].sum};
        }
    }
}

constexpr int WEIGHT_STRIDE = TILE_QUERIES + 4;
// A thread has four queries and, in each pass, eight columns.
constexpr int QUADS = TILE_QUERIES / 4;
constexpr int PASSES = (HEAD_DIM / 8 + TILE_THREADS / QUADS - 1) / (TILE_THREADS / QUADS);

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
    float* shared_queries = (float*)shared;                         // [HEAD_DIM, TILE_QUERIES]
    float* stage = shared_queries + HEAD_DIM * TILE_QUERIES;        // keys, then values, of a chunk
    float* weights = stage + HEAD_DIM * CHUNK;                      // [CHUNK, WEIGHT_STRIDE]
    float* rescales = weights + CHUNK * WEIGHT_STRIDE;              // [TILE_QUERIES]
    Softened* parts = (Softened*)(rescales + TILE_QUERIES);         // [TILE_QUERIES]
    Softened* wholes = parts + TILE_QUERIES;                        // [TILE_QUERIES]

    Tile tile = tiles[blockIdx.x];
    u32 kv_head = blockIdx.y, heads = gridDim.y * GROUP, thread = threadIdx.x;
    u32 count = tile.rows * GROUP;
    const u32* table = tables + (u64)tile.table * table_blocks;
    const u8* keys_plane = pool + keys_at + (u64)kv_head * PLANE * sizeof(KV);
    const u8* values_plane = pool + values_at + (u64)kv_head * PLANE * sizeof(KV);
    // What any of the rows sees, and what all of them do.
    u32 first = first_seen(tile.start, window), end = tile.start + tile.rows;
    u32 all_first = first_seen(tile.start + tile.rows - 1, window), all_end = tile.start + 1;

    for (u32 i = thread; i < HEAD_DIM * TILE_QUERIES; i += TILE_THREADS) {
        u32 query = i / HEAD_DIM, d = i % HEAD_DIM;
        u64 head = (u64)(tile.row + query / GROUP) * heads + kv_head * GROUP + query % GROUP;
        float element = query < count ? queries[head * HEAD_DIM + d] * scale : 0.0f;
        shared_queries[d * TILE_QUERIES + query] = element;
    }
    if (thread < TILE_QUERIES) {
        parts[thread] = wholes[thread] = {MINUS_INFINITY, 0.0f};
        rescales[thread] = 1.0f;
    }

    u32 quad = thread % QUADS * 4, column = thread / QUADS * 8;
    Seen seen[4];
#pragma unroll
    for (int n = 0; n < 4; n++) seen[n] = seen_by(tile, window, quad + n);
    float part[PASSES][4][8], whole[PASSES][4][8];
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 8; i++) part[pass][n][i] = whole[pass][n][i] = 0.0f;
        }
    }

    for (u32 chunk = first / CHUNK * CHUNK; chunk < end; chunk += CHUNK) {
        __syncthreads();
        // Keys of four consecutive positions at a time, as they lie: [HEAD_DIM, CHUNK].
        u32 slot = thread % (CHUNK / 4) * 4, position = chunk + slot;
        bool is_seen = position + 3 >= first && position < end;
        const u8* block =
            keys_plane + (is_seen ? table[position / BLOCK_SIZE] * block_bytes : 0);
        for (u32 d = thread / (CHUNK / 4); d < HEAD_DIM; d += TILE_THREADS / (CHUNK / 4)) {
            float key[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (is_seen) load_4((const KV*)block + d * BLOCK_SIZE + position % BLOCK_SIZE, key);
            *(float4*)(stage + d * CHUNK + slot) = {key[0], key[1], key[2], key[3]};
        }
        __syncthreads();

        // Scores of four queries and four positions.
        u32 positions = thread / QUADS * 4;
        float scores[4][4] = {};
#pragma unroll 4
        for (int d = 0; d < HEAD_DIM; d++) {
            float key[4], element[4];
            load_4(stage + d * CHUNK + positions, key);
            load_4(shared_queries + d * TILE_QUERIES + quad, element);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int n = 0; n < 4; n++) scores[i][n] = fmaf(element[n], key[i], scores[i][n]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 at = chunk + positions + i;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (at < seen[n].first || at >= seen[n].end) scores[i][n] = MINUS_INFINITY;
            }
            *(float4*)(weights + (positions + i) * WEIGHT_STRIDE + quad) = {
                scores[i][0], scores[i][1], scores[i][2], scores[i][3]};
        }
        __syncthreads();

        // Values [CHUNK, HEAD_DIM], where keys were.
        for (u32 i = thread; i < CHUNK * (HEAD_DIM / 8); i += TILE_THREADS) {
            u32 of = i / (HEAD_DIM / 8), d = i % (HEAD_DIM / 8) * 8, at = chunk + of;
            float value[8] = {};
            if (at >= first && at < end) {
                const u8* block = values_plane + table[at / BLOCK_SIZE] * block_bytes;
                load_8((const KV*)block + at % BLOCK_SIZE * HEAD_DIM + d, value);
            }
            float4* to = (float4*)(stage + of * HEAD_DIM + d);
            to[0] = {value[0], value[1], value[2], value[3]};
            to[1] = {value[4], value[5], value[6], value[7]};
        }
        for (u32 query = thread / WARP; query < TILE_QUERIES; query += TILE_THREADS / WARP) {
            Seen its = seen_by(tile, window, query);
            // A query that sees nothing of this chunk stays as it is.
            if (its.first >= chunk + CHUNK || its.end <= chunk) {
                if (thread % WARP == 0) rescales[query] = 1.0f;
                continue;
            }
            Softened softened = parts[query];
            __syncwarp();
            float rescale = soften(weights + query, WEIGHT_STRIDE, softened);
            if (thread % WARP == 0) rescales[query] = rescale, parts[query] = softened;
        }
        __syncthreads();

        bool is_seen_by_all = chunk >= all_first && chunk + CHUNK <= all_end;
        float rescale[4];
        load_4(rescales + quad, rescale);
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            u32 from = column + pass * (TILE_THREADS / QUADS * 8);
            if (from >= HEAD_DIM) continue;
#pragma unroll
            for (int n = 0; n < 4; n++) {
#pragma unroll
                for (int i = 0; i < 8; i++) part[pass][n][i] *= rescale[n];
            }
#pragma unroll 2
            for (u32 of = 0; of < CHUNK; of++) {
                float weight[4], value[8];
                load_4(weights + of * WEIGHT_STRIDE + quad, weight);
                load_8(stage + of * HEAD_DIM + from, value);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    // What a query does not see is not added, be it infinite.
                    u32 at = chunk + of;
                    if (!is_seen_by_all && (at < seen[n].first || at >= seen[n].end)) continue;
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        part[pass][n][i] = fmaf(weight[n], value[i], part[pass][n][i]);
                    }
                }
            }
        }

        // Where a part ends, it is merged into those before.
        if ((chunk + CHUNK) % PART != 0 && chunk + CHUNK < end) continue;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            Softened before = wholes[quad + n];
            Merge scales = merge(before, parts[quad + n]);
#pragma unroll
            for (int pass = 0; pass < PASSES; pass++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    whole[pass][n][i] = merged(scales, whole[pass][n][i], part[pass][n][i]);
                    part[pass][n][i] = 0.0f;
                }
            }
        }
        __syncthreads();
        if (thread < TILE_QUERIES) {
            merge(wholes[thread], parts[thread]);
            parts[thread] = {MINUS_INFINITY, 0.0f};
        }
    }
    __syncthreads();

#pragma unroll
    for (int n = 0; n < 4; n++) {
        u32 query = quad + n;
        if (query >= count) continue;
        float inverse = 1.0f / wholes[query].sum;
        u64 head = (u64)(tile.row + query / GROUP) * heads + kv_head * GROUP + query % GROUP;
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            u32 from = column + pass * (TILE_THREADS / QUADS * 8);
            if (from >= HEAD_DIM) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                narrow(whole[pass][n][i] * inverse, out[head * HEAD_DIM + from + i]);
            }
        }
    }
}
