// What CUDA C++ has and C++ has not, for kernels that run on a CPU: compiled before a kernel's source.
// `emulation.cpp` runs the threads of a block as fibers; `program.cpp` makes a program of it, and
// `libnvrtc.cpp` modules, which are shared libraries.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define EMULATED
// Who looks for kernels defines it.
#ifndef __global__
#define __global__
#endif
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define INLINE static inline
#define OUTLINE static
#define DYNAMIC_SHARED(name) unsigned char* name = (unsigned char*)emulated_dynamic_shared()
#define SHARED(type, name) \
    Of<type>& name = *(Of<type>*)emulated_static_shared(__COUNTER__, sizeof(Of<type>))
template <class T> using Of = T;

// What a module offers. The parameters of a kernel are as in `Kernel` below; null: there is none.
#define OFFERED extern "C" __attribute__((visibility("default")))
OFFERED const char* emulated_parameters(const char* kernel);
// Non-zero: it failed, and stderr says why.
OFFERED int emulated_run(const char* kernel, const unsigned grid[3], unsigned threads,
                         unsigned shared_bytes, const uint64_t* arguments, uint64_t seed);

#pragma GCC visibility push(hidden)

struct Index { unsigned x, y, z; };
extern Index threadIdx, blockIdx, gridDim;

// The alignment that a card demands of these.
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

void* emulated_dynamic_shared();
void* emulated_static_shared(int id, size_t bytes);
void emulated_barrier();
void emulated_warp_barrier();
// Each lane of a warp gives 64 bits, and gets those of the lane `from`.
uint64_t emulated_exchange(uint64_t bits, unsigned from);
unsigned emulated_ballot(bool is_true);
// Each lane gives up to six words; what every lane gave is there until the lane gives again.
static const unsigned EMULATED_WORDS = 6;
typedef uint64_t EmulatedWords[EMULATED_WORDS];
unsigned emulated_give(const uint64_t* words, unsigned count);
const EmulatedWords& emulated_given(unsigned lane, unsigned turn);
static inline unsigned emulated_lane() { return threadIdx.x % 32; }
[[noreturn]] void emulated_failure(const char* what);

static inline void __syncthreads() { emulated_barrier(); }
static inline void __syncwarp() { emulated_warp_barrier(); }

template <class T> T emulated_shuffle(unsigned mask, T value, unsigned from) {
    if (mask != 0xffffffffu) emulated_failure("a shuffle that is not of the whole warp");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulated_exchange(bits, from < 32 ? from : emulated_lane());
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
    return emulated_shuffle(mask, value, lane & 31);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulated_shuffle(mask, value, emulated_lane() ^ lanes);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
    return emulated_shuffle(mask, value, emulated_lane() + lanes);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned lanes) {
    return emulated_shuffle(mask, value, emulated_lane() - lanes);
}
static inline unsigned __ballot_sync(unsigned, bool is_true) { return emulated_ballot(is_true); }

static inline unsigned atomicAdd(unsigned* to, unsigned x) {
    return __atomic_fetch_add(to, x, __ATOMIC_RELAXED);
}
static inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
static inline int __ffs(unsigned x) { return __builtin_ffs(x); }

static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}

// Bytes of two numbers, by the lower three bits of each digit of the selector.
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned bytes = 0;
    for (int i = 0; i < 4; i++) {
        bytes |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    }
    return bytes;
}

// What conversions of the card do. To nearest, ties to even; NaN is one pattern.
static inline uint16_t emulated_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline uint16_t emulated_f16(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {
        // Subnormal: adding 2^-1 rounds where its last bit is.
        float rounded = __uint_as_float(magnitude) + 0.5f;
        return sign | (__float_as_uint(rounded) - 0x3f000000);
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | (rounded - 0x38000000) >> 13;
}

static inline float emulated_from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;
    uint32_t wide = magnitude >= 0x7c00 ? 0x7f800000 | (magnitude & 0x3ff) << 13
                                        : __float_as_uint(scaled);
    return __uint_as_float(wide | sign);
}

