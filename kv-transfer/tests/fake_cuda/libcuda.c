// A driver for tests: the functions of libcuda that this crate uses, with host memory as GPUs.
//
// It is as lazy and as strict as a driver may be. What is put on a stream happens only when somebody
// waits for it, so that a wait that is missing shows as bytes that are missing. Each pointer of a copy
// must lie in memory that is alive and that the current context reaches, and host memory must be
// pinned; otherwise the "GPU" is lost, as a real one is by an illegal access, and a violation is
// counted. Memory and events of other processes are shared by memory files (/proc/PID/fd/N).
//
// Tests talk to it by the functions `fake_cuda_*` at the end. A process that is a fake's user from its
// start takes faults from FAKE_CUDA_FAIL ("call:code,…"). A function is missing when it is compiled
// with -Dfunction=another_name.
#define _GNU_SOURCE
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
#include <time.h>
#include <unistd.h>

enum { DEVICES = 2, ALLOCATIONS_MAX = 1024, FAULTS_MAX = 16, LOG_BYTES = 1 << 20 };
enum { GPU_BYTES = 256 << 20, LOWEST_PRIORITY = 0, HIGHEST_PRIORITY = -5 };

// As in cuda.h.
enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  PEER_ACCESS_UNSUPPORTED = 217,
  INVALID_HANDLE = 400,
  ILLEGAL_ADDRESS = 700,
  PEER_ACCESS_ALREADY_ENABLED = 704,
};

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
};

enum what { COPY, KERNEL, RECORD, WAIT };

struct operation {
  enum what what;
  struct context *context;
  uint8_t *to, *from;
  size_t bytes;
  struct event *event;
  uint64_t number;
  struct operation *next;
};

struct stream {
  int priority;
  struct operation *first, *last;
  struct stream *next;
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

enum counted { CONTEXTS, STREAMS, EVENTS, ALLOCATIONS, PINNED, MAPPED, MAPPED_EVENTS, COUNTED };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;
static struct context contexts[DEVICES];
static struct allocation allocations[ALLOCATIONS_MAX];
static struct stream default_streams[DEVICES], *streams;
static struct fault faults[FAULTS_MAX];
static int live[COUNTED], violations, lost, peers_allowed = 1;
static bool is_initialized, is_held;
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

static struct allocation *find(const void *address, size_t bytes) {
  for (int i = 0; i < ALLOCATIONS_MAX; i++) {
    struct allocation *a = &allocations[i];
    const uint8_t *p = address;
    if (a->base && p >= a->base && p + bytes <= a->base + a->bytes) return a;
  }
  return NULL;
}

static struct allocation *vacant(void) {
  for (int i = 0; i < ALLOCATIONS_MAX; i++)
    if (!allocations[i].base) return &allocations[i];
  return NULL;
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
    case KERNEL:
      if (find(o->to, o->bytes)) memcpy(o->to, o->from, o->bytes);
      free(o->from);
      break;
    case COPY:
      if (lost || fault_of("execution")) break;
      if (!find(o->to, o->bytes) || !find(o->from, o->bytes))
        violate("a copy ran whose memory had gone");
      else
        memmove(o->to, o->from, o->bytes);
  }
}

static struct operation *take(struct stream *stream) {
  struct operation *o = stream->first;
  if (o && !(stream->first = o->next)) stream->last = NULL;
  return o;
}

// Runs what is on the stream, up to the event's record or to its end.
static void run_until(struct stream *stream, struct event *event, uint64_t number) {
  while (!event || event->done < number) {
    // Before it is taken: somebody else may wait for the same.
    while (is_held && stream->first && stream->first->what == COPY) pthread_cond_wait(&released, &lock);
    struct operation *o = take(stream);
    if (!o) return;
    execute(o);
    free(o);
  }
}

static void put(struct stream *stream, struct operation o) {
  struct operation *copy = malloc(sizeof o);
  *copy = o;
  copy->next = NULL;
  if (stream->last) stream->last->next = copy;
  else stream->first = copy;
  stream->last = copy;
}

static struct stream *stream_of(struct context *context, void *stream) {
  return stream ? stream : &default_streams[context->device];
}

static int copy(struct context *context, void *to, void *from, size_t bytes, void *stream) {
  struct allocation *target = find(to, bytes), *source = find(from, bytes);
  if (!target || !source) return violate("a copy of memory that is not there, or not pinned");
  if (!reaches(context, target) || !reaches(context, source))
    return violate("a copy of memory that this context does not reach");
  put(stream_of(context, stream), (struct operation){.what = COPY, .context = context, .to = to, .from = from, .bytes = bytes});
  return SUCCESS;
}

// ---- Start, devices, contexts ----

