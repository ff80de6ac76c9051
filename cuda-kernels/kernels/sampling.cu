// Chooses tokens from logits [rows, vocabulary] of ACT, as the engine's sampler does
// (`engine/src/sampler.rs`): by the same random numbers, with candidates ranked by weight and ties
// broken by id. Sums over a whole vocabulary are in an order of their own (threads, then warps), in
// f64. A row has one order, whatever is beside it. NaN counts as the smallest number.
//
// A block of threads has a row. Grid: (rows).

#define SAMPLE_THREADS 512
#define SAMPLE_WARPS (SAMPLE_THREADS / WARP)
// As many candidates are ranked here; a row that needs more is NOT_DECIDED.
#define CANDIDATES_MAX 1024
#define NOT_DECIDED 0xffffffffu

struct Sampling {
    double random;      // in [0, 1)
    float temperature;  // 0: greedy
    float top_p;
    float min_p;
    u32 top_k;  // 0: all
};

struct Shared {
    u64 candidates[CANDIDATES_MAX];
    double sums[SAMPLE_WARPS];
    u64 best[SAMPLE_WARPS];
    u32 histogram[256];
    u32 digit, above, within;
    u32 taken, chosen, chosen_warp;
    double target;
};

// In the order of numbers, 0 below all of them. NaN is as -infinity.
INLINE u32 order_of(float x) {
    u32 bits = x != x ? 0xff800000u : __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

INLINE float number_at(u32 order) {
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

// Larger numbers first, then smaller ids. No two tokens have the same rank.
INLINE u64 rank_of(float x, u32 id) { return (u64)order_of(x) << 32 | (u32)~id; }
INLINE u32 id_at(u64 rank) { return ~(u32)rank; }
INLINE float number_at(u64 rank) { return number_at((u32)(rank >> 32)); }

INLINE u64 best_of_block(u64 rank, Shared& shared) {
    for (int width = WARP / 2; width > 0; width /= 2) {
        u64 other = __shfl_xor_sync(EVERYONE, rank, width);
        rank = other > rank ? other : rank;
    }
    if (threadIdx.x % WARP == 0) shared.best[threadIdx.x / WARP] = rank;
    __syncthreads();
    for (int warp = 0; warp < SAMPLE_WARPS; warp++) {
        rank = shared.best[warp] > rank ? shared.best[warp] : rank;
    }
    __syncthreads();
    return rank;
}

INLINE double sum_of_block(double x, Shared& shared) {
    x = sum_of_warp(x);
    if (threadIdx.x % WARP == 0) shared.sums[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0.0;
    for (int warp = 0; warp < SAMPLE_WARPS; warp++) x += shared.sums[warp];
    __syncthreads();
    return x;
}

// The largest logit. -0 is as 0, so that the lower id of both is chosen.
INLINE u64 best_logit(const ACT* logits, u32 vocabulary, Shared& shared) {
    u64 best = 0;
    for (u32 id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) {
        u64 rank = rank_of(widen(logits[id]) + 0.0f, id);
        best = rank > best ? rank : best;
    }
    return best_of_block(best, shared);
}

// e^((logit - max) / temperature): its probability, divided by the largest. A function of its own,
// because in each of its places it would take registers that are then spilled.
OUTLINE float relative_weight(ACT logit, float max, float temperature) {
    float weight = exponential((widen(logit) - max) / temperature);
    return weight != weight ? 0.0f : weight;
}

// Ranks by weight; tokens below `min_p` have none.
struct ByWeight {
    const ACT* logits;
    float max, temperature, min_p;

    INLINE float weight(ByWeight self, u32 id) {
        float weight = relative_weight(self.logits[id], self.max, self.temperature);
        return weight >= self.min_p ? weight : 0.0f;
    }
    INLINE u64 rank(ByWeight self, u32 id) {
        float weight = relative_weight(self.logits[id], self.max, self.temperature);
        return weight >= self.min_p ? rank_of(weight, id) : 0;
    }
};

// The lowest rank of the `count` best tokens, of at least as many: a radix selection from the highest
// byte on, which ends where a byte tells them from the others.
INLINE u64 lowest_of_best(ByWeight by, u32 vocabulary, u32 count, Shared& shared) {
    u64 prefix = 0;
    for (int shift = 56;; shift -= 8) {
        for (u32 i = threadIdx.x; i < 256; i += SAMPLE_THREADS) shared.histogram[i] = 0;
        __syncthreads();
        for (u32 id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) {
            u64 rank = ByWeight::rank(by, id);
            if (shift == 56 || rank >> (shift + 8) == prefix) {
                atomicAdd(&shared.histogram[rank >> shift & 255], 1u);
            }
        }
        __syncthreads();
        if (threadIdx.x < WARP) {
            // Lane 0 has the highest eight digits.
            u32 highest = 255 - 8 * threadIdx.x, own = 0;
            for (u32 i = 0; i < 8; i++) own += shared.histogram[highest - i];
            u32 up_to = own;
            for (u32 width = 1; width < WARP; width *= 2) {
                u32 before = __shfl_up_sync(EVERYONE, up_to, width);
                if (threadIdx.x >= width) up_to += before;
            }
            u32 above = up_to - own;
            if (above < count && up_to >= count) {
                u32 digit = highest;
                while (above + shared.histogram[digit] < count) above += shared.histogram[digit--];
                shared.digit = digit, shared.above = above, shared.within = shared.histogram[digit];
            }
        }
        __syncthreads();
        prefix = prefix << 8 | shared.digit;
        count -= shared.above;
        if (shared.within == count || shift == 0) return prefix << shift;
        __syncthreads();
    }
}

// The `count` best tokens, best first, in shared.candidates. There are as many, and `count` is at
// least 1 and at most CANDIDATES_MAX.
INLINE void rank_best(ByWeight by, u32 vocabulary, u32 count, Shared& shared) {
    u64 lowest = lowest_of_best(by, vocabulary, count, shared);
    u32 padded = 1;
    while (padded < count) padded *= 2;
    if (threadIdx.x == 0) shared.taken = 0;
    for (u32 i = count + threadIdx.x; i < padded; i += SAMPLE_THREADS) shared.candidates[i] = 0;
    __syncthreads();
    for (u32 id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) {
        u64 rank = ByWeight::rank(by, id);
        if (rank >= lowest) shared.candidates[atomicAdd(&shared.taken, 1u)] = rank;
    }
    __syncthreads();
    // Bitonic (Batcher 1968).
    for (u32 size = 2; size <= padded; size *= 2) {
        for (u32 width = size / 2; width > 0; width /= 2) {
            for (u32 i = threadIdx.x; i < padded; i += SAMPLE_THREADS) {
                u32 other = i ^ width;
                if (other < i) continue;
                u64 a = shared.candidates[i], b = shared.candidates[other];
                if ((a < b) == ((i & size) == 0)) {
                    shared.candidates[i] = b, shared.candidates[other] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Draws among the candidates, which are `count` of `likely` tokens whose weights add up to `total`: one
// thread, since they are few.
INLINE u32 draw_ranked(
    const Shared& shared, Sampling sampling, u32 count, u32 likely, double total) {
    if (sampling.top_k > 0) {
        if (sampling.top_k > count && likely > count) return NOT_DECIDED;
        total = 0.0;
        for (u32 i = 0; i < count; i++) total += number_at(shared.candidates[i]);
    }
    u32 kept = count;
    double kept_sum = 0.0;
    if (sampling.top_p < 1.0f) {
        double enough = (double)sampling.top_p * total;
        kept = 0;
        do {
            kept_sum += number_at(shared.candidates[kept++]);
        } while (kept_sum < enough && kept < count);
        if (kept_sum < enough && sampling.top_k == 0 && likely > count) return NOT_DECIDED;
    } else {
        kept_sum = total;
    }
    double target = sampling.random * kept_sum, cumulative = 0.0;
    for (u32 i = 0; i < kept; i++) {
        cumulative += number_at(shared.candidates[i]);
        if (target < cumulative) return id_at(shared.candidates[i]);
    }
    return id_at(shared.candidates[0]);
}

// Draws among all tokens, in the order of ids: a warp has some that follow each other.
INLINE void draw_from_all(ByWeight by, u32 vocabulary, double random, Shared& shared) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 span = (vocabulary + SAMPLE_THREADS - 1) / SAMPLE_THREADS * WARP;
    u32 from = smaller(warp * span, vocabulary), to = smaller(from + span, vocabulary);
    double sum = 0.0;
    for (u32 id = from + lane; id < to; id += WARP) sum += ByWeight::weight(by, id);
    sum = sum_of_warp(sum);
    if (lane == 0) shared.sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0, cumulative = 0.0;
        for (u32 i = 0; i < SAMPLE_WARPS; i++) total += shared.sums[i];
        u32 i = 0;
        while (i + 1 < SAMPLE_WARPS && cumulative + shared.sums[i] <= random * total) {
            cumulative += shared.sums[i++];
        }
        shared.chosen_warp = i, shared.target = random * total - cumulative;
    }
    __syncthreads();
    if (warp != shared.chosen_warp) return;
    double before = 0.0;
    u32 last = NOT_DECIDED;
    for (u32 first = from; first < to; first += WARP) {
        u32 id = first + lane;
        float weight = id < to ? ByWeight::weight(by, id) : 0.0f;
        double up_to = weight;
        for (u32 width = 1; width < WARP; width *= 2) {
            double other = __shfl_up_sync(EVERYONE, up_to, width);
            if (lane >= width) up_to += other;
        }
        u32 beyond = __ballot_sync(EVERYONE, weight > 0.0f && before + up_to > shared.target);
        u32 likely = __ballot_sync(EVERYONE, weight > 0.0f);
        if (likely) last = first + 31 - __clz(likely);
        if (beyond) {
            last = first + __ffs(beyond) - 1;
            break;
        }
        before += __shfl_sync(EVERYONE, up_to, WARP - 1);
    }
    // Rounding may leave the target just behind the last one.
    if (lane == 0 && last != NOT_DECIDED) shared.chosen = last;
}

INLINE bool is_ranked(Sampling sampling) {
    return sampling.temperature != 0.0f && (sampling.top_k > 0 || sampling.top_p < 1.0f);
}

// chosen [rows]: the token of each row that takes the most likely token, or draws among all. Other rows
// are left to `sample_ranked`: two kernels, because one would spill registers.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample(
    u32* __restrict__ chosen, const ACT* __restrict__ all_logits,
    const Sampling* __restrict__ samplings, u32 vocabulary) {
    SHARED(Shared, shared);
    u32 row = blockIdx.x;
    const ACT* logits = all_logits + (u64)row * vocabulary;
    Sampling sampling = samplings[row];
    if (is_ranked(sampling)) return;
    u64 best = best_logit(logits, vocabulary, shared);
    if (threadIdx.x == 0) shared.chosen = id_at(best);
    __syncthreads();
    if (sampling.temperature != 0.0f) {
        ByWeight by = {logits, number_at(best), sampling.temperature, sampling.min_p};
        draw_from_all(by, vocabulary, sampling.random, shared);
        __syncthreads();
    }
    if (threadIdx.x == 0) chosen[row] = shared.chosen;
}

// chosen [rows]: the token of each row that draws among its best, by top_k or top_p; NOT_DECIDED where
// more than CANDIDATES_MAX candidates would have to be ranked. Other rows are left alone.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample_ranked(
    u32* __restrict__ chosen, const ACT* __restrict__ all_logits,
    const Sampling* __restrict__ samplings, u32 vocabulary) {
    SHARED(Shared, shared);
    u32 row = blockIdx.x;
    const ACT* logits = all_logits + (u64)row * vocabulary;
    Sampling sampling = samplings[row];
    if (!is_ranked(sampling)) return;
    u64 best = best_logit(logits, vocabulary, shared);
    ByWeight by = {logits, number_at(best), sampling.temperature, sampling.min_p};
    double sum = 0.0, likely = 0.0;
    for (u32 id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) {
        sum += ByWeight::weight(by, id);
        likely += ByWeight::rank(by, id) != 0 ? 1.0 : 0.0;
    }
    sum = sum_of_block(sum, shared);
    likely = sum_of_block(likely, shared);
    u32 count = smaller((u32)likely, CANDIDATES_MAX);
    if (sampling.top_k > 0) count = smaller(count, sampling.top_k);
    // Where no number is likely, as with NaN alone, the best one is taken.
    if (count > 0) rank_best(by, vocabulary, count, shared);
    if (threadIdx.x == 0) {
        chosen[row] = count == 0 ? id_at(best)
                                 : draw_ranked(shared, sampling, count, (u32)likely, sum);
    }
}