// A warp's product of matrices, in the fragments of mma.m16n8k16: a lane has eight numbers of A, then
// four of B. Products are exact, and added in f32 in the order of k.
static inline void emulated_multiply_add(float (&sums)[4], const float (&mine)[12]) {
    EmulatedWords words;
    memcpy(words, mine, sizeof words);
    unsigned turn = emulated_give(words, EMULATED_WORDS);
    unsigned group = emulated_lane() / 4, pair = emulated_lane() % 4 * 2;
    float a[2][16], b[2][16];
    for (unsigned t = 0; t < 4; t++) {
        float row[12], columns[2][12];
        memcpy(row, emulated_given(4 * group + t, turn), sizeof row);
        for (unsigned n = 0; n < 2; n++) {
            memcpy(columns[n], emulated_given(4 * (pair + n) + t, turn), sizeof columns[n]);
        }
        for (unsigned i = 0; i < 4; i++) {
            unsigned k = 2 * t + i % 2 + i / 2 * 8;
            for (unsigned n = 0; n < 2; n++) {
                a[n][k] = row[2 * n + i % 2 + i / 2 * 4];
                b[n][k] = columns[n][8 + i];
            }
        }
    }
    for (unsigned k = 0; k < 16; k++) {
        for (unsigned i = 0; i < 4; i++) sums[i] += a[i / 2][k] * b[i % 2][k];
    }
}

// Four matrices of 8 by 8 numbers of 16 bits, transposed: ldmatrix.x4.trans.
static inline void emulated_load_transposed(unsigned (&matrices)[4], const void* row) {
    if ((uintptr_t)row % 16 != 0) emulated_failure("a matrix's row is misaligned");
    uint64_t mine = (uint64_t)row;
    unsigned turn = emulated_give(&mine, 1), group = emulated_lane() / 4, t = emulated_lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned pair[2];
        for (unsigned n = 0; n < 2; n++) {
            uint64_t from = emulated_given(8 * i + 2 * t + n, turn)[0];
            pair[n] = ((const uint16_t*)from)[group];
        }
        matrices[i] = pair[0] | pair[1] << 16;
    }
}

// Copies to shared memory that are under way: cp.async, of which each thread has groups. Who waits for
// them copies; before, what was there is lost.
struct EmulatedCopy {
    void* to;
    const void* from;  // null: zeros
    unsigned bytes;    // 0: the end of a group
};
void emulated_put_off(EmulatedCopy copy);
bool emulated_is_due(EmulatedCopy* copy, unsigned later_groups);

static inline void emulated_copy_later(void* to, const void* from, unsigned bytes, bool is_there) {
    if ((uintptr_t)to % bytes != 0 || (is_there && (uintptr_t)from % bytes != 0)) {
        emulated_failure("a copy is misaligned");
    }
    for (unsigned i = 0; i < bytes / 4; i++) ((unsigned*)to)[i] = 0xffffffffu;
    emulated_put_off({to, is_there ? from : nullptr, bytes});
}
static inline void emulated_end_copies() { emulated_put_off({nullptr, nullptr, 0}); }
static inline void emulated_wait_for_copies(unsigned later_groups) {
    EmulatedCopy copy;
    while (emulated_is_due(&copy, later_groups)) {
        for (unsigned i = 0; i < copy.bytes / 4; i++) {
            ((unsigned*)copy.to)[i] = copy.from ? ((const unsigned*)copy.from)[i] : 0;
        }
    }
}

// Kernels by name, with what they take: 'p' a pointer, 'u' and 'U' integers of 32 and 64 bits, 'f' a
// float. Arguments come as 64 bits each.
struct Kernel {
    const char* name;
    char parameters[32];
    void (*function)();
    void (*call)(void (*function)(), const uint64_t* arguments);
};

template <class T> struct Parameter;
template <class T> struct Parameter<T*> {
    static constexpr char KIND = 'p';
    static T* of(uint64_t bits) { return (T*)bits; }
};
template <> struct Parameter<unsigned> {
    static constexpr char KIND = 'u';
    static unsigned of(uint64_t bits) { return (unsigned)bits; }
};
template <> struct Parameter<unsigned long long> {
    static constexpr char KIND = 'U';
    static unsigned long long of(uint64_t bits) { return bits; }
};
template <> struct Parameter<float> {
    static constexpr char KIND = 'f';
    static float of(uint64_t bits) { return __uint_as_float((unsigned)bits); }
};

template <class... P, size_t... I>
void emulated_call(void (*function)(P...), const uint64_t* arguments, std::index_sequence<I...>) {
    function(Parameter<P>::of(arguments[I])...);
}

template <class... P> Kernel emulated_kernel(const char* name, void (*function)(P...)) {
    Kernel kernel = {name, {Parameter<P>::KIND..., 0}, (void (*)())function, nullptr};
    kernel.call = [](void (*function)(), const uint64_t* arguments) {
        emulated_call((void (*)(P...))function, arguments, std::index_sequence_for<P...>());
    };
    return kernel;
}

extern const Kernel emulated_kernels[];
extern const int emulated_kernel_count;

#pragma GCC visibility pop
