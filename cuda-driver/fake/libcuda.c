// A driver for tests: the functions of libcuda that we use, with host memory as GPUs, and kernels that
// the compiler for tests (`libnvrtc.cpp`) made for the CPU.
//
// It is as lazy and as strict as a driver may be. What is put on a stream happens only when somebody
// waits for it, so that a wait that is missing shows as bytes that are missing. Each pointer of a copy
// must lie in memory that is alive and that the current context reaches, and host memory must be
// pinned; otherwise the "GPU" is lost, as a real one is by an illegal access, and a violation is
// counted. Memory and events of other processes are shared by memory files (/proc/PID/fd/N).
//
// Tests talk to it by the functions `fake_cuda_*` at the end. A process that is a fake's user from its
// start takes how network cards' writes are ordered and can be flushed from FAKE_CUDA_WRITES ("0:1"), and
// faults from FAKE_CUDA_FAIL ("call:code,…"; "call:code:after" of one call only, see
// `fake_cuda_fail`). A function is missing when it is compiled with -Dfunction=another_name.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { DEVICES = 2, ALLOCATIONS_MAX = 4096, FAULTS_MAX = 16, LOG_BYTES = 1 << 20 };
enum { GPU_BYTES = 1 << 30, POISONED_BYTES = 64 << 10, LOWEST_PRIORITY = 0, HIGHEST_PRIORITY = -5 };
enum { PAGE_BYTES = 4096 };
enum { MULTIPROCESSORS = 4, SHARED_BYTES = 48 << 10, SHARED_BYTES_OPT_IN = 232448 };
enum { BLOCK_THREADS_MAX = 1024, GRID_YZ_MAX = 65535, ARGUMENTS_MAX = 32 };

// As in cuda.h.
enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  PEER_ACCESS_UNSUPPORTED = 217,
  INVALID_HANDLE = 400,
  ILLEGAL_STATE = 401,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  PEER_ACCESS_ALREADY_ENABLED = 704,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_ISOLATION = 905,
  CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908,
};
enum attribute {
  MULTIPROCESSOR_COUNT = 16,
  PCI_BUS_ID = 33,
  PCI_DEVICE_ID = 34,
  PCI_DOMAIN_ID = 50,
  CAPABILITY_MAJOR = 75,
  CAPABILITY_MINOR = 76,
  MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
  GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS = 117,
  GPU_DIRECT_RDMA_WRITES_ORDERING = 118,
  DMA_BUF_SUPPORTED = 124,
};
enum pointer_attribute { CONTEXT_OF = 1, MEMORY_TYPE = 2, SYNC_MEMOPS = 6, IS_MANAGED = 8, DEVICE_ORDINAL = 9 };
enum { MEMORYTYPE_HOST = 1, MEMORYTYPE_DEVICE = 2, DMA_BUF_FD = 1, TO_OWNER = 100, NO_DEVICE_ORDINAL = -2 };
enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };
enum mode { CAPTURE_GLOBAL, CAPTURE_THREAD_LOCAL, CAPTURE_RELAXED };

typedef uint64_t pointer;

struct context {
  int device, retained;
  bool peers[DEVICES];
};

enum kind { ON_DEVICE, IMPORTED, ON_HOST };

struct allocation {
  enum kind kind;
  uint8_t *base;
  size_t bytes;
  int device, file;
};

// Of an event that processes share.
struct shared {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  pid_t owner;
  uint64_t recorded, wanted, done;
  bool ended;
};

struct event {
  unsigned flags;
  struct shared *shared;
  int file;
  bool imported, is_served;
  pthread_t server;
  // Where it was recorded last, and how often.
  struct stream *stream;
  uint64_t recorded, done;
  // Of the capture in which it was recorded last; 0: none.
  uint64_t captured_in;
  struct event *next;
};

// A library that was loaded, and what it offers (`emulation.h`).
struct module {
  struct context *context;
  void *library;
  const char *(*parameters)(const char *kernel);
  int (*run)(const char *kernel, const unsigned grid[3], unsigned threads, unsigned shared_bytes,
             const uint64_t *arguments, uint64_t seed);
  struct function *functions;
  struct module *next;
};

struct function {
  struct module *module;
  char *name;
  const char *parameters;
  unsigned shared_bytes_max;
  struct function *next;
};

// What an operation and its copies in graphs share: a launch of a kernel, or a call.
struct work {
  int users;
  struct function *kernel;
  unsigned grid[3], threads, shared_bytes;
  uint64_t arguments[ARGUMENTS_MAX];
  void (*function)(void *data);
  void *data;
};

enum what { COPY, SET, WRITE, LAUNCH, CALL, RECORD, WAIT };

struct operation {
  enum what what;
  struct context *context;
  uint8_t *to, *from, value;
  size_t bytes;
  struct work *work;
  struct event *event;
  uint64_t number;
  struct operation *next;
};

struct queue {
  struct operation *first, *last;
};

// What is put on a stream meanwhile goes into the queue, which becomes a graph's.
struct capture {
  uint64_t number;
  enum mode mode;
  pthread_t thread;
  bool is_invalid;
  struct queue queue;
};

struct stream {
  // First, because other libraries for tests know of it: puts a call of `function(data)` on the
  // stream. `data` is freed with it.
  void (*call)(struct stream *stream, void (*function)(void *data), void *data);
  int priority;
  struct context *context;
  struct queue queue;
  struct capture *capture;
  struct stream *next;
};

// A graph, or one that is ready to run.
struct graph {
  bool is_executable;
  struct queue queue;
  struct graph *next;
};

struct handle {
  uint64_t magic, instance, file_bytes;
  int32_t pid, file, device;
  uint8_t rest[64 - 3 * 8 - 3 * 4];
};

struct fault {
  char call[64];
  int after, code;
};

enum counted { CONTEXTS, STREAMS, EVENTS, ALLOCATIONS, PINNED, MAPPED, MAPPED_EVENTS, MODULES, GRAPHS, COUNTED };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;
static struct context contexts[DEVICES];
static struct allocation allocations[ALLOCATIONS_MAX];
static int allocations_end;
static struct stream default_streams[DEVICES], *streams;
static struct event *events;
static struct module *modules;
static struct graph *graphs;
static uint64_t captures;
static struct fault faults[FAULTS_MAX];
static int live[COUNTED], violations, lost, peers_allowed = 1;
static bool is_initialized, is_held;
// At first it wants to be asked, by the host, to settle what network cards write.
static int flush_options = 1, writes_order;
static uint64_t instance, device_bytes[DEVICES];
static char *calls;
static size_t logged;
static __thread struct context *current[16];
static __thread int depth;

static const uint64_t MAGIC = 0x66616b6563756461;

static bool is_fatal(int code) {
  return code == 214 || code == 220 || (code >= 700 && code <= 719 && code != 701 && code != 704 &&
                                        code != 705 && code != 708 && code != 711 && code != 712 && code != 713);
}

// The code with which this call is to fail, or 0.
static int fault_of(const char *call) {
  for (int i = 0; i < FAULTS_MAX; i++) {
    struct fault *fault = &faults[i];
    if (!fault->code || strcmp(fault->call, call)) continue;
    int code = fault->code;
    if (fault->after > 1) {
      fault->after--;
      continue;
    }
    if (fault->after == 1) fault->code = 0;
    if (is_fatal(code)) lost = code;
    return code;
  }
  return 0;
}

