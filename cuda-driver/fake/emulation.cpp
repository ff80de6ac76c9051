// Runs kernels on the CPU.
//
// Threads of a block are fibers, which run until they wait for each other; blocks run one after the
// other. The order of both is a function of the seed, so that what depends on an order differs between
// seeds. For the thread sanitizer, threads of the card are threads that know of each other by barriers
// alone: this file is compiled without it, so that only the kernel's own accesses count.
//
// A kernel that fails says why on stderr, and the launch ends where it is.

#include "emulation.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#if defined(WITH_ASAN) || defined(WITH_TSAN) || !defined(__x86_64__)
#define PORTABLE_FIBERS
#include <ucontext.h>
#endif

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

#define INLINED __attribute__((always_inline)) static inline

static const unsigned WARP_LANES = 32, THREADS_MAX = 1024, COPIES_MAX = 256, NOBODY = ~0u;

enum State : unsigned char { READY, AT_BARRIER, AT_WARP_BARRIER, AT_EXCHANGE, DONE };

// Where somebody who waits goes on.
struct Place {
#ifdef PORTABLE_FIBERS
    ucontext_t context;
    void* stack;
    const void* bottom;
    size_t bytes;
    void* fake_stack;
    void* sanitized;
#else
    // Of its stack; none before it has begun.
    void* top;
#endif
};

struct Thread {
    Place place;
    // Two, because a lane may be one exchange ahead of another.
    EmulatedWords given[2];
    unsigned exchanges;
    // Of its copies, which lie in a ring, how many it began and did; how many groups of the others have
    // ended.
    EmulatedCopy copies[COPIES_MAX];
    unsigned begun, copied, groups;
};

struct Failed {};

static Thread threads[THREADS_MAX];
// One more, which is never READY.
static State states[THREADS_MAX + 1];
// Lanes of a warp that wait for its others.
static unsigned arrived[THREADS_MAX / WARP_LANES];
static Place home;
static unsigned block_threads, running, done;
static bool is_in_fiber, has_failed;
// Of threads, in this round; and how many of them had their turn.
static std::vector<unsigned> order;
static unsigned turns;
static uint64_t order_seed, order_state;

static const Kernel* kernel;
static const uint64_t* arguments;
static char* dynamic_shared;
static unsigned shared_bytes;
// Values of a type, by the places that ask for them, one after the other with gaps between.
static const size_t STATIC_BYTES = 48 * 1024, STATIC_MAX = 16, GAP_BYTES = 64;
static char* static_shared;
static size_t static_bytes;
static void* statics[STATIC_MAX];
// Of each block: its barrier's, then its warps'.
static uint64_t* block_marks;
static char launch_mark, end_mark;

static void run_threads();

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

// ---- Fibers ----

#ifdef PORTABLE_FIBERS

static const size_t STACK_BYTES = 256 * 1024;

static void arrive(Place& here) {
#ifdef WITH_ASAN
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &bytes);
    // The first to arrive comes from there.
    if (!home.bottom) home.bottom = bottom, home.bytes = bytes;
#endif
    (void)here;
}

static void go(Place& from, Place& to, bool is_over) {
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(is_over ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
#ifdef WITH_TSAN
    __tsan_switch_to_fiber(to.sanitized, NO_SYNC);
#endif
    (void)is_over;
    swapcontext(&from.context, &to.context);
    arrive(from);
}

static void begin_fiber() {
    arrive(threads[running].place);
    run_threads();
}

// Each thread has a stack and a fiber of its own in each block, or the thread sanitizer would take one
// block's accesses for another's.
static void prepare_threads() {
    for (unsigned i = 0; i < block_threads; i++) {
        Thread& thread = threads[i];
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) emulated_failure("no memory for a stack");
        thread.place.stack = stack;
        thread.place.bottom = stack, thread.place.bytes = STACK_BYTES;
        thread.place.fake_stack = nullptr;
#ifdef WITH_TSAN
        thread.place.sanitized = __tsan_create_fiber(0);
#endif
        getcontext(&thread.place.context);
        thread.place.context.uc_stack.ss_sp = stack;
        thread.place.context.uc_stack.ss_size = STACK_BYTES;
        thread.place.context.uc_link = nullptr;
        makecontext(&thread.place.context, begin_fiber, 0);
    }
}

