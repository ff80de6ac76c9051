// Kernels as a program: reads memory and launches from stdin, writes the memory to stdout. Each piece
// of memory is an allocation of its own, for the address sanitizer.

#include "emulation.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

[[noreturn]] static void fail(const std::string& why) {
    fprintf(stderr, "emulation: %s\n", why.c_str());
    fflush(stderr);
    _Exit(3);
}

static void read_exactly(void* to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) fail("the input ends early");
}

template <class T> T read_number() {
    T number;
    read_exactly(&number, sizeof number);
    return number;
}

static void launch(uint64_t seed, const std::vector<void*>& buffers) {
    std::string name(read_number<uint32_t>(), ' '), kinds;
    read_exactly(&name[0], name.size());
    Index grid = read_number<Index>();
    uint32_t threads = read_number<uint32_t>(), shared_bytes = read_number<uint32_t>();
    std::vector<uint64_t> arguments;
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
    const char* parameters = emulated_parameters(name.c_str());
    if (!parameters) fail("no kernel " + name);
    if (kinds != parameters) fail(name + " takes " + parameters + ", is given " + kinds);
    const unsigned blocks[3] = {grid.x, grid.y, grid.z};
    if (emulated_run(name.c_str(), blocks, threads, shared_bytes, arguments.data(), seed)) _Exit(3);
}

int main() {
    uint64_t seed = read_number<uint64_t>();
    std::vector<void*> buffers;
    std::vector<uint64_t> sizes;
    for (uint32_t count = read_number<uint32_t>(); count > 0; count--) {
        sizes.push_back(read_number<uint64_t>());
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, sizes.back())) fail("no memory for a buffer");
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
