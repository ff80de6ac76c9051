// Runs kernels on the CPU: reads memory and launches from stdin, writes the memory to stdout.
//
// Threads of a block are fibers, which run until they wait for each other; blocks run one after the
// other. The order of both is a function of the seed, so that what depends on an order differs between
// seeds. Each piece of memory is an allocation of its own, for the address sanitizer. For the thread
// sanitizer, threads of the card are threads that know of each other by barriers alone: this file is
// compiled without it, so that only the kernel's own accesses count.

#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#ifdef WITH_ASAN
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
extern "C" void __asan_poison_memory_region(const volatile void* from, size_t bytes);
extern "C" void __asan_unpoison_memory_region(const volatile void* from, size_t bytes);
#endif
#ifdef WITH_TSAN
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void* fiber);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* at);
extern "C" void __tsan_release(void* at);
static const unsigned NO_SYNC = 1;
#endif

Index threadIdx, blockIdx, gridDim;

static const size_t STACK_BYTES = 256 * 1024;
static const unsigned WARP_LANES = 32;

enum State { READY, AT_BARRIER, AT_WARP_BARRIER, AT_EXCHANGE, DONE };

struct Fiber {
    ucontext_t context;
    State state;
    void* stack;
    void* fake_stack;
    void* sanitized;
    // Two, because a lane may be one exchange ahead of another.
    uint64_t given[2];
    unsigned exchanges;
};

static std::vector<Fiber> fibers;
static unsigned running;
static ucontext_t scheduler;
static void* scheduler_sanitized;
static const void* scheduler_stack;
static size_t scheduler_stack_bytes;

static const Kernel* kernel;
static std::vector<uint64_t> arguments;
static unsigned block_threads;
static unsigned shared_bytes;
static std::vector<void*> allocations;
static void* dynamic_shared;
// Values of a type, by the places that ask for them, one after the other with gaps between.
static const size_t STATIC_BYTES = 48 * 1024, STATIC_MAX = 16, GAP_BYTES = 64;
static char* static_shared;
static size_t static_bytes;
static void* statics[STATIC_MAX];
// Of each block: its barrier's, then its warps'.
static uint64_t* block_marks;
static char launch_mark, end_mark;
static uint64_t order_state;

void emulated_failure(const char* what) {
    fprintf(stderr, "%s: thread %u of block (%u, %u, %u): %s\n", kernel ? kernel->name : "emulation",
            running, blockIdx.x, blockIdx.y, blockIdx.z, what);
    fflush(stderr);
    _Exit(3);
}

static void acquire(void* mark) {
#ifdef WITH_TSAN
    __tsan_acquire(mark);
#endif
    (void)mark;
}

static void release(void* mark) {
#ifdef WITH_TSAN
    __tsan_release(mark);
#endif
    (void)mark;
}

static void enter_fiber() {
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(fibers[running].fake_stack, &scheduler_stack,
                                    &scheduler_stack_bytes);
#endif
    threadIdx = {running, 0, 0};
}

static void leave_fiber(State state) {
    Fiber& fiber = fibers[running];
    fiber.state = state;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(state == DONE ? nullptr : &fiber.fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
#ifdef WITH_TSAN
    __tsan_switch_to_fiber(scheduler_sanitized, NO_SYNC);
#endif
    swapcontext(&fiber.context, &scheduler);
    enter_fiber();
}

static void run_thread() {
    enter_fiber();
    acquire(&launch_mark);
    kernel->call(kernel->function, arguments.data());
    release(&end_mark);
    leave_fiber(DONE);
}

static void switch_to(unsigned thread) {
    running = thread;
    Fiber& fiber = fibers[thread];
#ifdef WITH_ASAN
    void* save;
    __sanitizer_start_switch_fiber(&save, fiber.stack, STACK_BYTES);
#endif
#ifdef WITH_TSAN
    __tsan_switch_to_fiber(fiber.sanitized, NO_SYNC);
#endif
    swapcontext(&scheduler, &fiber.context);
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(save, nullptr, nullptr);
#endif
}

void emulated_barrier() {
    release(block_marks);
    leave_fiber(AT_BARRIER);
    acquire(block_marks);
}

void emulated_warp_barrier() {
    void* mark = &block_marks[1 + running / WARP_LANES];
    release(mark);
    leave_fiber(AT_WARP_BARRIER);
    acquire(mark);
}

unsigned emulated_lane() { return running % WARP_LANES; }

static unsigned give(uint64_t bits) {
    Fiber& fiber = fibers[running];
    unsigned turn = fiber.exchanges++ % 2;
    fiber.given[turn] = bits;
    leave_fiber(AT_EXCHANGE);
    return turn;
}

uint64_t emulated_exchange(uint64_t bits, unsigned from) {
    unsigned turn = give(bits);
    return fibers[running / WARP_LANES * WARP_LANES + from].given[turn];
}

unsigned emulated_ballot(bool is_true) {
    unsigned turn = give(is_true), ballot = 0, first = running / WARP_LANES * WARP_LANES;
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        ballot |= (unsigned)fibers[first + lane].given[turn] << lane;
    }
    return ballot;
}

// Not initialised on a card either: NaN is noticed. By the scheduler alone, so that it is not an access
// of some thread.
static void* allocate_shared(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes)) emulated_failure("no shared memory");
    memset(memory, 0xff, bytes);
    allocations.push_back(memory);
    return memory;
}

void* emulated_dynamic_shared() { return dynamic_shared; }

void* emulated_static_shared(int id, size_t bytes) {
    if (id < 0 || (size_t)id >= STATIC_MAX) emulated_failure("too many values of static shared memory");
    if (statics[id]) return statics[id];
    if (static_bytes + bytes > STATIC_BYTES) emulated_failure("too much static shared memory");
    char* memory = static_shared + static_bytes;
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(memory, bytes);
#endif
    static_bytes += (bytes + 15) / 16 * 16 + GAP_BYTES;
    return statics[id] = memory;
}