static void dispose_threads() {
    for (unsigned i = 0; i < block_threads; i++) {
        munmap(threads[i].place.stack, STACK_BYTES);
#ifdef WITH_TSAN
        __tsan_destroy_fiber(threads[i].place.sanitized);
#endif
    }
}

static void check_stacks() {}
static bool takes_over(unsigned) { return false; }
static void begin(Thread&) {}

#else

// A thread that begins takes the stack of one that has ended, so that a kernel whose threads do not
// wait is a loop. Stacks are apart by a number of cache lines that is odd: else the same depth of all
// stacks would share a few lines of the cache.
static const size_t STACK_BYTES = 64 * 1024, STACK_STRIDE = STACK_BYTES + 17 * 64;
static const uint64_t CANARY = 0x5ca1ab1e0ddba11;

struct Stacks {
    char* memory = nullptr;
    // In this block, and in any so far.
    unsigned used = 0, used_ever = 0;
    // Those of threads that have ended, the last one first: it is in the cache.
    unsigned free = 0;
    char* tops[THREADS_MAX];

    // When a module is unloaded, its stacks go as well.
    ~Stacks() {
        if (memory) munmap(memory, THREADS_MAX * STACK_STRIDE);
    }

    void begin_block() { used = free = 0; }

    // Its end, which is where it begins to be used.
    char* take() {
        if (free > 0) return tops[--free];
        char* stack = memory + used * STACK_STRIDE;
        if (used++ == used_ever) {
            used_ever++;
            memcpy(stack, &CANARY, sizeof CANARY);
        }
        return stack + STACK_BYTES;
    }

    // The one that this runs on. It stays as it is until somebody begins, who does not yet.
    void end_here() {
        size_t number = ((char*)__builtin_frame_address(0) - memory) / STACK_STRIDE;
        tops[free++] = memory + number * STACK_STRIDE + STACK_BYTES;
    }
};

static Stacks stacks;

// Keeps what a function must keep (System V ABI), and goes on where the other stack left off. Nobody
// here changes how floats are rounded.
__attribute__((naked, noipa)) static void switch_stacks(void**, void*) {
    asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

static void go(Place& from, Place& to, bool) { switch_stacks(&from.top, to.top); }

static void prepare_threads() {
    if (!stacks.memory) {
        void* memory = mmap(nullptr, THREADS_MAX * STACK_STRIDE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) emulated_failure("no memory for stacks");
        stacks.memory = (char*)memory;
    }
    stacks.begin_block();
    for (unsigned i = 0; i < block_threads; i++) threads[i].place.top = nullptr;
}

static void dispose_threads() {}

static void check_stacks() {
    for (unsigned i = 0; i < stacks.used_ever; i++) {
        if (!memcmp(stacks.memory + i * STACK_STRIDE, &CANARY, sizeof CANARY)) continue;
        emulated_failure("it used more stack than a thread has");
    }
}

// Whether this thread goes on in the stack of the one that ends: it has not begun.
static bool takes_over(unsigned thread) {
    if (thread != NOBODY && !threads[thread].place.top) return true;
    stacks.end_here();
    return false;
}

INLINED void begin(Thread& thread) {
    if (thread.place.top) return;
    // As if it had been called by nobody: a return address, and the registers that are taken back.
    void** top = (void**)stacks.take() - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = (void*)run_threads;
    thread.place.top = top;
}

#endif

// ---- Threads of a block ----
//
// Threads themselves decide here who comes next, by no function of libc: the thread sanitizer would
// watch what such a function accesses.

void emulated_failure(const char* what) {
    fprintf(stderr, "%s: thread %u of block (%u, %u, %u): %s\n", kernel ? kernel->name : "emulation",
            running, blockIdx.x, blockIdx.y, blockIdx.z, what);
    fflush(stderr);
    if (!is_in_fiber) throw Failed();
    has_failed = true;
    is_in_fiber = false;
    go(threads[running].place, home, true);
    __builtin_unreachable();
}

static unsigned random_below(unsigned count) {
    order_state = order_state * 6364136223846793005u + 1442695040888963407u;
    return (order_state >> 33) % count;
}

// 0: in order; 1: backwards; else shuffled.
static void begin_order(std::vector<unsigned>& order, unsigned count) {
    order.resize(count);
    for (unsigned i = 0; i < count; i++) order[i] = order_seed == 1 ? count - 1 - i : i;
}

static void shuffle(std::vector<unsigned>& order) {
    for (size_t i = order.size(); order_seed > 1 && i > 1; i--) {
        std::swap(order[i - 1], order[random_below(i)]);
    }
}

// Lets a warp go on when its last lane arrives where the others are. In order, it goes on until it can
// no more, since its stacks are in the cache.
INLINED bool arrives_last(State state) {
    unsigned warp = running / WARP_LANES, first = warp * WARP_LANES;
    if (++arrived[warp] < WARP_LANES) return false;
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        if (states[first + lane] != state) return false;
    }
    for (unsigned lane = 0; lane < WARP_LANES; lane++) states[first + lane] = READY;
    arrived[warp] = 0;
    return true;
}