static void note(const char *call) {
  if (!calls) calls = malloc(LOG_BYTES);
  size_t length = strlen(call) + 1;
  if (calls && logged + length < LOG_BYTES) {
    memcpy(calls + logged, call, length - 1);
    calls[logged + length - 1] = '\n';
    logged += length;
  }
}

static int leave(int code) {
  pthread_mutex_unlock(&lock);
  return code;
}

// Begins a call; returns from the caller where it is to fail.
#define ENTER(call)                     \
  pthread_mutex_lock(&lock);            \
  note(call);                           \
  if (lost) return leave(lost);         \
  {                                     \
    int code_ = fault_of(call);         \
    if (code_) return leave(code_);     \
  }

// Begins a call that also makes things go where the device is lost, or the call fails.
#define ENTER_TO_END(call)              \
  pthread_mutex_lock(&lock);            \
  note(call);                           \
  int failed = lost ? lost : fault_of(call);

#define CONTEXT()                                        \
  struct context *context = depth ? current[depth - 1] : NULL; \
  if (!context) return leave(INVALID_CONTEXT)

static int violate(const char *why) {
  fprintf(stderr, "fake libcuda: %s\n", why);
  violations++;
  return lost = ILLEGAL_ADDRESS;
}

static int refuse(const char *why) {
  fprintf(stderr, "fake libcuda: %s\n", why);
  violations++;
  return INVALID_HANDLE;
}

#define IS_ALIVE(list, handle)                                       \
  ({                                                                 \
    __typeof__(list) at_ = list;                                     \
    while (at_ && (void *)at_ != (void *)(handle)) at_ = at_->next;  \
    at_ != NULL;                                                     \
  })

// The stream of a handle; returns from the caller where there is none.
#define STREAM(handle)                                                                  \
  if ((handle) && !IS_ALIVE(streams, handle)) return leave(refuse("a stream has gone")); \
  struct stream *stream = (handle) ? (handle) : &default_streams[context->device]

#define EVENT(handle)                                                       \
  if (!IS_ALIVE(events, handle)) return leave(refuse("an event has gone")); \
  struct event *event = handle

static struct allocation *find(const void *address, size_t bytes) {
  for (int i = 0; i < allocations_end; i++) {
    struct allocation *a = &allocations[i];
    const uint8_t *p = address;
    if (a->base && p >= a->base && p + bytes <= a->base + a->bytes) return a;
  }
  return NULL;
}

static struct allocation *vacant(void) {
  for (int i = 0; i < allocations_end; i++)
    if (!allocations[i].base) return &allocations[i];
  return allocations_end < ALLOCATIONS_MAX ? &allocations[allocations_end++] : NULL;
}

static bool reaches(struct context *context, struct allocation *a) {
  if (a->kind == ON_HOST) return true;
  return a->device == context->device || (a->kind == ON_DEVICE && context->peers[a->device]);
}

// ---- Streams ----

static void run_until(struct stream *stream, struct event *event, uint64_t number);

static void wait_for(struct event *event, struct stream *stream, uint64_t number) {
  if (!event->imported) {
    if (event->done < number && stream) run_until(stream, event, number);
    return;
  }
  struct shared *shared = event->shared;
  pthread_mutex_lock(&shared->mutex);
  if (shared->wanted < number) shared->wanted = number;
  pthread_cond_broadcast(&shared->changed);
  // Looks again and again only whether the other process lives.
  while (shared->done < number && !shared->ended && kill(shared->owner, 0) == 0) {
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 50 * 1000 * 1000;
    if (soon.tv_nsec >= 1000000000) soon.tv_sec++, soon.tv_nsec -= 1000000000;
    pthread_cond_timedwait(&shared->changed, &shared->mutex, &soon);
  }
  pthread_mutex_unlock(&shared->mutex);
}

// Whether work that begins now does nothing, because the device is lost, or becomes so.
static bool fails_to_run(bool is_kernel) {
  if (lost) return true;
  int code = fault_of("execution");
  if (code && is_kernel && !lost) lost = LAUNCH_FAILED;
  return code != 0;
}

static bool is_function(struct function *function) {
  for (struct module *module = modules; module; module = module->next)
    if (IS_ALIVE(module->functions, function)) return true;
  return false;
}

static void launch(struct operation *o) {
  struct work *work = o->work;
  struct function *kernel = work->kernel;
  for (int i = 0; kernel->parameters[i]; i++) {
    void *address = (void *)work->arguments[i];
    if (kernel->parameters[i] != 'p' || !address) continue;
    struct allocation *a = find(address, 0);
    if (a && reaches(o->context, a)) continue;
    fprintf(stderr, "fake libcuda: %s, argument %d\n", kernel->name, i);
    violate("a kernel ran with a pointer to memory that is not there");
    return;
  }
  if (kernel->module->run(kernel->name, work->grid, work->threads, work->shared_bytes, work->arguments, 0))
    lost = LAUNCH_FAILED;
}

static void execute(struct operation *o) {
  switch (o->what) {
    case WAIT:
      wait_for(o->event, (struct stream *)o->to, o->number);
      break;
    case RECORD:
      if (o->event->done < o->number) o->event->done = o->number;
      if (o->event->shared) {
        pthread_mutex_lock(&o->event->shared->mutex);
        if (o->event->shared->done < o->number) o->event->shared->done = o->number;
        pthread_cond_broadcast(&o->event->shared->changed);
        pthread_mutex_unlock(&o->event->shared->mutex);
      }
      break;
    case WRITE:
      if (find(o->to, o->bytes)) memcpy(o->to, o->from, o->bytes);
      break;
    case COPY:
      if (fails_to_run(false)) break;
      if (!find(o->to, o->bytes) || !find(o->from, o->bytes))
        violate("a copy ran whose memory had gone");
      else
        memmove(o->to, o->from, o->bytes);
      break;
    case SET:
      if (fails_to_run(false)) break;
      if (!find(o->to, o->bytes)) violate("a memset ran whose memory had gone");
      else memset(o->to, o->value, o->bytes);
      break;
    case LAUNCH:
      if (!fails_to_run(true)) launch(o);
      break;
    case CALL:
      if (!fails_to_run(true)) o->work->function(o->work->data);
  }
}

static struct operation *take(struct queue *queue) {
  struct operation *o = queue->first;
  if (o && !(queue->first = o->next)) queue->last = NULL;
  return o;
}

static void append(struct queue *queue, struct operation o) {
  struct operation *copy = malloc(sizeof o);
  *copy = o;
  copy->next = NULL;
  if (o.work) o.work->users++;
  if (queue->last) queue->last->next = copy;
  else queue->first = copy;
  queue->last = copy;
}

static void forget_work(struct work *work) {
  if (!work || --work->users) return;
  free(work->data);
  free(work);
}

static void forget(struct operation *o) {
  if (o->what == WRITE) free(o->from);
  forget_work(o->work);
  free(o);
}

static void forget_all(struct queue *queue) {
  for (struct operation *o; (o = take(queue));) forget(o);
}

