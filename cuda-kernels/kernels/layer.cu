// What stands between matrix products in a decoder layer. Rows are computed alone, each in one order:
// what else is in the batch changes nothing. The residual stream is f32; ACT is what matrix products
// take and give, WEIGHT what the model's files hold.
//
// Defined by who compiles: HEAD_DIM, BLOCK_SIZE, KV, ACT, WEIGHT, and NEIGHBOURS (1 where elements 2i
// and 2i + 1 of a head rotate together, 0 where i and i + HEAD_DIM / 2 do).

#define ROW_THREADS 256
#define HEAD_WARPS 4

// Embeddings of tokens: out [rows, hidden] from table [vocabulary, hidden]. A token beyond the
// vocabulary has zeros. Grid: (rows).
extern "C" __global__ void __launch_bounds__(ROW_THREADS) embed(
    float* __restrict__ out, const WEIGHT* __restrict__ table, const u32* __restrict__ tokens,
    u32 hidden, u32 vocabulary) {
    u32 token = tokens[blockIdx.x];
    const WEIGHT* row = table + (u64)(token < vocabulary ? token : 0) * hidden;
    for (u32 i = threadIdx.x; i < hidden; i += ROW_THREADS) {
        out[(u64)blockIdx.x * hidden + i] = token < vocabulary ? widen(row[i]) : 0.0f;
    }
}

// RMSNorm (Zhang and Sennrich 2019): normalised [rows, hidden] = norm of x [rows, hidden], after delta
// (the same shape, or null) is added to x. `hidden` is a multiple of 4. Grid: (rows).
//
// Order of the sum of squares: of each 1,024 elements, thread t has 4t to 4t + 3, in order; then a
// tree over each warp, then the warps in order.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) add_and_normalise(
    float* __restrict__ x, const ACT* __restrict__ delta, const WEIGHT* __restrict__ weight,
    ACT* __restrict__ normalised, u32 hidden, float epsilon) {
    SHARED(float[ROW_THREADS / WARP], warps);
    float* row = x + (u64)blockIdx.x * hidden;
    u64 at = (u64)blockIdx.x * hidden;
    float sum = 0.0f;
    for (u32 i = 4 * threadIdx.x; i < hidden; i += 4 * ROW_THREADS) {
        float value[4];
        load_4(row + i, value);
        if (delta) {
            float more[4];
            load_4(delta + at + i, more);
#pragma unroll
            for (int n = 0; n < 4; n++) value[n] += more[n];
            *(float4*)(row + i) = {value[0], value[1], value[2], value[3]};
        }
#pragma unroll
        for (int n = 0; n < 4; n++) sum = fmaf(value[n], value[n], sum);
    }
    sum = sum_of_warp(sum);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < ROW_THREADS / WARP; warp++) sum += warps[warp];
    float scale = 1.0f / sqrtf(sum / (float)hidden + epsilon);
    // Each thread reads what it wrote itself.
    for (u32 i = 4 * threadIdx.x; i < hidden; i += 4 * ROW_THREADS) {
        float value[4], factor[4];
        load_4(row + i, value);
        load_4(weight + i, factor);
#pragma unroll
        for (int n = 0; n < 4; n++) narrow(value[n] * scale * factor[n], normalised[at + i + n]);
    }
}