static unsigned random_below(unsigned count) {
    order_state = order_state * 6364136223846793005u + 1442695040888963407u;
    return (order_state >> 33) % count;
}

// 0: in order; 1: backwards; else shuffled.
static std::vector<unsigned> order_of(unsigned count, uint64_t seed) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) order[i] = seed == 1 ? count - 1 - i : i;
    for (unsigned i = count; seed > 1 && i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
    return order;
}

static bool release_warps() {
    bool any = false;
    for (unsigned first = 0; first < block_threads; first += WARP_LANES) {
        State state = fibers[first].state;
        if (state != AT_WARP_BARRIER && state != AT_EXCHANGE) continue;
        bool all = true;
        for (unsigned lane = 1; lane < WARP_LANES; lane++) {
            all = all && fibers[first + lane].state == state;
        }
        for (unsigned lane = 0; all && lane < WARP_LANES; lane++) fibers[first + lane].state = READY;
        any = any || all;
    }
    return any;
}

static bool release_barrier() {
    for (Fiber& fiber : fibers) {
        if (fiber.state != AT_BARRIER && fiber.state != DONE) return false;
    }
    for (Fiber& fiber : fibers) {
        if (fiber.state == AT_BARRIER) fiber.state = READY;
    }
    return true;
}

static void start_block() {
    dynamic_shared = allocate_shared(shared_bytes);
    static_shared = (char*)allocate_shared(STATIC_BYTES);
    static_bytes = 0;
    memset(statics, 0, sizeof statics);
#ifdef WITH_ASAN
    __asan_poison_memory_region(static_shared, STATIC_BYTES);
#endif
    block_marks = (uint64_t*)allocate_shared((1 + block_threads / WARP_LANES) * sizeof(uint64_t));
    for (Fiber& fiber : fibers) {
        fiber.state = READY;
        fiber.exchanges = 0;
        fiber.fake_stack = nullptr;
        fiber.stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fiber.stack == MAP_FAILED) emulated_failure("no memory for a stack");
#ifdef WITH_TSAN
        fiber.sanitized = __tsan_create_fiber(0);
#endif
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_thread, 0);
    }
}

static void end_block() {
    for (Fiber& fiber : fibers) {
        munmap(fiber.stack, STACK_BYTES);
#ifdef WITH_TSAN
        __tsan_destroy_fiber(fiber.sanitized);
#endif
    }
}

static void run_block(uint64_t seed) {
    start_block();
    for (bool is_done = false; !is_done;) {
        for (unsigned thread : order_of(block_threads, seed)) {
            if (fibers[thread].state == READY) switch_to(thread);
        }
        is_done = true;
        for (Fiber& fiber : fibers) is_done = is_done && fiber.state == DONE;
        if (!is_done && !release_warps() && !release_barrier()) {
            emulated_failure("threads wait for others that do not come");
        }
    }
    end_block();
}

static void read_exactly(void* to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) emulated_failure("the input ends early");
}

template <class T> T read_number() {
    T number;
    read_exactly(&number, sizeof number);
    return number;
}

static void launch(uint64_t seed, const std::vector<void*>& buffers) {
    std::string name(read_number<uint32_t>(), ' '), kinds;
    read_exactly(&name[0], name.size());
    gridDim = read_number<Index>();
    block_threads = read_number<uint32_t>();
    shared_bytes = read_number<uint32_t>();
    arguments.clear();
    for (uint32_t count = read_number<uint32_t>(); count > 0; count--) {
        kinds += read_number<char>();
        uint64_t value = read_number<uint64_t>();
        // A pointer is a buffer's number, from 1 on, above an offset of 40 bits.
        bool is_pointer = kinds.back() == 'p' && value != 0;
        if (is_pointer) {
            value = (uint64_t)buffers.at((value >> 40) - 1) + (value & ((1ull << 40) - 1));
        }
        arguments.push_back(value);
    }
    kernel = nullptr;
    for (int i = 0; i < emulated_kernel_count; i++) {
        if (name == emulated_kernels[i].name) kernel = &emulated_kernels[i];
    }
    if (!kernel) emulated_failure(("no kernel " + name).c_str());
    if (kinds != kernel->parameters) {
        emulated_failure(("takes " + std::string(kernel->parameters) + ", is given " + kinds).c_str());
    }
    if (block_threads % WARP_LANES != 0) emulated_failure("a block is not of whole warps");
    fibers.assign(block_threads, Fiber{});
    release(&launch_mark);
    for (unsigned block : order_of(gridDim.x * gridDim.y * gridDim.z, seed)) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        run_block(seed);
    }
    acquire(&end_mark);
    for (void* memory : allocations) free(memory);
    allocations.clear();
}

int main() {
#ifdef WITH_TSAN
    scheduler_sanitized = __tsan_get_current_fiber();
#endif
    uint64_t seed = read_number<uint64_t>();
    order_state = seed;
    std::vector<void*> buffers;
    std::vector<uint64_t> sizes;
    for (uint32_t count = read_number<uint32_t>(); count > 0; count--) {
        sizes.push_back(read_number<uint64_t>());
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, sizes.back())) emulated_failure("no memory for a buffer");
        buffers.push_back(memory);
        read_exactly(memory, sizes.back());
    }
    for (uint32_t count = read_number<uint32_t>(); count > 0; count--) launch(seed, buffers);
    for (size_t i = 0; i < buffers.size(); i++) {
        fwrite(buffers[i], 1, sizes[i], stdout);
        free(buffers[i]);
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