// Runs what is on the stream, up to the event's record or to its end.
static void run_until(struct stream *stream, struct event *event, uint64_t number) {
  while (!event || event->done < number) {
    // Before it is taken: somebody else may wait for the same.
    while (is_held && stream->queue.first && stream->queue.first->what == COPY) pthread_cond_wait(&released, &lock);
    struct operation *o = take(&stream->queue);
    if (!o) return;
    execute(o);
    forget(o);
  }
}

// As much as can run without a wait for somebody else.
static void make_progress(struct stream *stream) {
  for (struct operation *o; (o = stream->queue.first);) {
    bool is_ahead = o->what == WAIT && (o->event->imported || o->event->done < o->number);
    if (is_ahead || (is_held && o->what == COPY)) return;
    take(&stream->queue);
    execute(o);
    forget(o);
  }
}

static int put(struct stream *stream, struct operation o) {
  struct capture *capture = stream->capture;
  if (capture && capture->is_invalid) return CAPTURE_INVALIDATED;
  append(capture ? &capture->queue : &stream->queue, o);
  return SUCCESS;
}

// As `put`; the work is nobody else's.
static int put_work(struct stream *stream, struct operation o) {
  o.work->users = 1;
  int code = put(stream, o);
  forget_work(o.work);
  return code;
}

static int copy(struct context *context, void *to, void *from, size_t bytes, void *handle) {
  struct allocation *target = find(to, bytes), *source = find(from, bytes);
  if (!target || !source) return leave(violate("a copy of memory that is not there, or not pinned"));
  if (!reaches(context, target) || !reaches(context, source))
    return leave(violate("a copy of memory that this context does not reach"));
  STREAM(handle);
  return leave(put(stream, (struct operation){.what = COPY, .context = context, .to = to, .from = from, .bytes = bytes}));
}

// ---- Captures ----

static int invalidate(struct capture *capture, int code) {
  capture->is_invalid = true;
  return code;
}

// What may not be done while a stream captures, by this thread or, by the capture's mode, by any.
static int refused_by_captures(void) {
  int code = SUCCESS;
  for (struct stream *stream = streams; stream; stream = stream->next) {
    struct capture *capture = stream->capture;
    if (!capture || capture->is_invalid || capture->mode == CAPTURE_RELAXED) continue;
    if (capture->mode == CAPTURE_GLOBAL || pthread_equal(capture->thread, pthread_self()))
      code = invalidate(capture, CAPTURE_UNSUPPORTED);
  }
  return code;
}

// Nobody waits for what only a graph will do.
static int refused_by_capture(struct event *event) {
  if (!event->captured_in) return SUCCESS;
  for (struct stream *stream = streams; stream; stream = stream->next)
    if (stream->capture && stream->capture->number == event->captured_in)
      return invalidate(stream->capture, CAPTURE_UNSUPPORTED);
  return CAPTURED_EVENT;
}

// ---- Start, devices, contexts ----

int cuInit(unsigned flags) {
  ENTER("cuInit");
  if (!is_initialized) {
    is_initialized = true;
    FILE *random = fopen("/dev/urandom", "r");
    if (!random || fread(&instance, sizeof instance, 1, random) != 1) return leave(999);
    fclose(random);
    for (int i = 0; i < DEVICES; i++) contexts[i].device = i, default_streams[i].context = &contexts[i];
    // Each allocation is a file.
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
      files.rlim_cur = files.rlim_max;
      setrlimit(RLIMIT_NOFILE, &files);
    }
    const char *writes = getenv("FAKE_CUDA_WRITES");
    if (writes) sscanf(writes, "%d:%d", &writes_order, &flush_options);
    const char *text = getenv("FAKE_CUDA_FAIL");
    for (int i = 0; text && *text && i < FAULTS_MAX; i++) {
      int read = 0;
      if (sscanf(text, "%63[^:]:%d%n", faults[i].call, &faults[i].code, &read) != 2) break;
      text += read;
      if (sscanf(text, ":%d%n", &faults[i].after, &read) == 1) text += read;
      text += *text == ',';
    }
  }
  return leave(flags ? INVALID_VALUE : SUCCESS);
}

int cuDriverGetVersion(int *version) {
  ENTER("cuDriverGetVersion");
  *version = 13000;
  return leave(SUCCESS);
}