static bool is_any_ready() {
    for (unsigned i = 0; i < block_threads; i++) {
        if (states[i] == READY) return true;
    }
    return false;
}

static bool release_barrier() {
    for (unsigned i = 0; i < block_threads; i++) {
        if (states[i] != AT_BARRIER && states[i] != DONE) return false;
    }
    for (unsigned i = 0; i < block_threads; i++) {
        if (states[i] == AT_BARRIER) states[i] = READY;
    }
    return true;
}

// Whose turn it is; nobody's when all are done.
__attribute__((noinline)) static unsigned next_of_others() {
    if (order_seed == 0) turns = running + 1;
    for (;;) {
        while (turns < block_threads) {
            unsigned thread = order[turns++];
            if (states[thread] == READY) return thread;
        }
        if (done == block_threads) return NOBODY;
        if (!is_any_ready() && !release_barrier()) {
            emulated_failure("threads wait for others that do not come");
        }
        turns = 0;
        shuffle(order);
    }
}

INLINED unsigned next_thread() {
    bool is_next = order_seed == 0 && states[running + 1] == READY;
    return is_next ? running + 1 : next_of_others();
}

INLINED void switch_to(unsigned next, bool is_over) {
    Place& here = threads[running].place;
    if (next == NOBODY) {
        is_in_fiber = false;
        go(here, home, is_over);
    } else {
        begin(threads[next]);
        running = threadIdx.x = next;
        go(here, threads[next].place, is_over);
    }
}

INLINED void leave(State state) {
    states[running] = state;
    bool is_last = state != AT_BARRIER && arrives_last(state);
    unsigned next = is_last && order_seed == 0 ? running / WARP_LANES * WARP_LANES : next_thread();
    if (next != running) switch_to(next, false);
}

// What a fiber does: its thread, and then others that have not begun.
static void run_threads() {
    for (;;) {
        acquire(&launch_mark);
        kernel->call(kernel->function, arguments);
        release(&end_mark);
        states[running] = DONE;
        done++;
        unsigned next = next_thread();
        if (!takes_over(next)) switch_to(next, true);
        running = threadIdx.x = next;
    }
}

void emulated_barrier() {
    release(block_marks);
    leave(AT_BARRIER);
    acquire(block_marks);
}

void emulated_warp_barrier() {
    void* mark = &block_marks[1 + running / WARP_LANES];
    release(mark);
    leave(AT_WARP_BARRIER);
    acquire(mark);
}

INLINED unsigned give(const uint64_t* words, unsigned count) {
    Thread& thread = threads[running];
    unsigned turn = thread.exchanges++ % 2;
    for (unsigned i = 0; i < count; i++) thread.given[turn][i] = words[i];
    leave(AT_EXCHANGE);
    return turn;
}

unsigned emulated_give(const uint64_t* words, unsigned count) { return give(words, count); }

const EmulatedWords& emulated_given(unsigned lane, unsigned turn) {
    return threads[running / WARP_LANES * WARP_LANES + lane].given[turn];
}

uint64_t emulated_exchange(uint64_t bits, unsigned from) {
    unsigned turn = give(&bits, 1);
    return emulated_given(from, turn)[0];
}

unsigned emulated_ballot(bool is_true) {
    uint64_t bit = is_true;
    unsigned turn = give(&bit, 1), ballot = 0;
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        ballot |= (unsigned)emulated_given(lane, turn)[0] << lane;
    }
    return ballot;
}

// ---- Copies that are under way ----

void emulated_put_off(EmulatedCopy copy) {
    Thread& thread = threads[running];
    if (thread.begun - thread.copied == COPIES_MAX) emulated_failure("it waits for no copies");
    thread.groups += copy.bytes == 0;
    thread.copies[thread.begun++ % COPIES_MAX] = copy;
}

