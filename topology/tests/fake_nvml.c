/* A driver's library for tests: the calls of NVML that Stator makes, answered from a made-up host. What is
 * special about the host is defined on the compiler's command line:
 *   GPUS=2            how many there are
 *   SWITCHED          their NVLinks go to a switch, 18 of them; else 4 from each to the next
 *   NO_NVLINK         there are none
 *   MIG               GPU 0 is divided into two instances, numbered 0 and 2
 *   LOST=1            this GPU fell off its bus
 *   FORBIDDEN=1       this GPU may not be used
 *   OLD_DRIVER        functions of later drivers are missing
 *   INIT_RESULT=9     what initialising comes to
 *   NO_SENSORS        nothing optional is supported
 *   STRANGE           it answers, and what it says makes no sense
 *   NO_SHUTDOWN       its last function is missing
 *   WEDGED="file"     whoever asks for a GPU waits while this file is there; "file.asked" then says that
 *                     someone did, and "file.closed" that the library was given up
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef GPUS
#define GPUS 2
#endif
#ifndef LOST
#define LOST -1
#endif
#ifndef FORBIDDEN
#define FORBIDDEN -1
#endif
#ifndef INIT_RESULT
#define INIT_RESULT 0
#endif

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, GPU_LOST = 15 };

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; } Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type, result;
    union { double real; unsigned u32; unsigned long ulong; unsigned long long u64; } value;
} Field;

/* Handles: GPUs, then the instances of GPU 0. */
#define INSTANCES 2
static char handles[GPUS + 1 + INSTANCES];
typedef char *Device;

static int number(Device device) { return (int)(device - handles); }
static int is_instance(Device device) { return number(device) > GPUS; }
static int gpu_of(Device device) { return is_instance(device) ? 0 : number(device); }

static int check(Device device) {
    if (device < handles || device >= handles + sizeof handles) return INVALID;
    return gpu_of(device) == LOST ? GPU_LOST : OK;
}

static int optional(Device device) {
#ifdef NO_SENSORS
    (void)device;
    return UNSUPPORTED;
#else
    return check(device);
#endif
}

#ifdef WEDGED
static void say(const char *file) {
    FILE *said = fopen(file, "w");
    if (said) fclose(said);
}

static void wait_while_wedged(void) {
    while (access(WEDGED, F_OK) == 0) {
        say(WEDGED ".asked");
        usleep(1000);
    }
}
#else
static void wait_while_wedged(void) {}
#endif

int nvmlInit_v2(void) { return INIT_RESULT; }
#ifndef NO_SHUTDOWN
int nvmlShutdown(void) {
#ifdef WEDGED
    say(WEDGED ".closed");
#endif
    return OK;
}
#endif

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "580.95.05");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = GPUS; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    wait_while_wedged();
    if ((int)index >= GPUS) return INVALID;
    if ((int)index == FORBIDDEN) return NO_PERMISSION;
    *device = handles + index;
    return (int)index == LOST ? GPU_LOST : OK;
}

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) {
    if (is_instance(device)) snprintf(uuid, length, "MIG-fake-%d", number(device) - GPUS);
    else snprintf(uuid, length, "GPU-fake-%d", number(device));
    return check(device);
}

int nvmlDeviceGetName(Device device, char *name, unsigned length) {
#ifdef STRANGE
    memset(name, 0xff, length - 1);
    name[length - 1] = 0;
#else
    snprintf(name, length, "NVIDIA H100 80GB HBM3");
#endif
    return check(device);
}

static void write_pci(int gpu, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x3b + gpu;
    snprintf(pci->address, sizeof pci->address, "00000000:%02X:00.0", pci->bus);
}

int nvmlDeviceGetPciInfo_v3(Device device, Pci *pci) {
    write_pci(gpu_of(device), pci);
    return check(device);
}

static const unsigned long long GIB = 1ull << 30;

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    memory->total = (is_instance(device) ? 40 : 80) * GIB;
    memory->used = 3 * GIB;
    memory->free = memory->total - memory->used;
    return check(device);
}

int nvmlDeviceGetCudaComputeCapability(Device device, int *major, int *minor) {
#ifdef STRANGE
    *major = -9; *minor = -1;
#else
    *major = 9; *minor = 0;
#endif
    return check(device);
}