int cuGetErrorName(int code, const char **name) {
  // Of those that tests meet. Not logged: it is part of how another call is told of.
  static const struct { int code; const char *name; } names[] = {
      {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
      {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"}, {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
      {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"}, {304, "CUDA_ERROR_OPERATING_SYSTEM"},
      {400, "CUDA_ERROR_INVALID_HANDLE"}, {401, "CUDA_ERROR_ILLEGAL_STATE"}, {500, "CUDA_ERROR_NOT_FOUND"},
      {600, "CUDA_ERROR_NOT_READY"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {711, "CUDA_ERROR_TOO_MANY_PEERS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"},
      {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}, {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
      {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"}, {907, "CUDA_ERROR_CAPTURED_EVENT"},
      {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].code == code) return *name = names[i].name, SUCCESS;
  return *name = NULL, INVALID_VALUE;
}

int cuDeviceGetCount(int *count) {
  ENTER("cuDeviceGetCount");
  *count = DEVICES;
  return leave(is_initialized ? SUCCESS : NOT_INITIALIZED);
}

int cuDeviceGet(int *device, int ordinal) {
  ENTER("cuDeviceGet");
  *device = ordinal;
  return leave(ordinal >= 0 && ordinal < DEVICES ? SUCCESS : INVALID_DEVICE);
}

int cuDeviceGetAttribute(int *value, enum attribute attribute, int device) {
  ENTER("cuDeviceGetAttribute");
  if (device < 0 || device >= DEVICES) return leave(INVALID_DEVICE);
  switch (attribute) {
    case MULTIPROCESSOR_COUNT: return *value = MULTIPROCESSORS, leave(SUCCESS);
    case CAPABILITY_MAJOR: return *value = 9, leave(SUCCESS);
    case CAPABILITY_MINOR: return *value = 0, leave(SUCCESS);
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return *value = SHARED_BYTES_OPT_IN, leave(SUCCESS);
    case PCI_BUS_ID: return *value = 16 + device, leave(SUCCESS);
    case PCI_DEVICE_ID:
    case PCI_DOMAIN_ID: return *value = 0, leave(SUCCESS);
    case GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS: return *value = flush_options, leave(SUCCESS);
    case GPU_DIRECT_RDMA_WRITES_ORDERING: return *value = writes_order, leave(SUCCESS);
    case DMA_BUF_SUPPORTED: return *value = 1, leave(SUCCESS);
  }
  return leave(INVALID_VALUE);
}

int cuDeviceGetName(char *name, int length, int device) {
  ENTER("cuDeviceGetName");
  if (device < 0 || device >= DEVICES) return leave(INVALID_DEVICE);
  if (!name || length <= 0) return leave(INVALID_VALUE);
  snprintf(name, length, "Fake GPU");
  return leave(SUCCESS);
}

// That of topology's fake NVML: the device's number in each byte.
int cuDeviceGetUuid_v2(uint8_t *uuid, int device) {
  ENTER("cuDeviceGetUuid_v2");
  if (device < 0 || device >= DEVICES) return leave(INVALID_DEVICE);
  memset(uuid, 0x11 * (device + 1), 16);
  return leave(SUCCESS);
}

int cuDeviceCanAccessPeer(int *can, int device, int peer) {
  ENTER("cuDeviceCanAccessPeer");
  *can = device != peer && peers_allowed;
  return leave(SUCCESS);
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  ENTER("cuDevicePrimaryCtxRetain");
  if (contexts[device].retained++ == 0) live[CONTEXTS]++;
  *context = &contexts[device];
  return leave(SUCCESS);
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  ENTER_TO_END("cuDevicePrimaryCtxRelease_v2");
  if (--contexts[device].retained == 0) {
    live[CONTEXTS]--;
    memset(contexts[device].peers, 0, sizeof contexts[device].peers);
  }
  return leave(failed);
}

int cuCtxPushCurrent_v2(void *context) {
  ENTER("cuCtxPushCurrent_v2");
  if (depth == 16) return leave(INVALID_CONTEXT);
  current[depth++] = context;
  return leave(SUCCESS);
}

int cuCtxPopCurrent_v2(void **context) {
  ENTER_TO_END("cuCtxPopCurrent_v2");
  if (!depth) return leave(INVALID_CONTEXT);
  depth--;
  if (context) *context = current[depth];
  return leave(failed);
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  ENTER("cuCtxGetStreamPriorityRange");
  *least = LOWEST_PRIORITY, *greatest = HIGHEST_PRIORITY;
  return leave(SUCCESS);
}

int cuCtxEnablePeerAccess(void *peer, unsigned flags) {
  ENTER("cuCtxEnablePeerAccess");
  CONTEXT();
  struct context *other = peer;
  if (flags || other == context) return leave(INVALID_VALUE);
  if (!peers_allowed) return leave(PEER_ACCESS_UNSUPPORTED);
  if (context->peers[other->device]) return leave(PEER_ACCESS_ALREADY_ENABLED);
  context->peers[other->device] = true;
  return leave(SUCCESS);
}

// ---- Memory ----

static void *map(int file, size_t bytes) {
  void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return base == MAP_FAILED ? NULL : base;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  ENTER("cuMemGetInfo_v2");
  CONTEXT();
  *total = GPU_BYTES, *free_bytes = GPU_BYTES - device_bytes[context->device];
  return leave(SUCCESS);
}

int cuMemAlloc_v2(pointer *out, size_t bytes) {
  ENTER("cuMemAlloc_v2");
  CONTEXT();
  int refused = refused_by_captures();
  if (refused) return leave(refused);
  struct allocation *a = vacant();
  if (!bytes) return leave(INVALID_VALUE);
  if (!a || bytes > GPU_BYTES - device_bytes[context->device]) return leave(OUT_OF_MEMORY);
  int file = memfd_create("fake GPU memory", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, bytes)) return leave(OUT_OF_MEMORY);
  *a = (struct allocation){ON_DEVICE, map(file, bytes), bytes, context->device, file};
  if (!a->base) return leave(OUT_OF_MEMORY);
  // Not all of it: pages that nobody touches take no memory.
  memset(a->base, 0xA5, bytes < POISONED_BYTES ? bytes : POISONED_BYTES);
  live[ALLOCATIONS]++;
  device_bytes[context->device] += bytes;
  *out = (pointer)a->base;
  return leave(SUCCESS);
}

static int end_allocation(void *base, enum kind kind, enum counted counted) {
  for (int i = 0; i < allocations_end; i++) {
    struct allocation *a = &allocations[i];
    if (a->base != base || a->kind != kind || !base) continue;
    munmap(a->base, a->bytes);
    if (a->file >= 0) close(a->file);
    if (kind == ON_DEVICE) device_bytes[a->device] -= a->bytes;
    *a = (struct allocation){0};
    live[counted]--;
    return SUCCESS;
  }
  violations++;
  return INVALID_VALUE;
}

int cuMemFree_v2(pointer base) {
  ENTER_TO_END("cuMemFree_v2");
  int ended = end_allocation((void *)base, ON_DEVICE, ALLOCATIONS);
  return leave(failed ? failed : ended);
}

int cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
  ENTER("cuMemHostAlloc");
  CONTEXT();
  int refused = refused_by_captures();
  if (refused) return leave(refused);
  (void)flags;
  struct allocation *a = vacant();
  if (!a) return leave(OUT_OF_MEMORY);
  void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return leave(OUT_OF_MEMORY);
  *a = (struct allocation){ON_HOST, base, bytes, -1, -1};
  live[PINNED]++;
  *out = base;
  return leave(SUCCESS);
}

int cuMemFreeHost(void *base) {
  ENTER_TO_END("cuMemFreeHost");
  int ended = end_allocation(base, ON_HOST, PINNED);
  return leave(failed ? failed : ended);
}

int cuMemsetD8_v2(pointer to, unsigned char value, size_t bytes) {
  ENTER("cuMemsetD8_v2");
  CONTEXT();
  struct allocation *a = find((void *)to, bytes);
  if (!a || !reaches(context, a)) return leave(violate("a memset of memory that is not there"));
  // As on a card, nobody waits for it but the default stream.
  struct operation set = {.what = SET, .to = (void *)to, .value = value, .bytes = bytes};
  return leave(put(&default_streams[context->device], set));
}

int cuMemsetD8Async(pointer to, unsigned char value, size_t bytes, void *handle) {
  ENTER("cuMemsetD8Async");
  CONTEXT();
  struct allocation *a = find((void *)to, bytes);
  if (!a || !reaches(context, a)) return leave(violate("a memset of memory that is not there"));
  STREAM(handle);
  return leave(put(stream, (struct operation){.what = SET, .to = (void *)to, .value = value, .bytes = bytes}));
}

int cuMemcpyDtoDAsync_v2(pointer to, pointer from, size_t bytes, void *stream) {
  ENTER("cuMemcpyDtoDAsync_v2");
  CONTEXT();
  return copy(context, (void *)to, (void *)from, bytes, stream);
}

int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, void *stream) {
  ENTER("cuMemcpyHtoDAsync_v2");
  CONTEXT();
  return copy(context, (void *)to, (void *)from, bytes, stream);
}

int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, void *stream) {
  ENTER("cuMemcpyDtoHAsync_v2");
  CONTEXT();
  return copy(context, to, (void *)from, bytes, stream);
}

int cuMemcpyPeerAsync(pointer to, void *to_context, pointer from, void *from_context, size_t bytes, void *handle) {
  ENTER("cuMemcpyPeerAsync");
  CONTEXT();
  struct allocation *target = find((void *)to, bytes), *source = find((void *)from, bytes);
  if (!target || !source || !reaches(to_context, target) || !reaches(from_context, source))
    return leave(violate("a copy between peers of memory that is not theirs"));
  // With or without access to each other: then the driver goes by way of the host.
  STREAM(handle);
  return leave(put(stream, (struct operation){.what = COPY, .to = (void *)to, .from = (void *)from, .bytes = bytes}));
}

// ---- Streams and events ----

static void call_later(struct stream *stream, void (*function)(void *data), void *data) {
  pthread_mutex_lock(&lock);
  struct work *work = calloc(1, sizeof *work);
  work->function = function, work->data = data;
  put_work(stream, (struct operation){.what = CALL, .context = stream->context, .work = work});
  pthread_mutex_unlock(&lock);
}

int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  ENTER("cuStreamCreateWithPriority");
  CONTEXT();
  (void)flags;
  struct stream *stream = calloc(1, sizeof *stream);
  stream->call = call_later;
  stream->priority = priority;
  stream->context = context;
  stream->next = streams;
  streams = stream;
  live[STREAMS]++;
  *out = stream;
  return leave(SUCCESS);
}

int cuStreamDestroy_v2(void *handle) {
  ENTER_TO_END("cuStreamDestroy_v2");
  struct stream **at = &streams;
  while (*at && *at != handle) at = &(*at)->next;
  if (!*at) return leave(refuse("a stream ends that has gone"));
  struct stream *stream = *at;
  // An event's record is done when all before it is, whoever waits.
  struct operation *work = stream->queue.first;
  while (work && work->what == RECORD) work = work->next;
  if (work && !lost) refuse("a stream ends with work on it");
  if (stream->capture) {
    refuse("a stream ends that captures");
    forget_all(&stream->capture->queue);
    free(stream->capture);
  }
  run_until(stream, NULL, 0);
  *at = stream->next;
  free(stream);
  live[STREAMS]--;
  return leave(failed);
}

int cuStreamSynchronize(void *handle) {
  ENTER("cuStreamSynchronize");
  CONTEXT();
  STREAM(handle);
  if (stream->capture) return leave(invalidate(stream->capture, CAPTURE_UNSUPPORTED));
  run_until(stream, NULL, 0);
  return leave(lost);
}

// Makes progress after it answered: whoever asks once and goes on has not waited.
int cuStreamQuery(void *handle) {
  ENTER("cuStreamQuery");
  CONTEXT();
  STREAM(handle);
  if (stream->capture) return leave(invalidate(stream->capture, CAPTURE_UNSUPPORTED));
  if (!stream->queue.first) return leave(SUCCESS);
  make_progress(stream);
  return leave(lost ? lost : NOT_READY);
}

int cuStreamWaitEvent(void *stream_handle, void *handle, unsigned flags) {
  ENTER("cuStreamWaitEvent");
  CONTEXT();
  (void)flags;
  STREAM(stream_handle);
  EVENT(handle);
  struct capture *capture = stream->capture;
  // Within a capture, all is in order.
  if (capture && event->captured_in == capture->number)
    return leave(capture->is_invalid ? CAPTURE_INVALIDATED : SUCCESS);
  if (capture) return leave(invalidate(capture, CAPTURE_ISOLATION));
  // A driver would let this stream capture, too; nobody needs that here.
  int refused = refused_by_capture(event);
  if (refused) return leave(refused);
  uint64_t number = event->recorded;
  if (event->imported) {
    pthread_mutex_lock(&event->shared->mutex);
    number = event->shared->recorded;
    pthread_mutex_unlock(&event->shared->mutex);
  }
  // `to` names the stream of the record that is waited for: the event may be recorded again.
  return leave(put(stream, (struct operation){.what = WAIT, .event = event, .number = number, .to = (void *)event->stream}));
}

int cuEventCreate(void **out, unsigned flags) {
  ENTER("cuEventCreate");
  CONTEXT();
  (void)context;
  struct event *event = calloc(1, sizeof *event);
  event->flags = flags, event->file = -1;
  if (flags & 4) {
    if (!(flags & 2)) return free(event), leave(INVALID_VALUE);
    event->file = memfd_create("fake GPU event", MFD_CLOEXEC);
    if (event->file < 0 || ftruncate(event->file, sizeof(struct shared))) return leave(OUT_OF_MEMORY);
    event->shared = map(event->file, sizeof(struct shared));
    pthread_mutexattr_t mutex;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&event->shared->mutex, &mutex);
    pthread_condattr_t condition;
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&event->shared->changed, &condition);
    event->shared->owner = getpid();
  }
  event->next = events;
  events = event;
  live[EVENTS]++;
  *out = event;
  return leave(SUCCESS);
}

