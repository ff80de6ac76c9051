// What all kernels share: stored numbers, exponentials, reductions.
//
// Nothing is included, so that a machine needs the compiler's library and no headers. All arithmetic
// is IEEE: products are fused into sums only where `fmaf` says so (the compiler is told not to), and
// what is not ours to define (exponentials) is ours. So a kernel's bits are those of the same source
// run on a CPU, where EMULATED replaces what is the card's own.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

#define WARP 32
#define EVERYONE 0xffffffffu
#define NOBODY 0xffffffffu
#define MINUS_INFINITY __uint_as_float(0xff800000u)

#ifndef EMULATED
#define INLINE static __device__ __forceinline__
#define OUTLINE static __device__ __noinline__
// Memory that a block of threads shares: as much as the launch says, or one value of a type.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]
#define SHARED(type, name) __shared__ Of<type> name
template <class T> using Of = T;

INLINE float widen(f16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

INLINE void narrow(float x, f16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
INLINE void narrow(float x, bf16& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#else
INLINE float widen(f16 x) { return emulated_from_f16(x.bits); }
INLINE void narrow(float x, f16& to) { to.bits = emulated_f16(x); }
INLINE void narrow(float x, bf16& to) { to.bits = emulated_bf16(x); }
#endif

INLINE float widen(f32 x) { return x; }
INLINE float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
INLINE void narrow(float x, f32& to) { to = x; }

INLINE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
INLINE u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// Two numbers that lie in one register.
INLINE void widen_pair(u32 pair, bf16, float* to) {
    to[0] = __uint_as_float(pair << 16);
    to[1] = __uint_as_float(pair & 0xffff0000u);
}

INLINE void widen_pair(u32 pair, f16, float* to) {
    to[0] = widen(f16{(unsigned short)pair});
    to[1] = widen(f16{(unsigned short)(pair >> 16)});
}

// Consecutive numbers by one load: `from` is aligned to all of them.
INLINE void load_2(const f32* from, float* to) {
    float2 both = *(const float2*)from;
    to[0] = both.x, to[1] = both.y;
}

INLINE void load_4(const f32* from, float* to) {
    float4 all = *(const float4*)from;
    to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
}

INLINE void load_8(const f32* from, float* to) {
    load_4(from, to);
    load_4(from + 4, to + 4);
}

template <class T> INLINE void load_2(const T* from, float* to) {
    widen_pair(*(const u32*)from, T{}, to);
}

template <class T> INLINE void load_4(const T* from, float* to) {
    uint2 pairs = *(const uint2*)from;
    widen_pair(pairs.x, T{}, to);
    widen_pair(pairs.y, T{}, to + 2);
}

template <class T> INLINE void load_8(const T* from, float* to) {
    uint4 pairs = *(const uint4*)from;
    widen_pair(pairs.x, T{}, to);
    widen_pair(pairs.y, T{}, to + 2);
    widen_pair(pairs.z, T{}, to + 4);
    widen_pair(pairs.w, T{}, to + 6);
}

// e^x, in the operations and the order of the CPU's kernels (`engine/src/kernels/math.rs`): the same
// bits, with a relative error below 2e-7.
INLINE float exponential(float x) {
    const float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = clamped * 1.44269504088896341f + ROUND;
    float n = shifted - ROUND;
    float r = clamped - n * 0.6933594f - n * -2.1219444e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.333452e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    float mantissa = p * r * r + r + 1.0f;
    // The lowest bits of `shifted` are n.
    float exponent = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? 0.0f : mantissa * exponent;
}

// Adds the numbers of a warp's lanes as a fixed tree. All lanes have the sum.
INLINE float sum_of_warp(float x) {
    for (int width = WARP / 2; width > 0; width /= 2) {
        x += __shfl_xor_sync(EVERYONE, x, width);
    }
    return x;
}

INLINE double sum_of_warp(double x) {
    for (int width = WARP / 2; width > 0; width /= 2) {
        x += __shfl_xor_sync(EVERYONE, x, width);
    }
    return x;
}

INLINE float max_of_warp(float x) {
    for (int width = WARP / 2; width > 0; width /= 2) {
        x = fmaxf(x, __shfl_xor_sync(EVERYONE, x, width));
    }
    return x;
}

// Adds the numbers of lanes 0 to 15 as the CPU's kernels add their lanes. All lanes have the sum.
INLINE float sum_of_16_lanes(float x) {
    for (int width = 8; width > 0; width /= 2) {
        x += __shfl_down_sync(EVERYONE, x, width);
    }
    return __shfl_sync(EVERYONE, x, 0);
}