int cuInit(unsigned flags) {
  ENTER("cuInit");
  if (!is_initialized) {
    is_initialized = true;
    FILE *random = fopen("/dev/urandom", "r");
    if (!random || fread(&instance, sizeof instance, 1, random) != 1) return leave(999);
    fclose(random);
    for (int i = 0; i < DEVICES; i++) contexts[i].device = i;
    const char *text = getenv("FAKE_CUDA_FAIL");
    for (int i = 0; text && *text && i < FAULTS_MAX; i++) {
      int read = 0;
      if (sscanf(text, "%63[^:]:%d%n", faults[i].call, &faults[i].code, &read) != 2) break;
      text += read + (text[read] == ',');
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
      {201, "CUDA_ERROR_INVALID_CONTEXT"}, {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
      {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"}, {304, "CUDA_ERROR_OPERATING_SYSTEM"},
      {400, "CUDA_ERROR_INVALID_HANDLE"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {711, "CUDA_ERROR_TOO_MANY_PEERS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"},
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
  *context = current[--depth];
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
  struct allocation *a = vacant();
  if (!bytes) return leave(INVALID_VALUE);
  if (!a || bytes > GPU_BYTES - device_bytes[context->device]) return leave(OUT_OF_MEMORY);
  int file = memfd_create("fake GPU memory", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, bytes)) return leave(OUT_OF_MEMORY);
  *a = (struct allocation){ON_DEVICE, map(file, bytes), bytes, context->device, file};
  if (!a->base) return leave(OUT_OF_MEMORY);
  memset(a->base, 0xA5, bytes);
  live[ALLOCATIONS]++;
  device_bytes[context->device] += bytes;
  *out = (pointer)a->base;
  return leave(SUCCESS);
}

static int end_allocation(void *base, enum kind kind, enum counted counted) {
  for (int i = 0; i < ALLOCATIONS_MAX; i++) {
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
  memset((void *)to, value, bytes);
  return leave(SUCCESS);
}

int cuMemcpyDtoDAsync_v2(pointer to, pointer from, size_t bytes, void *stream) {
  ENTER("cuMemcpyDtoDAsync_v2");
  CONTEXT();
  return leave(copy(context, (void *)to, (void *)from, bytes, stream));
}

int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, void *stream) {
  ENTER("cuMemcpyHtoDAsync_v2");
  CONTEXT();
  return leave(copy(context, (void *)to, (void *)from, bytes, stream));
}

int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, void *stream) {
  ENTER("cuMemcpyDtoHAsync_v2");
  CONTEXT();
  return leave(copy(context, to, (void *)from, bytes, stream));
}

int cuMemcpyPeerAsync(pointer to, void *to_context, pointer from, void *from_context, size_t bytes, void *stream) {
  ENTER("cuMemcpyPeerAsync");
  CONTEXT();
  struct allocation *target = find((void *)to, bytes), *source = find((void *)from, bytes);
  if (!target || !source || !reaches(to_context, target) || !reaches(from_context, source))
    return leave(violate("a copy between peers of memory that is not theirs"));
  // With or without access to each other: then the driver goes by way of the host.
  put(stream_of(context, stream), (struct operation){.what = COPY, .to = (void *)to, .from = (void *)from, .bytes = bytes});
  return leave(SUCCESS);
}

// ---- Streams and events ----

int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  ENTER("cuStreamCreateWithPriority");
  CONTEXT();
  (void)context, (void)flags;
  struct stream *stream = calloc(1, sizeof *stream);
  stream->priority = priority;
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
  if (!*at) return violations++, leave(INVALID_HANDLE);
  struct stream *stream = *at;
  if (stream->first && !lost) violations++, fprintf(stderr, "fake libcuda: a stream ends with work on it\n");
  run_until(stream, NULL, 0);
  *at = stream->next;
  free(stream);
  live[STREAMS]--;
  return leave(failed);
}

int cuStreamSynchronize(void *stream) {
  ENTER("cuStreamSynchronize");
  CONTEXT();
  run_until(stream_of(context, stream), NULL, 0);
  return leave(lost);
}

int cuStreamWaitEvent(void *stream, void *handle, unsigned flags) {
  ENTER("cuStreamWaitEvent");
  CONTEXT();
  (void)flags;
  struct event *event = handle;
  uint64_t number = event->recorded;
  if (event->imported) {
    pthread_mutex_lock(&event->shared->mutex);
    number = event->shared->recorded;
    pthread_mutex_unlock(&event->shared->mutex);
  }
  // `to` names the stream of the record that is waited for: the event may be recorded again.
  put(stream_of(context, stream), (struct operation){.what = WAIT, .event = event, .number = number, .to = (void *)event->stream});
  return leave(SUCCESS);
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
  live[EVENTS]++;
  *out = event;
  return leave(SUCCESS);
}

int cuEventRecord(void *handle, void *stream) {
  ENTER("cuEventRecord");
  CONTEXT();
  struct event *event = handle;
  event->stream = stream_of(context, stream);
  event->recorded++;
  if (event->shared) {
    pthread_mutex_lock(&event->shared->mutex);
    event->shared->recorded = event->recorded;
    pthread_mutex_unlock(&event->shared->mutex);
  }
  put(event->stream, (struct operation){.what = RECORD, .event = event, .number = event->recorded});
  return leave(SUCCESS);
}

int cuEventSynchronize(void *handle) {
  ENTER("cuEventSynchronize");
  CONTEXT();
  (void)context;
  struct event *event = handle;
  wait_for(event, event->stream, event->recorded);
  return leave(lost);
}

int cuEventDestroy_v2(void *handle) {
  ENTER_TO_END("cuEventDestroy_v2");
  struct event *event = handle;
  for (struct stream *stream = streams; stream; stream = stream->next)
    for (struct operation *o = stream->first; o; o = o->next)
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
  struct event *event = handle;
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
  live[MAPPED_EVENTS]++;
  *out = event;
  return leave(SUCCESS);
}

// ---- For tests ----

// The `after`th call of this name from now on fails; each one if `after` is 0. Of the name
// "execution": a copy, when it runs. Code 0 takes all faults of that name back.
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

void fake_cuda_allow_peers(int allowed) { peers_allowed = allowed; }

// A kernel, on the device's default stream, that will have written these bytes.
void fake_cuda_write_later(int device, pointer to, const void *bytes, size_t count) {
  pthread_mutex_lock(&lock);
  void *kept = malloc(count);
  memcpy(kept, bytes, count);
  put(&default_streams[device], (struct operation){.what = KERNEL, .to = (void *)to, .from = kept, .bytes = count});
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
