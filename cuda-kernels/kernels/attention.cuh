// What both attentions share, `attention.cu` (each number by itself) and `attention_mma.cu` (tensor
// cores): what a query sees, how softmax's parts are merged, and tiles.
//
// Causal grouped-query attention over paged KV: `attend_parts` and `merge_parts` for rows with little
// to share (decode, drafts), `attend_tiles` for many rows of one sequence (chunks of a prompt). Both
// ways have one order of operations per query: it depends on the query's position, its window and
// HEAD_DIM alone.
//
// - Softmax runs online over chunks of 64 positions, which begin at multiples of 64; values are added
//   in the order of positions.
// - Parts of 512 positions begin at multiples of 512. Each starts from nothing and is merged into
//   those before it.
//
// A block of the pool holds, at `keys_at`, one layer's keys [kv_heads, HEAD_DIM, BLOCK_SIZE], and at
// `values_at` its values [kv_heads, BLOCK_SIZE, HEAD_DIM], of KV.
//
// Defined by who compiles: HEAD_DIM (a multiple of 8 up to 256), GROUP (query heads of a KV head, up
// to 16), BLOCK_SIZE (a multiple of 4), TILE_QUERIES (a power of two from 16 to 128), KV and ACT (f32,
// bf16 or f16).

#define CHUNK 64
#define PART 512
#define CHUNKS (PART / CHUNK)
#define PART_THREADS 128

constexpr u32 PLANE = BLOCK_SIZE * HEAD_DIM;

// Which positions a token sees: from `first` up to its own.
INLINE u32 first_seen(u32 position, u32 window) {
    return window == 0 || position + 1 <= window ? 0 : position + 1 - window;
}

// What softmax knows of some positions: the largest score, the sum of the weights relative to it.
struct Softened {
    float max, sum;
};

// How what was before and what comes next are scaled when they are added.
struct Merge {
    float before, next;
};

// With windows, a query may see nothing of a part: it has what the other has.
INLINE Merge merge(Softened& before, Softened next) {
    if (next.max == MINUS_INFINITY) return {1.0f, 0.0f};
    if (before.max == MINUS_INFINITY) {
        before = next;
        return {0.0f, 1.0f};
    }
    float max = fmaxf(before.max, next.max);
    Merge merge = {exponential(before.max - max), exponential(next.max - max)};
    before = {max, fmaf(next.sum, merge.next, before.sum * merge.before)};
    return merge;
}

INLINE float merged(Merge merge, float before, float next) {
    if (merge.next == 0.0f && merge.before == 1.0f) return before;
    if (merge.before == 0.0f && merge.next == 1.0f) return next;
    return fmaf(next, merge.next, before * merge.before);
}

// The part of a row's context that a block of `attend_parts` takes: its blockIdx.x-th that is seen.
struct RowPart {
    u32 start;       // its first position
    u32 first, end;  // what of it the row sees: nothing where there is no such part
    bool is_whole;   // the row sees nothing else
};

INLINE RowPart part_of(u32 row, const u32* table_of, const u32* positions, u32 window) {
    if (table_of[row] == NOBODY) return {};
    u32 position = positions[row], seen = first_seen(position, window);
    u32 part = seen / PART + blockIdx.x, last_part = position / PART, start = part * PART;
    if (part > last_part) return {};
    u32 first = larger(seen, start), end = smaller(position + 1, start + PART);
    return {start, first, end, seen / PART == last_part};
}

// Merges what `attend_parts` left of rows that see several parts, part after part, into out. Grid:
// (heads, rows).
extern "C" __global__ void __launch_bounds__(PART_THREADS) merge_parts(
    ACT* __restrict__ out, const float* __restrict__ partial_values,
    const float2* __restrict__ partial_stats, const u32* __restrict__ table_of,
    const u32* __restrict__ positions, u32 parts, u32 window) {
    u32 row = blockIdx.y;
    if (table_of[row] == NOBODY) return;
    u32 first_part = first_seen(positions[row], window) / PART;
    u32 count = positions[row] / PART - first_part + 1;
    if (count == 1) return;
    u64 at = (u64)row * gridDim.x + blockIdx.x;
    const float* values = partial_values + at * parts * HEAD_DIM;
    const float2* stats = partial_stats + at * parts;
    for (u32 column = threadIdx.x; column < HEAD_DIM; column += PART_THREADS) {
        Softened softened = {stats[0].x, stats[0].y};
        float value = values[column];
        for (u32 part = 1; part < count; part++) {
            Merge scales = merge(softened, Softened{stats[part].x, stats[part].y});
            value = merged(scales, value, values[part * HEAD_DIM + column]);
        }
        narrow(value * (1.0f / softened.sum), out[at * HEAD_DIM + column]);
    }
}

// Consecutive rows of one sequence.
struct Tile {
    u32 row, rows;  // rows * GROUP is at most TILE_QUERIES
    u32 start;      // position of the first row
    u32 table;
};

struct Seen {
    u32 first, end;
};

// What a query of the tile sees; nothing where there is no such query.
INLINE Seen seen_by(const Tile& tile, u32 window, u32 query) {
    u32 row = query / GROUP;
    if (row >= tile.rows) return {0, 0};
    return {first_seen(tile.start + row, window), tile.start + row + 1};
}
