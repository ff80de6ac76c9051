// Products of few activations with weights, bound by how fast weights are read:
// y [rows, outputs] = x [rows, inputs] times weights [outputs, inputs], plus bias [outputs] or null.
//
// A warp computes two outputs of all rows. An output is summed in one order, whatever the number of
// rows: lane n has vectors n, n + 32, ... (a vector is 16 bytes of weights), and takes their elements
// in order; the lanes are added as a tree. Numbers of 8 bits: a vector's sum begins with nothing, and
// is multiplied with its scale as it is added to the lane's.
//
// Defined by who compiles: ACT, WEIGHT (f32, bf16, f16), for `gemv_dense_*` and for the bias.

#define GEMV_WARPS 4
#define GEMV_OUTPUTS 2

// How weights are stored: 16 bytes of them are ELEMENTS numbers.
struct Dense {
    static constexpr int ELEMENTS = 16 / sizeof(WEIGHT);
    typedef WEIGHT Stored;
    static constexpr bool HAS_SCALE = false;

    INLINE void load(const WEIGHT* from, float* to) {
#pragma unroll
        for (int i = 0; i < ELEMENTS; i += 4) load_4(from + i, to + i);
    }
};

// Two's complement, times the scale of its group.
struct Int8 {
    static constexpr int ELEMENTS = 16;
    typedef u8 Stored;
    static constexpr bool HAS_SCALE = true;

    // A byte below the exponent of 2^23 is that number plus 2^23.
    INLINE void widen_4(u32 codes, float* to) {
        codes ^= 0x80808080u;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[i] = __uint_as_float(__byte_perm(codes, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
        }
    }
    INLINE void load(const u8* from, float* to) {
        uint4 codes = *(const uint4*)from;
        widen_4(codes.x, to);
        widen_4(codes.y, to + 4);
        widen_4(codes.z, to + 8);
        widen_4(codes.w, to + 12);
    }
};

// FP8 with 4 bits of exponent and 3 of mantissa (Micikevicius et al. 2022), times the scale of its
// group. Weights are finite: the code of NaN reads as 480.
struct Fp8 {
    static constexpr int ELEMENTS = 16;
    typedef u8 Stored;
    static constexpr bool HAS_SCALE = true;

    // Exponent and mantissa where an f32 has its lowest ones: exact but for the bias, subnormals too.
    INLINE void widen_4(u32 codes, float* to) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 code = codes >> 8 * i;
            u32 bits = (code & 0x7f) << 20 | (code & 0x80) << 24;
            to[i] = __uint_as_float(bits) * __uint_as_float(0x7b800000u);  // 2^120
        }
    }
    INLINE void load(const u8* from, float* to) {
        uint4 codes = *(const uint4*)from;
        widen_4(codes.x, to);
        widen_4(codes.y, to + 4);
        widen_4(codes.z, to + 8);
        widen_4(codes.w, to + 12);
    }
};