// The next copy of a group that is waited for; what no group has is not.
bool emulated_is_due(EmulatedCopy* copy, unsigned later_groups) {
    Thread& thread = threads[running];
    if (thread.groups <= later_groups) return false;
    *copy = thread.copies[thread.copied++ % COPIES_MAX];
    thread.groups -= copy->bytes == 0;
    return true;
}

// ---- Shared memory ----

// Not initialised on a card either: NaN is noticed. By nobody's thread, so that it is not an access of
// some thread.
static void* not_initialised(void* memory, size_t bytes) { return memset(memory, 0xff, bytes); }

#ifdef PORTABLE_FIBERS

static std::vector<void*> allocations;

// Of each block anew, so that a sanitizer sees its end and does not take one block's for another's.
static char* allocate_shared(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes)) emulated_failure("no shared memory");
    allocations.push_back(memory);
    return (char*)not_initialised(memory, bytes);
}

static void prepare_shared() {
    dynamic_shared = allocate_shared(shared_bytes);
    static_shared = allocate_shared(STATIC_BYTES);
    block_marks = (uint64_t*)allocate_shared((1 + block_threads / WARP_LANES) * sizeof(uint64_t));
#ifdef WITH_ASAN
    __asan_poison_memory_region(static_shared, STATIC_BYTES);
#endif
}

static void dispose_shared() {
    for (void* memory : allocations) free(memory);
    allocations.clear();
}

#else

static std::vector<uint4> shared_memory;

static void prepare_shared() {
    shared_memory.resize((STATIC_BYTES + shared_bytes + 15) / 16);
    static_shared = (char*)shared_memory.data();
    dynamic_shared = static_shared + STATIC_BYTES;
    not_initialised(static_shared, static_bytes);
    not_initialised(dynamic_shared, shared_bytes);
}

static void dispose_shared() {}

#endif

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

// ---- Launches ----

static void run_block() {
    prepare_shared();
    static_bytes = 0;
    memset(statics, 0, sizeof statics);
    prepare_threads();
    memset(states, READY, block_threads);
    memset(arrived, 0, sizeof arrived);
    for (unsigned i = 0; i < block_threads; i++) {
        threads[i].exchanges = threads[i].begun = threads[i].copied = threads[i].groups = 0;
    }
    states[block_threads] = DONE;
    done = turns = 0;
    running = NOBODY;
    shuffle(order);
    unsigned first = next_thread();
    begin(threads[first]);
    running = threadIdx.x = first;
    is_in_fiber = true;
    go(home, threads[first].place, false);
    dispose_threads();
    if (has_failed) throw Failed();
}

static void run_blocks() {
    if (block_threads == 0 || block_threads > THREADS_MAX) emulated_failure("a block has 1 to 1024 threads");
    if (block_threads % WARP_LANES != 0) emulated_failure("a block is not of whole warps");
    begin_order(order, block_threads);
    std::vector<unsigned> blocks;
    begin_order(blocks, gridDim.x * gridDim.y * gridDim.z);
    shuffle(blocks);
    for (unsigned block : blocks) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        run_block();
    }
    check_stacks();
}

static const Kernel* find(const char* name) {
    for (int i = 0; i < emulated_kernel_count; i++) {
        if (!strcmp(name, emulated_kernels[i].name)) return &emulated_kernels[i];
    }
    return nullptr;
}

const char* emulated_parameters(const char* name) {
    const Kernel* found = find(name);
    return found ? found->parameters : nullptr;
}

int emulated_run(const char* name, const unsigned grid[3], unsigned threads, unsigned bytes,
                 const uint64_t* values, uint64_t seed) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> alone(mutex);
#ifdef WITH_TSAN
    home.sanitized = __tsan_get_current_fiber();
#endif
    kernel = find(name);
    gridDim = {grid[0], grid[1], grid[2]}, blockIdx = {}, threadIdx = {};
    block_threads = threads, shared_bytes = bytes, arguments = values;
    order_seed = order_state = seed;
    running = 0;
    has_failed = false;
    int result = 0;
    release(&launch_mark);
    try {
        if (!kernel) emulated_failure("there is no such kernel");
        run_blocks();
    } catch (const Failed&) {
        result = 1;
    }
    acquire(&end_mark);
    dispose_shared();
    return result;
}