// Heads before attention, with the bits of the CPU's kernels (`engine/src/kernels/heads.rs`): a bias
// and a norm where the model has one, a rotation (Su et al. 2021); keys and values go into their block.
//
// projected [rows, (heads + 2 kv_heads) * HEAD_DIM] has a token's queries, keys and values; bias (or
// null) is one such row; query_norm and key_norm [HEAD_DIM] or null; angles [rows, HEAD_DIM]: cosines,
// then sines, of the row's position. queries [rows, heads, HEAD_DIM]. slots[row] is block * BLOCK_SIZE
// + slot; a row whose slot is NOBODY is padding. A warp has a head. Grid: (heads + 2 kv_heads over
// HEAD_WARPS, rows).
extern "C" __global__ void __launch_bounds__(HEAD_WARPS * WARP) prepare_heads(
    float* __restrict__ queries, u8* __restrict__ pool, const ACT* __restrict__ projected,
    const WEIGHT* __restrict__ bias, const WEIGHT* __restrict__ query_norm,
    const WEIGHT* __restrict__ key_norm, const float* __restrict__ angles,
    const u32* __restrict__ slots, u32 heads, u32 kv_heads, u64 block_bytes, u64 keys_at,
    u64 values_at, float epsilon) {
    SHARED(float[HEAD_WARPS][HEAD_DIM], all_heads);
    float* elements = all_heads[threadIdx.x / WARP];
    u32 lane = threadIdx.x % WARP, row = blockIdx.y;
    u32 head = blockIdx.x * HEAD_WARPS + threadIdx.x / WARP, all = heads + 2 * kv_heads;
    if (head >= all || slots[row] == NOBODY) return;
    bool is_query = head < heads, is_value = head >= heads + kv_heads;

    const ACT* from = projected + ((u64)row * all + head) * HEAD_DIM;
    for (u32 d = lane; d < HEAD_DIM; d += WARP) {
        elements[d] = widen(from[d]);
        if (bias) elements[d] += widen(bias[head * HEAD_DIM + d]);
    }
    __syncwarp();

    const WEIGHT* norm = is_query ? query_norm : key_norm;
    if (norm && !is_value) {
        // Element d goes to lane d mod 16, as on the CPU.
        float sum = 0.0f;
        for (u32 d = lane; d < HEAD_DIM && lane < 16; d += 16) {
            sum = fmaf(elements[d], elements[d], sum);
        }
        float scale = 1.0f / sqrtf(sum_of_16_lanes(sum) / (float)HEAD_DIM + epsilon);
        for (u32 d = lane; d < HEAD_DIM; d += WARP) {
            elements[d] = elements[d] * scale * widen(norm[d]);
        }
        __syncwarp();
    }
    if (!is_value) {
        const float* cosines = angles + (u64)row * HEAD_DIM;
        const float* sines = cosines + HEAD_DIM / 2;
        for (u32 pair = lane; pair < HEAD_DIM / 2; pair += WARP) {
            u32 first = NEIGHBOURS ? 2 * pair : pair;
            u32 second = NEIGHBOURS ? first + 1 : pair + HEAD_DIM / 2;
            float a = elements[first], b = elements[second];
            elements[first] = a * cosines[pair] - b * sines[pair];
            elements[second] = b * cosines[pair] + a * sines[pair];
        }
        __syncwarp();
    }

    if (is_query) {
        float* to = queries + ((u64)row * heads + head) * HEAD_DIM;
        for (u32 d = lane; d < HEAD_DIM; d += WARP) to[d] = elements[d];
        return;
    }
    u32 kv_head = is_value ? head - heads - kv_heads : head - heads;
    u32 slot = slots[row] % BLOCK_SIZE;
    u8* plane = pool + slots[row] / BLOCK_SIZE * block_bytes + (is_value ? values_at : keys_at);
    KV* to = (KV*)plane + (u64)kv_head * BLOCK_SIZE * HEAD_DIM;
    for (u32 d = lane; d < HEAD_DIM; d += WARP) {
        narrow(elements[d], to[is_value ? slot * HEAD_DIM + d : d * BLOCK_SIZE + slot]);
    }
}

// SwiGLU's middle (Shazeer 2020): out [rows, inner] = silu(gate) * up, where both [rows, 2, inner] is
// gate and up. `inner` is a multiple of 8; a thread has 8 elements. The operations of the CPU's kernel.
// Grid: (inner / 8 over ROW_THREADS, rows).
extern "C" __global__ void __launch_bounds__(ROW_THREADS) silu_multiply(
    ACT* __restrict__ out, const ACT* __restrict__ both, u32 inner) {
    u32 i = 8 * (blockIdx.x * ROW_THREADS + threadIdx.x);
    if (i >= inner) return;
    float gate[8], up[8];
    load_8(both + (u64)blockIdx.y * 2 * inner + i, gate);
    load_8(both + ((u64)blockIdx.y * 2 + 1) * inner + i, up);
    ACT* to = out + (u64)blockIdx.y * inner + i;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        narrow(gate[n] / (1.0f + exponential(-gate[n])) * up[n], to[n]);
    }
}

// Some rows of a table: out [rows, words] from table [any, words], by their numbers; a row of NOBODY is
// left alone. Grid: (rows).
extern "C" __global__ void __launch_bounds__(ROW_THREADS) take_rows(
    u32* __restrict__ out, const u32* __restrict__ table, const u32* __restrict__ rows, u32 words) {
    u32 row = rows[blockIdx.x];
    if (row == NOBODY) return;
    for (u32 i = threadIdx.x; i < words; i += ROW_THREADS) {
        out[(u64)blockIdx.x * words + i] = table[(u64)row * words + i];
    }
}

// y [rows, outputs] += bias [outputs]. Grid: (outputs over ROW_THREADS, rows).
extern "C" __global__ void __launch_bounds__(ROW_THREADS) add_bias(
    ACT* __restrict__ y, const WEIGHT* __restrict__ bias, u32 outputs) {
    u32 i = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (i >= outputs) return;
    ACT* to = y + (u64)blockIdx.y * outputs + i;
    narrow(widen(*to) + widen(bias[i]), *to);
}