// scales [outputs, inputs / group]. `inputs` is a multiple of a vector, `group` too.
template <class Format, int ROWS>
INLINE void multiply(
    ACT* __restrict__ y, const ACT* __restrict__ x, const void* __restrict__ stored,
    const float* __restrict__ scales, const WEIGHT* __restrict__ bias, u32 outputs, u32 inputs,
    u32 group) {
    constexpr int ELEMENTS = Format::ELEMENTS;
    const typename Format::Stored* weights = (const typename Format::Stored*)stored;
    u32 warp = blockIdx.x * GEMV_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 output = warp * GEMV_OUTPUTS;
    if (output >= outputs) return;
    float sums[GEMV_OUTPUTS][ROWS] = {};
#pragma unroll 2
    for (u32 at = lane * ELEMENTS; at < inputs; at += WARP * ELEMENTS) {
        float weight[GEMV_OUTPUTS][ELEMENTS], scale[GEMV_OUTPUTS];
#pragma unroll
        for (int n = 0; n < GEMV_OUTPUTS; n++) {
            // Where there is no second output, the first is computed twice.
            u64 its = smaller(output + n, outputs - 1);
            Format::load(weights + its * inputs + at, weight[n]);
            scale[n] = Format::HAS_SCALE ? scales[its * (inputs / group) + at / group] : 1.0f;
        }
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float of_vector[GEMV_OUTPUTS];
#pragma unroll
            for (int n = 0; n < GEMV_OUTPUTS; n++) {
                of_vector[n] = Format::HAS_SCALE ? 0.0f : sums[n][row];
            }
#pragma unroll
            for (int i = 0; i < ELEMENTS; i += 4) {
                float element[4];
                load_4(x + (u64)row * inputs + at + i, element);
#pragma unroll
                for (int n = 0; n < GEMV_OUTPUTS; n++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        of_vector[n] = fmaf(weight[n][i + j], element[j], of_vector[n]);
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < GEMV_OUTPUTS; n++) {
                sums[n][row] =
                    Format::HAS_SCALE ? fmaf(of_vector[n], scale[n], sums[n][row]) : of_vector[n];
            }
        }
    }
#pragma unroll
    for (int n = 0; n < GEMV_OUTPUTS; n++) {
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float sum = sum_of_warp(sums[n][row]);
            if (lane != 0 || output + n >= outputs) continue;
            if (bias) sum += widen(bias[output + n]);
            narrow(sum, y[(u64)row * outputs + output + n]);
        }
    }
}

// Grid: (outputs over GEMV_OUTPUTS * GEMV_WARPS). One kernel for each number of rows.
#define GEMV(FORMAT, NAME, ROWS)                                                                  \
    extern "C" __global__ void __launch_bounds__(GEMV_WARPS * WARP, 4) gemv_##NAME##_##ROWS(         \
        ACT* __restrict__ y, const ACT* __restrict__ x, const u8* __restrict__ weights,           \
        const float* __restrict__ scales, const WEIGHT* __restrict__ bias, u32 outputs,           \
        u32 inputs, u32 group) {                                                                  \
        multiply<FORMAT, ROWS>(y, x, weights, scales, bias, outputs, inputs, group);              \
    }
#define GEMVS(FORMAT, NAME)                                                                       \
    GEMV(FORMAT, NAME, 1) GEMV(FORMAT, NAME, 2) GEMV(FORMAT, NAME, 3) GEMV(FORMAT, NAME, 4)       \
    GEMV(FORMAT, NAME, 5) GEMV(FORMAT, NAME, 6) GEMV(FORMAT, NAME, 7) GEMV(FORMAT, NAME, 8)

GEMVS(Dense, dense)
GEMVS(Int8, int8)
GEMVS(Fp8, fp8)

// Coded weights as ACT, for products of many rows: out and codes [count], where `count` is whole vectors,
// scales [count / group]. Grid: (count over 16 * WIDEN_THREADS).
#define WIDEN_THREADS 128
template <class Format>
INLINE void widen_codes(ACT* __restrict__ out, const u8* __restrict__ codes,
                        const float* __restrict__ scales, u64 count, u32 group) {
    u64 at = 16 * ((u64)blockIdx.x * WIDEN_THREADS + threadIdx.x);
    if (at >= count) return;
    float weight[16], scale = scales[at / group];
    Format::load(codes + at, weight);
#pragma unroll
    for (int i = 0; i < 16; i++) narrow(weight[i] * scale, out[at + i]);
}

extern "C" __global__ void __launch_bounds__(WIDEN_THREADS) widen_int8(
    ACT* __restrict__ out, const u8* __restrict__ codes, const float* __restrict__ scales, u64 count,
    u32 group) {
    widen_codes<Int8>(out, codes, scales, count, group);
}

extern "C" __global__ void __launch_bounds__(WIDEN_THREADS) widen_fp8(
    ACT* __restrict__ out, const u8* __restrict__ codes, const float* __restrict__ scales, u64 count,
    u32 group) {
    widen_codes<Fp8>(out, codes, scales, count, group);
}
