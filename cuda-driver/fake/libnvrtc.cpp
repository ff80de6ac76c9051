// A run-time compiler for tests: the functions of libnvrtc that this crate's users call. It makes a
// shared library for the CPU of a kernel's source (`emulation.h`), and its "cubin" is that library's
// path, which the driver for tests reads.
//
// Modules are kept beside this library, in `modules`, by the hash of all that goes into them: several
// processes and threads may want the same one, and the first makes it. FAKE_NVRTC_FAIL=1 in the
// environment fails each compilation.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define OFFERED extern "C" __attribute__((visibility("default")))

extern char** environ;

typedef std::vector<std::string> Words;

// As in nvrtc.h.
enum Result {
    SUCCESS = 0,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
    INTERNAL_ERROR = 11,
};

struct Program {
    std::string text, log, cubin, ptx;
    bool is_compiled = false;
};

// Why there is no module.
struct Failure {
    Result result;
    std::string log;
};

static const int ARCHITECTURES[] = {80, 90, 100};
static const Words COMPILER = {
    "g++", "-std=c++17", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-O2", "-fPIC",
    "-fvisibility=hidden",
};
static const char MARK[] = "emulated_kernel_follows";

// ---- Files and processes ----

static std::string read(const std::string& path) {
    FILE* file = fopen(path.c_str(), "re");
    if (!file) throw Failure{INTERNAL_ERROR, path + " cannot be read"};
    std::string text;
    char piece[1 << 16];
    while (size_t bytes = fread(piece, 1, sizeof piece, file)) text.append(piece, bytes);
    fclose(file);
    return text;
}

static void write(const std::string& path, const std::string& text) {
    FILE* file = fopen(path.c_str(), "we");
    size_t written = file ? fwrite(text.data(), 1, text.size(), file) : 0;
    if (!file || (fclose(file) != 0) | (written != text.size())) {
        throw Failure{INTERNAL_ERROR, path + " cannot be written"};
    }
}

static bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Where this library lies.
static std::string modules() {
    Dl_info info;
    if (!dladdr((void*)modules, &info)) throw Failure{INTERNAL_ERROR, "this library has no path"};
    char* path = realpath(info.dli_fname, nullptr);
    if (!path) throw Failure{INTERNAL_ERROR, "this library's file has gone"};
    std::string folder = path;
    free(path);
    folder.replace(folder.rfind('/'), std::string::npos, "/modules");
    mkdir(folder.c_str(), 0777);
    return folder;
}

// A folder to work in, which goes with all that is in it.
struct Workshop {
    std::string path;

    explicit Workshop(const std::string& modules) {
        static std::atomic<unsigned> made{0};
        path = modules + "/build-" + std::to_string(getpid()) + "-" + std::to_string(made++);
        if (mkdir(path.c_str(), 0777)) throw Failure{INTERNAL_ERROR, path + " cannot be made"};
    }
    ~Workshop() {
        for (const char* file : FILES) unlink((path + file).c_str());
        rmdir(path.c_str());
    }

    static constexpr const char* FILES[] = {"/kernels.cu", "/table.cu", "/preprocessed", "/built", "/log"};
};

// Held by one of all threads and processes.
struct Lock {
    int file;

    explicit Lock(const std::string& path) : file(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
        if (file < 0 || flock(file, LOCK_EX)) throw Failure{INTERNAL_ERROR, path + " cannot be locked"};
    }
    ~Lock() { close(file); }
};