int cuEventRecord(void *handle, void *stream_handle) {
  ENTER("cuEventRecord");
  CONTEXT();
  STREAM(stream_handle);
  EVENT(handle);
  if (stream->capture) {
    if (stream->capture->is_invalid) return leave(CAPTURE_INVALIDATED);
    event->captured_in = stream->capture->number;
    return leave(SUCCESS);
  }
  event->captured_in = 0;
  event->stream = stream;
  event->recorded++;
  if (event->shared) {
    pthread_mutex_lock(&event->shared->mutex);
    event->shared->recorded = event->recorded;
    pthread_mutex_unlock(&event->shared->mutex);
  }
  return leave(put(stream, (struct operation){.what = RECORD, .event = event, .number = event->recorded}));
}

int cuEventSynchronize(void *handle) {
  ENTER("cuEventSynchronize");
  CONTEXT();
  (void)context;
  EVENT(handle);
  int refused = refused_by_capture(event);
  if (refused) return leave(refused);
  wait_for(event, event->stream, event->recorded);
  return leave(lost);
}

// Whether nothing is left to wait for. Of another process's event, that process is told that somebody
// waits.
static bool is_over(struct event *event) {
  if (lost) return true;
  if (!event->imported) return event->done >= event->recorded;
  struct shared *shared = event->shared;
  pthread_mutex_lock(&shared->mutex);
  bool is_done = shared->done >= shared->recorded;
  if (shared->wanted < shared->recorded) shared->wanted = shared->recorded;
  pthread_cond_broadcast(&shared->changed);
  pthread_mutex_unlock(&shared->mutex);
  return is_done;
}

// As cuStreamQuery.
int cuEventQuery(void *handle) {
  ENTER("cuEventQuery");
  CONTEXT();
  (void)context;
  EVENT(handle);
  int refused = refused_by_capture(event);
  if (!refused) refused = refused_by_captures();
  if (refused) return leave(refused);
  if (is_over(event)) return leave(lost);
  if (!event->imported) make_progress(event->stream);
  return leave(lost ? lost : NOT_READY);
}

int cuEventDestroy_v2(void *handle) {
  ENTER_TO_END("cuEventDestroy_v2");
  struct event **at = &events;
  while (*at && *at != handle) at = &(*at)->next;
  if (!*at) return leave(refuse("an event ends that has gone"));
  struct event *event = *at;
  *at = event->next;
  for (struct stream *stream = streams; stream; stream = stream->next)
    for (struct operation *o = stream->queue.first; o; o = o->next)
      if (o->event == event) {
        run_until(stream, NULL, 0);
        break;
      }
  for (int i = 0; i < DEVICES; i++) run_until(&default_streams[i], NULL, 0);
  live[event->imported ? MAPPED_EVENTS : EVENTS]--;
  if (event->shared && !event->imported) {
    pthread_mutex_lock(&event->shared->mutex);
    event->shared->ended = true;
    pthread_cond_broadcast(&event->shared->changed);
    pthread_mutex_unlock(&event->shared->mutex);
    if (event->is_served) {
      pthread_mutex_unlock(&lock);
      pthread_join(event->server, NULL);
      pthread_mutex_lock(&lock);
    }
  }
  if (event->shared) munmap(event->shared, sizeof *event->shared);
  if (event->file >= 0) close(event->file);
  free(event);
  return leave(failed);
}