int nvmlDeviceGetMaxPcieLinkGeneration(Device device, unsigned *generation) {
#ifdef STRANGE
    *generation = 4000000000u;
#else
    *generation = 5;
#endif
    return optional(device);
}

int nvmlDeviceGetMaxPcieLinkWidth(Device device, unsigned *width) {
#ifdef STRANGE
    *width = 0;
#else
    *width = 16;
#endif
    return optional(device);
}

int nvmlDeviceGetUtilizationRates(Device device, Utilization *rates) {
    rates->gpu = 75 - gpu_of(device);
    rates->memory = 10;
#ifdef MIG
    return UNSUPPORTED;
#else
    return optional(device);
#endif
}

int nvmlDeviceGetTemperature(Device device, unsigned sensor, unsigned *celsius) {
    *celsius = 41;
    return sensor ? INVALID : optional(device);
}

int nvmlDeviceGetPowerUsage(Device device, unsigned *milliwatts) {
    *milliwatts = 123500;
    return optional(device);
}

#ifndef OLD_DRIVER

int nvmlDeviceGetMemoryInfo_v2(Device device, Memory2 *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID;
    memory->total = (is_instance(device) ? 40 : 80) * GIB;
    memory->used = 3 * GIB;
    memory->reserved = GIB / 2;
    memory->free = memory->total - memory->used - memory->reserved;
    return check(device);
}

int nvmlDeviceGetPcieThroughput(Device device, unsigned counter, unsigned *kilobytes) {
    *kilobytes = counter ? 2000 : 1000;
    return optional(device);
}

int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
#ifdef MIG
    *current = *pending = gpu_of(device) == 0;
#else
    *current = *pending = 0;
#endif
    return optional(device);
}

int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    *count = 7;
    return check(device);
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *instance) {
    if (number(device) != 0) return INVALID;
    if (index != 0 && index != 2) return NOT_FOUND;
    *instance = handles + GPUS + 1 + index / 2;
    return OK;
}

int nvmlDeviceGetTopologyCommonAncestor(Device one, Device other, unsigned *level) {
#ifdef STRANGE
    *level = 77;
#else
    *level = gpu_of(one) / 4 == gpu_of(other) / 4 ? 10 : 50;
#endif
    return check(one) ? check(one) : check(other);
}

#ifdef NO_NVLINK
enum { LINKS = 0 };
#elif defined SWITCHED
enum { LINKS = 18 };
#else
enum { LINKS = 4 };
#endif

int nvmlDeviceGetNvLinkState(Device device, unsigned link, unsigned *state) {
    if (LINKS == 0) return UNSUPPORTED;
    if (link >= 18) return INVALID;
    *state = (int)link < LINKS;
    return check(device);
}

int nvmlDeviceGetNvLinkVersion(Device device, unsigned link, unsigned *version) {
    *version = 6;
    return (int)link < LINKS ? check(device) : INVALID;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device device, unsigned link, Pci *pci) {
    int next = gpu_of(device) + 1;
    write_pci(next < GPUS ? next : 0, pci);
    return (int)link < LINKS ? check(device) : INVALID;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(Device device, unsigned link, unsigned *kind) {
#ifdef SWITCHED
    *kind = 2;
#else
    *kind = 0;
#endif
    return (int)link < LINKS ? check(device) : INVALID;
}

int nvmlDeviceGetFieldValues(Device device, int count, Field *fields) {
    for (int at = 0; at < count; at++) {
        Field *field = &fields[at];
        field->result = LINKS == 0 ? UNSUPPORTED : OK;
#ifdef STRANGE
        field->type = 99;
        continue;
#endif
        if (field->field == 164 && (int)field->scope >= 0 && (int)field->scope < LINKS) {
            field->type = 1;
            field->value.u32 = 26562;
        } else if ((field->field == 138 || field->field == 139) && field->scope == ~0u) {
            field->type = 3;
            field->value.u64 = field->field == 138 ? 4096 : 8192;
        } else {
            field->result = UNSUPPORTED;
        }
    }
    return check(device);
}

#endif