static Words operator+(Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

static void run(const Workshop& workshop, const Words& command) {
    std::vector<char*> words;
    for (const std::string& word : command) words.push_back((char*)word.c_str());
    words.push_back(nullptr);
    std::string log = workshop.path + "/log";
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0666);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    pid_t process;
    int failed = posix_spawnp(&process, words[0], &files, nullptr, words.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    if (failed) throw Failure{INTERNAL_ERROR, command[0] + " cannot be run: install it"};
    int status;
    while (waitpid(process, &status, 0) < 0) {
        if (errno != EINTR) throw Failure{INTERNAL_ERROR, command[0] + " has gone"};
    }
    if (status) throw Failure{COMPILATION, read(log)};
}

static std::string hash_of(const Words& parts) {
    // FNV-1a, twice.
    uint64_t hashes[2] = {0xcbf29ce484222325, 0x84222325cbf29ce4};
    for (const std::string& part : parts) {
        for (uint64_t& hash : hashes) {
            for (unsigned char byte : part) hash = (hash ^ byte) * 0x100000001b3;
            hash = (hash ^ part.size()) * 0x100000001b3;
        }
    }
    char text[33];
    snprintf(text, sizeof text, "%016llx%016llx", (unsigned long long)hashes[0], (unsigned long long)hashes[1]);
    return text;
}

// The file that is made, unless it is there, by `make` at a path that it is given.
template <class Make>
static std::string made_once(const std::string& path, const std::string& modules, Make make) {
    if (exists(path)) return path;
    Lock lock(path + ".lock");
    if (exists(path)) return path;
    Workshop workshop(modules);
    make(workshop);
    std::string built = workshop.path + "/built";
    if (rename(built.c_str(), path.c_str())) throw Failure{INTERNAL_ERROR, path + " cannot be made"};
    return path;
}

// ---- Compilation ----

// Macros may make kernels: looks for the mark that a preprocessor left in place of __global__.
static Words kernels_of(const std::string& preprocessed) {
    Words kernels;
    auto is_of_name = [](char c) { return isalnum((unsigned char)c) || c == '_'; };
    for (size_t at = 0; (at = preprocessed.find(MARK, at)) != std::string::npos;) {
        at += strlen(MARK);
        size_t end = preprocessed.find('(', at);
        if (end == std::string::npos) break;
        while (end > at && !is_of_name(preprocessed[end - 1])) end--;
        size_t start = end;
        while (start > at && is_of_name(preprocessed[start - 1])) start--;
        kernels.push_back(preprocessed.substr(start, end - start));
    }
    return kernels;
}

static std::string table_of(const Words& kernels) {
    std::string table = "const Kernel emulated_kernels[] = {\n";
    for (const std::string& kernel : kernels) table += "emulated_kernel(\"" + kernel + "\", " + kernel + "),\n";
    if (kernels.empty()) table += "{}\n";
    return table + "};\nconst int emulated_kernel_count = " + std::to_string(kernels.size()) + ";\n";
}

static std::string module_of(const std::string& text, const Words& defines) {
    std::string sources = FAKE_SOURCES, header = sources + "/emulation.h", runtime = sources + "/emulation.cpp";
    std::string folder = modules(), runtime_hash = hash_of(COMPILER + Words{read(header), read(runtime)});
    std::string object = made_once(folder + "/" + runtime_hash + ".o", folder, [&](const Workshop& workshop) {
        run(workshop, COMPILER + Words{"-c", runtime, "-o", workshop.path + "/built"});
    });
    std::string hash = hash_of(COMPILER + defines + Words{text, runtime_hash});
    return made_once(folder + "/" + hash + ".so", folder, [&](const Workshop& workshop) {
        std::string source = workshop.path + "/kernels.cu", preprocessed = workshop.path + "/preprocessed";
        std::string table = workshop.path + "/table.cu";
        write(source, text);
        Words compiler = COMPILER + defines + Words{"-include", header, "-x", "c++"};
        run(workshop, compiler + Words{"-E", "-P", std::string("-D__global__=") + MARK, source, "-o", preprocessed});
        write(table, "#include \"kernels.cu\"\n" + table_of(kernels_of(read(preprocessed))));
        run(workshop, compiler + Words{"-shared", table, "-x", "none", object, "-o", workshop.path + "/built"});
    });
}

// What options say: names that are defined, as g++ takes them, and whether machine code is wanted.
struct Options {
    Words defines;
    bool is_machine_code = false;
};

static bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

static Options options_of(int count, const char* const* texts) {
    static const char* const IGNORED[] = {
        "--std=", "--device-as-default-execution-space", "--fmad=", "--ftz=", "--prec-div=", "--prec-sqrt=",
        "--ptxas-options=", "--diag-suppress=", "--use_fast_math", "--maxrregcount=", "--restrict",
        "--extra-device-vectorization", "--generate-line-info", "--disable-warnings",
    };
    Options options;
    for (int i = 0; i < count; i++) {
        std::string text = texts[i];
        bool is_known = false;
        for (const char* ignored : IGNORED) is_known |= begins(text, ignored);
        if (begins(text, "--define-macro=")) {
            options.defines.push_back("-D" + text.substr(strlen("--define-macro=")));
            is_known = true;
        }
        for (int architecture : ARCHITECTURES) {
            std::string number = std::to_string(architecture);
            bool is_machine_code = text == "--gpu-architecture=sm_" + number;
            if (!is_machine_code && text != "--gpu-architecture=compute_" + number) continue;
            options.is_machine_code = is_machine_code;
            is_known = true;
        }
        if (!is_known) throw Failure{INVALID_OPTION, "fake nvrtc: unknown option " + text};
    }
    return options;
}

static Result compile(Program& program, int count, const char* const* texts) {
    try {
        Options options = options_of(count, texts);
        const char* fails = getenv("FAKE_NVRTC_FAIL");
        if (fails && !strcmp(fails, "1")) throw Failure{COMPILATION, "FAKE_NVRTC_FAIL is set"};
        std::string image = "fake cubin\n" + module_of(program.text, options.defines) + "\n";
        program.ptx = image;
        program.cubin = options.is_machine_code ? image : "";
        program.is_compiled = true;
        return SUCCESS;
    } catch (const Failure& failure) {
        program.log = failure.log;
        return failure.result;
    }
}

// ---- The functions of nvrtc.h ----

OFFERED const char* nvrtcGetErrorString(Result result) {
    switch (result) {
        case SUCCESS: return "NVRTC_SUCCESS";
        case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION: return "NVRTC_ERROR_COMPILATION";
        case INTERNAL_ERROR: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
    return "NVRTC_ERROR unknown";
}

OFFERED Result nvrtcVersion(int* major, int* minor) {
    // Of no compiler that there is: what it makes must not be taken for a card's.
    *major = 13, *minor = 99;
    return SUCCESS;
}

OFFERED Result nvrtcGetNumSupportedArchs(int* count) {
    *count = sizeof ARCHITECTURES / sizeof *ARCHITECTURES;
    return SUCCESS;
}

OFFERED Result nvrtcGetSupportedArchs(int* architectures) {
    memcpy(architectures, ARCHITECTURES, sizeof ARCHITECTURES);
    return SUCCESS;
}

OFFERED Result nvrtcCreateProgram(Program** program, const char* text, const char*, int headers,
                                  const char* const*, const char* const*) {
    if (!program || !text || headers != 0) return INVALID_INPUT;
    *program = new Program;
    (*program)->text = text;
    return SUCCESS;
}

OFFERED Result nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

OFFERED Result nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    return program ? compile(*program, count, options) : INVALID_PROGRAM;
}

// With the zero at its end, except of what there is none of.
static Result size_of(const Program* program, const std::string& output, bool is_there, size_t* bytes) {
    if (!program || !is_there) return INVALID_PROGRAM;
    *bytes = output.size() + 1;
    return SUCCESS;
}

static Result copy(const Program* program, const std::string& output, bool is_there, char* to) {
    if (!program || !is_there) return INVALID_PROGRAM;
    memcpy(to, output.c_str(), output.size() + 1);
    return SUCCESS;
}

OFFERED Result nvrtcGetPTXSize(Program* program, size_t* bytes) {
    return size_of(program, program->ptx, program->is_compiled, bytes);
}

OFFERED Result nvrtcGetPTX(Program* program, char* to) {
    return copy(program, program->ptx, program->is_compiled, to);
}

// Of a virtual architecture there is none, and its size is 0.
OFFERED Result nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    Result result = size_of(program, program->cubin, program->is_compiled, bytes);
    if (result == SUCCESS && program->cubin.empty()) *bytes = 0;
    return result;
}

OFFERED Result nvrtcGetCUBIN(Program* program, char* to) {
    return copy(program, program->cubin, program->is_compiled && !program->cubin.empty(), to);
}

OFFERED Result nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    return size_of(program, program->log, true, bytes);
}

OFFERED Result nvrtcGetProgramLog(Program* program, char* to) { return copy(program, program->log, true, to); }