// ---- Modules and kernels ----

int cuModuleLoadData(void **out, const void *image) {
  static const char HEAD[] = "fake cubin\n";
  ENTER("cuModuleLoadData");
  CONTEXT();
  if (!out || !image) return leave(INVALID_VALUE);
  if (strncmp(image, HEAD, sizeof HEAD - 1)) return leave(INVALID_IMAGE);
  const char *from = (const char *)image + sizeof HEAD - 1, *end = strchr(from, '\n');
  if (!end) return leave(INVALID_IMAGE);
  char *path = strndup(from, end - from);
  struct module *module = calloc(1, sizeof *module);
  module->context = context;
  module->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  free(path);
  if (module->library) {
    *(void **)&module->parameters = dlsym(module->library, "emulated_parameters");
    *(void **)&module->run = dlsym(module->library, "emulated_run");
  }
  if (!module->parameters || !module->run) {
    fprintf(stderr, "fake libcuda: %s\n", dlerror());
    if (module->library) dlclose(module->library);
    return free(module), leave(INVALID_IMAGE);
  }
  module->next = modules;
  modules = module;
  live[MODULES]++;
  *out = module;
  return leave(SUCCESS);
}

int cuModuleUnload(void *handle) {
  ENTER_TO_END("cuModuleUnload");
  struct module **at = &modules;
  while (*at && *at != handle) at = &(*at)->next;
  if (!*at) return leave(refuse("a module ends that has gone"));
  struct module *module = *at;
  bool is_in_use = false;
  for (struct stream *stream = streams; stream; stream = stream->next)
    for (struct operation *o = stream->queue.first; o; o = o->next)
      is_in_use |= o->what == LAUNCH && o->work->kernel->module == module;
  for (int i = 0; i < DEVICES; i++)
    for (struct operation *o = default_streams[i].queue.first; o; o = o->next)
      is_in_use |= o->what == LAUNCH && o->work->kernel->module == module;
  if (is_in_use && !lost) violate("a module ends whose kernels are on a stream");
  *at = module->next;
  for (struct function *function; (function = module->functions);) {
    module->functions = function->next;
    free(function->name);
    free(function);
  }
  dlclose(module->library);
  free(module);
  live[MODULES]--;
  return leave(failed);
}

int cuModuleGetFunction(void **out, void *handle, const char *name) {
  ENTER("cuModuleGetFunction");
  CONTEXT();
  (void)context;
  if (!IS_ALIVE(modules, handle)) return leave(refuse("a module has gone"));
  if (!out || !name) return leave(INVALID_VALUE);
  struct module *module = handle;
  const char *parameters = module->parameters(name);
  if (!parameters) return leave(NOT_FOUND);
  struct function *function = module->functions;
  while (function && strcmp(function->name, name)) function = function->next;
  if (!function) {
    function = calloc(1, sizeof *function);
    *function = (struct function){module, strdup(name), parameters, SHARED_BYTES, module->functions};
    module->functions = function;
  }
  *out = function;
  return leave(SUCCESS);
}

int cuFuncSetAttribute(void *handle, int attribute, int value) {
  ENTER("cuFuncSetAttribute");
  CONTEXT();
  (void)context;
  struct function *function = handle;
  if (!is_function(function)) return leave(refuse("a kernel has gone"));
  if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return leave(INVALID_VALUE);
  if (value < 0 || value > SHARED_BYTES_OPT_IN) return leave(INVALID_VALUE);
  function->shared_bytes_max = value > SHARED_BYTES ? value : SHARED_BYTES;
  return leave(SUCCESS);
}

int cuLaunchKernel(void *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void *handle, void **arguments, void **extra) {
  ENTER("cuLaunchKernel");
  CONTEXT();
  struct function *function = kernel;
  if (!is_function(function)) return leave(refuse("a kernel has gone"));
  STREAM(handle);
  if (function->module->context != context || stream->context != context)
    return leave(refuse("a kernel, its stream and the current context are not of one GPU"));
  // Blocks of one dimension alone are emulated.
  if (extra || block_y != 1 || block_z != 1) return leave(NOT_SUPPORTED);
  if (!grid_x || !grid_y || !grid_z || !block_x) return leave(INVALID_VALUE);
  if (grid_x > INT32_MAX || grid_y > GRID_YZ_MAX || grid_z > GRID_YZ_MAX) return leave(INVALID_VALUE);
  if (block_x > BLOCK_THREADS_MAX || shared_bytes > function->shared_bytes_max) return leave(INVALID_VALUE);
  size_t count = strlen(function->parameters);
  if (count && !arguments) return leave(INVALID_VALUE);
  struct work *work = calloc(1, sizeof *work);
  work->kernel = function;
  work->grid[0] = grid_x, work->grid[1] = grid_y, work->grid[2] = grid_z;
  work->threads = block_x, work->shared_bytes = shared_bytes;
  for (size_t i = 0; i < count; i++) {
    bool is_long = function->parameters[i] == 'p' || function->parameters[i] == 'U';
    memcpy(&work->arguments[i], arguments[i], is_long ? 8 : 4);
  }
  return leave(put_work(stream, (struct operation){.what = LAUNCH, .context = context, .work = work}));
}

// ---- Captures and graphs ----

int cuStreamBeginCapture_v2(void *handle, enum mode mode) {
  ENTER("cuStreamBeginCapture_v2");
  CONTEXT();
  STREAM(handle);
  if (mode > CAPTURE_RELAXED) return leave(INVALID_VALUE);
  if (!handle) return leave(CAPTURE_UNSUPPORTED);
  if (stream->capture) return leave(ILLEGAL_STATE);
  stream->capture = calloc(1, sizeof *stream->capture);
  *stream->capture = (struct capture){.number = ++captures, .mode = mode, .thread = pthread_self()};
  return leave(SUCCESS);
}

int cuStreamIsCapturing(void *handle, int *status) {
  ENTER("cuStreamIsCapturing");
  CONTEXT();
  STREAM(handle);
  *status = !stream->capture ? 0 : stream->capture->is_invalid ? 2 : 1;
  return leave(SUCCESS);
}

static struct graph *new_graph(bool is_executable, struct queue queue) {
  struct graph *graph = calloc(1, sizeof *graph);
  *graph = (struct graph){is_executable, queue, graphs};
  live[GRAPHS]++;
  return graphs = graph;
}

int cuStreamEndCapture(void *handle, void **out) {
  ENTER_TO_END("cuStreamEndCapture");
  CONTEXT();
  STREAM(handle);
  struct capture *capture = stream->capture;
  *out = NULL;
  if (!capture) return leave(failed ? failed : ILLEGAL_STATE);
  if (capture->mode != CAPTURE_RELAXED && !pthread_equal(capture->thread, pthread_self()))
    return leave(CAPTURE_WRONG_THREAD);
  stream->capture = NULL;
  if (capture->is_invalid && !failed) failed = CAPTURE_INVALIDATED;
  if (failed) forget_all(&capture->queue);
  else *out = new_graph(false, capture->queue);
  free(capture);
  return leave(failed);
}

