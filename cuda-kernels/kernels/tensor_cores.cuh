// Products of small matrices by a warp's tensor cores, and how their operands come to the lanes.
//
// sums [16, 8] += A [16, 16] * B [16, 8], in fragments as the PTX ISA has them (mma.m16n8k16): lane
// 4 * group + t has, two numbers to a register, the first in its lower half,
//
// - of A: rows group, group + 8 at columns 2t, 2t + 1; then both at columns 2t + 8, 2t + 9;
// - of B: column group at rows 2t, 2t + 1; then at rows 2t + 8, 2t + 9;
// - of the sums, in f32: row group at columns 2t, 2t + 1; then row group + 8.
//
// An element of the sums depends on its row of A, its column of B and what it was, and on nothing else.

#ifndef EMULATED
// Of shared memory.
typedef u32 Address;

INLINE Address address_of(const u8* at) {
    Address address;
    asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }"
        : "=r"(address)
        : "l"(at));
    return address;
}

// The thread's index, read where it is used: what is computed of it is then computed there, too, and
// takes no registers in the meantime.
INLINE u32 this_thread() {
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

INLINE u32 narrow_pair(float first, float second, bf16) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

INLINE u32 narrow_pair(float first, float second, f16) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

#define MULTIPLY_ADD(type)                                                                     \
    INLINE void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 low, u32 high, type) {   \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type ".f32 "          \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));       \
    }
MULTIPLY_ADD(bf16)
MULTIPLY_ADD(f16)

// Four matrices [8, 8], transposed: lane 8 * i + r names row r (16 bytes) of matrix i, and gets column
// group of each at rows 2t, 2t + 1. So B comes from memory where its columns are consecutive.
INLINE void load_transposed(u32 (&matrices)[4], Address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row));
}

// Copies 8 or 16 bytes, zeros where there is nothing to copy, some time before the thread waits.
template <int BYTES> INLINE void copy_later(Address to, const void* from, bool is_there) {
    int bytes = is_there ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes)
                     : "memory");
    }
}

// The thread's copies since the last call are a group.
INLINE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the thread's groups but the last `LATER` ones. Other threads' need a barrier.
template <int LATER> INLINE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}
#else
typedef u8* Address;

INLINE Address address_of(u8* at) { return at; }
INLINE u32 this_thread() { return threadIdx.x; }

INLINE u32 narrow_pair(float first, float second, bf16) {
    return emulated_bf16(first) | (u32)emulated_bf16(second) << 16;
}

INLINE u32 narrow_pair(float first, float second, f16) {
    return emulated_f16(first) | (u32)emulated_f16(second) << 16;
}

template <class T>
INLINE void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 low, u32 high, T type) {
    float wide[12];
    for (int i = 0; i < 4; i++) widen_pair(a[i], type, wide + 2 * i);
    widen_pair(low, type, wide + 8);
    widen_pair(high, type, wide + 10);
    emulated_multiply_add(sums, wide);
}

INLINE void load_transposed(u32 (&matrices)[4], Address row) {
    emulated_load_transposed(matrices, row);
}

template <int BYTES> INLINE void copy_later(Address to, const void* from, bool is_there) {
    emulated_copy_later(to, from, BYTES, is_there);
}

INLINE void end_copies() { emulated_end_copies(); }
template <int LATER> INLINE void wait_for_copies() { emulated_wait_for_copies(LATER); }
#endif