static bool is_graph(void *handle, bool is_executable) {
  return IS_ALIVE(graphs, handle) && ((struct graph *)handle)->is_executable == is_executable;
}

int cuGraphInstantiateWithFlags(void **out, void *handle, unsigned long long flags) {
  ENTER("cuGraphInstantiateWithFlags");
  CONTEXT();
  (void)context;
  if (!is_graph(handle, false)) return leave(refuse("a graph has gone"));
  if (!out || flags) return leave(INVALID_VALUE);
  struct queue queue = {0};
  for (struct operation *o = ((struct graph *)handle)->queue.first; o; o = o->next) append(&queue, *o);
  *out = new_graph(true, queue);
  return leave(SUCCESS);
}

int cuGraphLaunch(void *executable, void *handle) {
  ENTER("cuGraphLaunch");
  CONTEXT();
  if (!is_graph(executable, true)) return leave(refuse("an executable graph has gone"));
  STREAM(handle);
  int code = SUCCESS;
  for (struct operation *o = ((struct graph *)executable)->queue.first; o && !code; o = o->next) {
    if (o->what == LAUNCH && !is_function(o->work->kernel))
      code = violate("a graph is launched whose module has gone");
    else
      code = put(stream, *o);
  }
  return leave(code);
}

static int end_graph(void *handle, bool is_executable) {
  if (!is_graph(handle, is_executable)) return refuse("a graph ends that has gone");
  struct graph **at = &graphs, *graph = handle;
  while (*at != graph) at = &(*at)->next;
  *at = graph->next;
  // What runs of it goes on.
  forget_all(&graph->queue);
  free(graph);
  live[GRAPHS]--;
  return SUCCESS;
}

int cuGraphExecDestroy(void *handle) {
  ENTER_TO_END("cuGraphExecDestroy");
  int ended = end_graph(handle, true);
  return leave(failed ? failed : ended);
}

int cuGraphDestroy(void *handle) {
  ENTER_TO_END("cuGraphDestroy");
  int ended = end_graph(handle, false);
  return leave(failed ? failed : ended);
}

// ---- Sharing between processes ----

// Runs a stream as far as other processes wait for an event on it.
static void *serve(void *argument) {
  struct event *event = argument;
  struct shared *shared = event->shared;
  pthread_mutex_lock(&shared->mutex);
  while (!shared->ended) {
    if (shared->wanted <= shared->done) {
      pthread_cond_wait(&shared->changed, &shared->mutex);
      continue;
    }
    uint64_t wanted = shared->wanted;
    pthread_mutex_unlock(&shared->mutex);
    pthread_mutex_lock(&lock);
    if (event->stream) run_until(event->stream, event, wanted);
    pthread_mutex_unlock(&lock);
    pthread_mutex_lock(&shared->mutex);
  }
  pthread_mutex_unlock(&shared->mutex);
  return NULL;
}

static int open_file(const struct handle *handle) {
  if (handle->magic != MAGIC || handle->instance == instance) return -1;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", handle->pid, handle->file);
  return open(path, O_RDWR | O_CLOEXEC);
}

int cuIpcGetMemHandle(struct handle *out, pointer base) {
  ENTER("cuIpcGetMemHandle");
  CONTEXT();
  (void)context;
  struct allocation *a = find((void *)base, 1);
  if (!a || a->kind != ON_DEVICE || a->base != (void *)base) return leave(INVALID_VALUE);
  *out = (struct handle){MAGIC, instance, a->bytes, getpid(), a->file, a->device, {0}};
  return leave(SUCCESS);
}

int cuIpcOpenMemHandle_v2(pointer *out, struct handle handle, unsigned flags) {
  ENTER("cuIpcOpenMemHandle_v2");
  CONTEXT();
  if (handle.magic != MAGIC) return leave(INVALID_HANDLE);
  if (handle.device != context->device && !(flags & 1 && peers_allowed)) return leave(PEER_ACCESS_UNSUPPORTED);
  struct allocation *a = vacant();
  int file = open_file(&handle);
  if (file < 0 || !a) return leave(INVALID_HANDLE);
  *a = (struct allocation){IMPORTED, map(file, handle.file_bytes), handle.file_bytes, context->device, file};
  if (!a->base) return leave(INVALID_HANDLE);
  live[MAPPED]++;
  *out = (pointer)a->base;
  return leave(SUCCESS);
}

int cuIpcCloseMemHandle(pointer base) {
  ENTER_TO_END("cuIpcCloseMemHandle");
  int ended = end_allocation((void *)base, IMPORTED, MAPPED);
  return leave(failed ? failed : ended);
}

int cuIpcGetEventHandle(struct handle *out, void *handle) {
  ENTER("cuIpcGetEventHandle");
  EVENT(handle);
  if (!event->shared || event->imported) return leave(INVALID_HANDLE);
  if (!event->is_served) event->is_served = pthread_create(&event->server, NULL, serve, event) == 0;
  *out = (struct handle){MAGIC, instance, sizeof(struct shared), getpid(), event->file, 0, {0}};
  return leave(SUCCESS);
}

int cuIpcOpenEventHandle(void **out, struct handle handle) {
  ENTER("cuIpcOpenEventHandle");
  int file = open_file(&handle);
  if (file < 0 || handle.file_bytes != sizeof(struct shared)) return leave(INVALID_HANDLE);
  struct event *event = calloc(1, sizeof *event);
  event->imported = true, event->file = file, event->shared = map(file, sizeof(struct shared));
  event->next = events;
  events = event;
  live[MAPPED_EVENTS]++;
  *out = event;
  return leave(SUCCESS);
}

// ---- GPUDirect RDMA ----

int cuMemGetHandleForAddressRange(int *file, pointer base, size_t bytes, int type, unsigned long long flags) {
  ENTER("cuMemGetHandleForAddressRange");
  CONTEXT();
  struct allocation *a = find((void *)base, bytes);
  bool is_aligned = base % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0;
  if (!file || type != DMA_BUF_FD || flags || !is_aligned || !a || a->kind == ON_HOST || !reaches(context, a))
    return leave(INVALID_VALUE);
  *file = dup(a->file);
  return leave(*file < 0 ? OUT_OF_MEMORY : SUCCESS);
}

int cuFlushGPUDirectRDMAWrites(int target, int scope) {
  ENTER("cuFlushGPUDirectRDMAWrites");
  CONTEXT();
  (void)context;
  return leave(target || scope < TO_OWNER ? INVALID_VALUE : SUCCESS);
}

// ---- What UCX's module for CUDA calls beside ----

int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

int cuCtxGetCurrent(void **context) {
  ENTER("cuCtxGetCurrent");
  *context = depth ? current[depth - 1] : NULL;
  return leave(SUCCESS);
}

int cuCtxGetDevice(int *device) {
  ENTER("cuCtxGetDevice");
  CONTEXT();
  *device = context->device;
  return leave(SUCCESS);
}

int cuCtxGetId(void *handle, unsigned long long *id) {
  ENTER("cuCtxGetId");
  struct context *context = handle ? handle : depth ? current[depth - 1] : NULL;
  if (!context) return leave(INVALID_CONTEXT);
  *id = 1 + context->device;
  return leave(SUCCESS);
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  ENTER("cuDevicePrimaryCtxGetState");
  if (device < 0 || device >= DEVICES) return leave(INVALID_DEVICE);
  *flags = 0, *active = contexts[device].retained > 0;
  return leave(SUCCESS);
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  ENTER("cuDeviceTotalMem_v2");
  if (device < 0 || device >= DEVICES) return leave(INVALID_DEVICE);
  *bytes = GPU_BYTES;
  return leave(SUCCESS);
}

// The only one that it finds by its name.
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
  ENTER("cuGetProcAddress_v2");
  (void)version, (void)flags;
  bool is_it = !strcmp(name, "cuMemGetHandleForAddressRange");
  *function = is_it ? (void *)cuMemGetHandleForAddressRange : NULL;
  if (status) *status = !is_it;
  return leave(is_it ? SUCCESS : NOT_FOUND);
}

// No memory here is made by the functions that this is for.
int cuMemRetainAllocationHandle(void *handle, void *address) {
  ENTER("cuMemRetainAllocationHandle");
  (void)handle, (void)address;
  return leave(INVALID_VALUE);
}

int cuMemGetAddressRange_v2(pointer *base, size_t *bytes, pointer address) {
  ENTER("cuMemGetAddressRange_v2");
  struct allocation *a = find((void *)address, 1);
  if (!a || a->kind == ON_HOST) return leave(NOT_FOUND);
  if (base) *base = (pointer)a->base;
  if (bytes) *bytes = a->bytes;
  return leave(SUCCESS);
}

static int tell(struct allocation *a, enum pointer_attribute attribute, void *value) {
  bool is_on_device = a && a->kind != ON_HOST;
  switch (attribute) {
    case CONTEXT_OF: return *(void **)value = is_on_device ? &contexts[a->device] : NULL, SUCCESS;
    case MEMORY_TYPE: return *(int *)value = !a ? 0 : is_on_device ? MEMORYTYPE_DEVICE : MEMORYTYPE_HOST, SUCCESS;
    case IS_MANAGED: return *(int *)value = 0, SUCCESS;
    case DEVICE_ORDINAL: return *(int *)value = is_on_device ? a->device : NO_DEVICE_ORDINAL, SUCCESS;
    default: return INVALID_VALUE;
  }
}

int cuPointerGetAttribute(void *value, enum pointer_attribute attribute, pointer address) {
  ENTER("cuPointerGetAttribute");
  struct allocation *a = find((void *)address, 1);
  return leave(a ? tell(a, attribute, value) : INVALID_VALUE);
}

// As a driver, says of memory that is not its own that it knows nothing.
int cuPointerGetAttributes(unsigned count, enum pointer_attribute *attributes, void **values, pointer address) {
  ENTER("cuPointerGetAttributes");
  struct allocation *a = find((void *)address, 1);
  int code = SUCCESS;
  for (unsigned i = 0; i < count && !code; i++) code = tell(a, attributes[i], values[i]);
  return leave(code);
}

int cuPointerSetAttribute(const void *value, enum pointer_attribute attribute, pointer address) {
  ENTER("cuPointerSetAttribute");
  (void)value;
  return leave(attribute == SYNC_MEMOPS && find((void *)address, 1) ? SUCCESS : INVALID_VALUE);
}

int cuMemHostRegister_v2(void *base, size_t bytes, unsigned flags) {
  ENTER("cuMemHostRegister_v2");
  (void)flags;
  return leave(base && bytes ? SUCCESS : INVALID_VALUE);
}

int cuMemHostUnregister(void *base) {
  ENTER("cuMemHostUnregister");
  return leave(base ? SUCCESS : INVALID_VALUE);
}

// Also of memory that nobody pinned: then it is done at once.
int cuMemcpyAsync(pointer to, pointer from, size_t bytes, void *handle) {
  ENTER("cuMemcpyAsync");
  CONTEXT();
  struct allocation *target = find((void *)to, bytes), *source = find((void *)from, bytes);
  if (target && source) return copy(context, (void *)to, (void *)from, bytes, handle);
  struct allocation *known = target ? target : source;
  if (!known || known->kind == ON_HOST || !reaches(context, known))
    return leave(violate("a copy of memory that is not there"));
  STREAM(handle);
  run_until(stream, NULL, 0);
  if (!lost) memmove((void *)to, (void *)from, bytes);
  return leave(lost);
}

int cuStreamCreate(void **out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, LOWEST_PRIORITY); }

// Somebody has to run the stream until then: it is whoever asks for the call.
int cuStreamAddCallback(void *handle, void (*function)(void *stream, int code, void *data), void *data,
                        unsigned flags) {
  ENTER("cuStreamAddCallback");
  CONTEXT();
  (void)flags;
  STREAM(handle);
  run_until(stream, NULL, 0);
  int code = leave(lost);
  function(handle, code, data);
  return SUCCESS;
}

// ---- For tests ----

// The `after`th call of this name from now on fails; each one if `after` is 0. Of the name
// "execution": a copy, a memset, a kernel or a product of matrices, when it runs. Code 0 takes all faults of that name back.
void fake_cuda_fail(const char *call, int after, int code) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < FAULTS_MAX; i++) {
    bool is_same = !strcmp(faults[i].call, call);
    if (code == 0 && is_same) faults[i].code = 0;
    if (code != 0 && (faults[i].code == 0 || is_same)) {
      snprintf(faults[i].call, sizeof faults[i].call, "%s", call);
      faults[i].after = after, faults[i].code = code;
      break;
    }
  }
  pthread_mutex_unlock(&lock);
}

void fake_cuda_order_remote_writes(int order, int options) { writes_order = order, flush_options = options; }

void fake_cuda_allow_peers(int allowed) { peers_allowed = allowed; }

// A kernel, on the device's default stream, that will have written these bytes.
void fake_cuda_write_later(int device, pointer to, const void *bytes, size_t count) {
  pthread_mutex_lock(&lock);
  void *kept = malloc(count);
  memcpy(kept, bytes, count);
  put(&default_streams[device], (struct operation){.what = WRITE, .to = (void *)to, .from = kept, .bytes = count});
  pthread_mutex_unlock(&lock);
}

// While held, copies do not end.
void fake_cuda_hold(int hold) {
  pthread_mutex_lock(&lock);
  is_held = hold;
  pthread_cond_broadcast(&released);
  pthread_mutex_unlock(&lock);
}

int fake_cuda_live(int counted) {
  pthread_mutex_lock(&lock);
  int count = live[counted];
  pthread_mutex_unlock(&lock);
  return count;
}

int fake_cuda_violations(void) { return violations; }

// The calls since the last time, one a line; how many bytes that is.
size_t fake_cuda_calls(char *out, size_t bytes) {
  pthread_mutex_lock(&lock);
  size_t length = logged < bytes ? logged : bytes;
  if (length) memcpy(out, calls, length);
  logged = 0;
  pthread_mutex_unlock(&lock);
  return length;
}
