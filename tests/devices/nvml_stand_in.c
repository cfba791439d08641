/* A library that answers like NVML, from a text file of `key value` lines named by NVML_STAND_IN.
 *
 * Keys of a GPU are `INDEX.name`, else `*.name` for all. A value `!N` is NVML's error N, `~` a call that never comes back,
 * `@` one that kills the process, `0x..` after `hex:` raw bytes. What has no key is not supported (3). The file is read at
 * each call, so that answers change while a program runs. Events are lines `INDEX XID` in the pipe NVML_STAND_IN_EVENTS.
 * Compiled with -DOLD_DRIVER it has functions by their older names, and lacks some.
 */
#ifdef OLD_DRIVER
#define nvmlDeviceGetCount_v2 nvmlDeviceGetCount
#define nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByIndex
#define nvmlSystemGetCudaDriverVersion_v2 nvmlSystemGetCudaDriverVersion
#define nvmlEventSetWait_v2 nvmlEventSetWait
#endif
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } pci_info;
typedef struct { void *gpu; u32 rest[4]; } instance_info;
typedef struct { void *gpu; u64 type, data; u32 gi, ci; } event_data;

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMED_OUT = 10 };
#define TEXT 4096

static int find(const char *key, char *value) {
    const char *path = getenv("NVML_STAND_IN");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[TEXT];
    int found = 0;
    size_t length = strlen(key);
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == ' ') {
            strcpy(value, line + length + 1);
            found = 1;
        }
    }
    if (file) fclose(file);
    return found;
}

/* The value of a key of one GPU (or of the node, for index -1): 0, or the error that it stands for. */
static int ask(int index, const char *name, char *value) {
    char key[256];
    int found;
    if (index < 0) {
        found = find(name, value);
    } else {
        snprintf(key, sizeof key, "%d.%s", index, name);
        if (!(found = find(key, value))) {
            snprintf(key, sizeof key, "*.%s", name);
            found = find(key, value);
        }
    }
    if (!found) return NOT_SUPPORTED;
    if (value[0] == '~') for (;;) pause();
    if (value[0] == '@') abort();
    return value[0] == '!' ? atoi(value + 1) : OK;
}

static int text(int index, const char *name, char *out, u32 size) {
    char value[TEXT];
    int error = ask(index, name, value);
    if (error) return error;
    if (!strncmp(value, "hex:", 4)) {
        u32 n = 0;
        for (char *at = value + 4; at[0] && at[1] && n + 1 < size; at += 2, n++) {
            char digits[3] = {at[0], at[1], 0};
            out[n] = (char)strtol(digits, NULL, 16);
        }
        out[n] = 0;
    } else {
        snprintf(out, size, "%s", value);
    }
    return OK;
}

static int number(int index, const char *name, u64 *out) {
    char value[TEXT];
    int error = ask(index, name, value);
    if (!error) *out = (u64)strtoll(value, NULL, 0);
    return error;
}

static int small(int index, const char *name, u32 *out) {
    u64 value;
    int error = number(index, name, &value);
    if (!error) *out = (u32)value;
    return error;
}

static int list(int index, const char *name, u32 *count, u32 *out) {
    char value[TEXT];
    u32 n = 0;
    int error = ask(index, name, value);
    if (error) return error;
    for (char *part = strtok(value, ","); part; part = strtok(NULL, ",")) {
        if (out && n < *count) out[n] = (u32)strtoll(part, NULL, 0);
        n++;
    }
    error = n && (!out || *count < n) ? TOO_SMALL : OK;
    *count = n;
    return error;
}

/* Handles: a GPU is its index + 1, a MIG device 1000 * (GPU + 1) + its index + 1, a GPU instance the same on 2000000. */
static int at(void *handle) { return (int)(intptr_t)handle - 1; }
static int parse_pci(const char *value, pci_info *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->legacy, sizeof out->legacy, "%s", value);
    snprintf(out->bus_id, sizeof out->bus_id, "0000%s", value);
    if (sscanf(value, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3)
        snprintf(out->bus_id, sizeof out->bus_id, "%s", value);
    return OK;
}

int nvmlInit_v2(void) { char value[TEXT]; return find("init", value) ? ask(-1, "init", value) : OK; }
#ifndef OLD_DRIVER
int nvmlInitWithFlags(u32 flags) { (void)flags; return nvmlInit_v2(); }
#endif
int nvmlShutdown(void) { return OK; }
#ifndef OLD_DRIVER
const char *nvmlErrorString(int code) { static char t[32]; snprintf(t, sizeof t, "error %d", code); return t; }
#endif
int nvmlSystemGetDriverVersion(char *out, u32 size) { return text(-1, "driver", out, size); }
int nvmlSystemGetNVMLVersion(char *out, u32 size) { return text(-1, "nvml", out, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { return small(-1, "cuda", (u32 *)out); }
int nvmlDeviceGetCount_v2(u32 *out) { return small(-1, "count", out); }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **out) {
    char v[TEXT];
    int error = ask((int)index, "handle", v);
    *out = (void *)(intptr_t)(index + 1);
    return error == NOT_SUPPORTED ? OK : error;
}
static int pci(void *gpu, pci_info *out) {
    char value[64];
    u32 id;
    int error = text(at(gpu), "pci", value, sizeof value);
    if (error) return error;
    parse_pci(value, out);
    if (!small(at(gpu), "deviceId", &id)) out->id = id;
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetPciInfo_v3(void *gpu, pci_info *out) { return pci(gpu, out); }
#endif
int nvmlDeviceGetPciInfo(void *gpu, pci_info *out) {
    int error = pci(gpu, out);
    memset(out->bus_id, 0, sizeof out->bus_id); /* the older structure ends before it */
    return error;
}
int nvmlDeviceGetName(void *gpu, char *out, u32 size) { return text(at(gpu), "name", out, size); }
int nvmlDeviceGetUUID(void *gpu, char *out, u32 size) {
    if (at(gpu) < 999) return text(at(gpu), "uuid", out, size);
    snprintf(out, size, "MIG-%08d-0000-0000-0000-000000000000", at(gpu));
    return OK;
}
int nvmlDeviceGetSerial(void *gpu, char *out, u32 size) { return text(at(gpu), "serial", out, size); }
int nvmlDeviceGetModuleId(void *gpu, u32 *out) { return small(at(gpu), "moduleId", out); }
int nvmlDeviceGetArchitecture(void *gpu, u32 *out) { return small(at(gpu), "architecture", out); }
int nvmlDeviceGetVirtualizationMode(void *gpu, u32 *out) { return small(at(gpu), "virtualization", out); }
int nvmlDeviceGetRetiredPagesPendingStatus(void *gpu, u32 *out) { return small(at(gpu), "retiredPages", out); }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    char value[TEXT];
    int error = ask(at(gpu), "capability", value);
    if (!error && sscanf(value, "%d.%d", major, minor) != 2) return 999;
    return error;
}
int nvmlDeviceGetMemoryInfo(void *gpu, u64 *out) {
    u64 used = 0;
    int error = number(at(gpu), "memory", &out[0]);
    number(at(gpu), "used", &used);
    out[1] = out[0] - used;
    out[2] = used;
    return error;
}
int nvmlDeviceGetMigMode(void *gpu, u32 *current, u32 *pending) {
    int error = small(at(gpu), "mig", current);
    *pending = *current;
    return error;
}
int nvmlDeviceGetRemappedRows(void *gpu, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
    *corrected = *uncorrected = *pending = 0;
    return small(at(gpu), "remapFailed", failed);
}
int nvmlDeviceGetMemoryAffinity(void *gpu, u32 size, u64 *out, u32 scope) {
    (void)scope;
    memset(out, 0, size * sizeof *out);
    return number(at(gpu), "memoryAffinity", out);
}
int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, u32 *out) {
    char name[32];
    snprintf(name, sizeof name, "ancestor.%d", at(other));
    int error = small(at(one), name, out);
    return error == NOT_SUPPORTED ? small(at(one), "ancestor", out) : error;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetGpuFabricInfoV(void *gpu, unsigned char *out) {
    char value[TEXT], digits[3] = {0};
    u32 state, clique;
    char cluster[64];
    int error = ask(at(gpu), "fabric", value);
    if (error) return error;
    if (sscanf(value, "%u %u %32s", &state, &clique, cluster) != 3) return 999;
    for (int i = 0; i < 16; i++) {
        memcpy(digits, cluster + 2 * i, 2);
        out[4 + i] = (unsigned char)strtol(digits, NULL, 16);
    }
    memset(out + 20, 0, 4);
    memcpy(out + 24, &clique, 4);
    out[28] = (unsigned char)state;
    return OK;
}
#endif
int nvmlDeviceGetNvLinkState(void *gpu, u32 link, u32 *out) {
    u32 links;
    int error = small(at(gpu), "links", &links);
    *out = 1;
    return error ? error : link < links ? OK : INVALID;
}
static int link_end(void *gpu, u32 link, const char *what, char *out, u32 size) {
    char name[64];
    snprintf(name, sizeof name, "link.%u.%s", link, what);
    int error = text(at(gpu), name, out, size);
    snprintf(name, sizeof name, "link.%s", what);
    return error == NOT_SUPPORTED ? text(at(gpu), name, out, size) : error;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *gpu, u32 link, pci_info *out) {
    char value[64];
    int error = link_end(gpu, link, "pci", value, sizeof value);
    return error ? error : parse_pci(value, out);
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void *gpu, u32 link, u32 *out) {
    char value[64];
    int error = link_end(gpu, link, "type", value, sizeof value);
    if (!error) *out = (u32)atoi(value);
    return error;
}

/* MIG: `profile.N` is `ID MOST SIZE START,START NAME`, `instances.ID` of a profile is `INSTANCE:START,...`. */
typedef struct { u32 version, id, p2p, slices, most, a, b, c, d, e, f; u64 memory; char name[96]; } profile_info;
typedef struct { u32 start, size; } placement;
static int profile(int gpu, u32 wanted, int by_id, profile_info *out, u32 *size, char *starts) {
    for (u32 n = by_id ? 0 : wanted; n < (by_id ? 32 : wanted + 1); n++) {
        char name[32], value[TEXT], label[96];
        u32 id, most;
        snprintf(name, sizeof name, "profile.%u", n);
        int error = ask(gpu, name, value);
        if (error == NOT_SUPPORTED && by_id) continue;
        if (error) return error;
        if (sscanf(value, "%u %u %u %63s %95[^\n]", &id, &most, size, starts, label) != 5) return 999;
        if (by_id && id != wanted) continue;
        out->id = id;
        out->most = most;
        snprintf(out->name, sizeof out->name, "%s", label);
        return OK;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetGpuInstanceProfileInfoV(void *gpu, u32 which, profile_info *out) {
    char starts[64];
    u32 size;
    return profile(at(gpu), which, 0, out, &size, starts);
}
int nvmlDeviceGetGpuInstancePossiblePlacements_v2(void *gpu, u32 id, placement *out, u32 *count) {
    profile_info info;
    char starts[64];
    u32 size, n = 0;
    int error = profile(at(gpu), id, 1, &info, &size, starts);
    if (error) return error;
    for (char *part = strtok(starts, ","); part; part = strtok(NULL, ","), n++)
        if (out) out[n] = (placement){(u32)atoi(part), size};
    *count = n;
    return OK;
}
int nvmlDeviceGetGpuInstances(void *gpu, u32 id, void **out, u32 *count) {
    char name[32], value[TEXT];
    u32 n = 0;
    snprintf(name, sizeof name, "instances.%u", id);
    int error = ask(at(gpu), name, value);
    if (error == NOT_SUPPORTED) value[0] = 0;
    else if (error) return error;
    for (char *part = strtok(value, ","); part; part = strtok(NULL, ","), n++) {
        u32 *info = malloc(5 * sizeof *info);
        profile_info about;
        char starts[64];
        if (sscanf(part, "%u:%u", &info[0], &info[2]) != 2) return 999;
        info[1] = id;
        profile(at(gpu), id, 1, &about, &info[3], starts);
        out[n] = info;
    }
    *count = n;
    return OK;
}
int nvmlGpuInstanceGetInfo(u32 *instance, instance_info *out) {
    memcpy(out->rest, instance, sizeof out->rest);
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *gpu, u32 *out) { (void)gpu; *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *gpu, u32 index, void **out) {
    u32 ids[16], count = 16;
    int error = list(at(gpu), "migDevices", &count, ids);
    if (error || index >= count) return NOT_FOUND;
    *out = (void *)(intptr_t)(1000 * (at(gpu) + 1) + (int)ids[index] + 1);
    return OK;
}
int nvmlDeviceGetGpuInstanceId(void *device, u32 *out) { *out = (u32)(at(device) % 1000); return OK; }

int nvmlDeviceGetSupportedVgpus(void *gpu, u32 *count, u32 *out) { return list(at(gpu), "vgpu.supported", count, out); }
int nvmlDeviceGetCreatableVgpus(void *gpu, u32 *count, u32 *out) { return list(at(gpu), "vgpu.creatable", count, out); }
int nvmlDeviceGetActiveVgpus(void *gpu, u32 *count, u32 *out) { return list(at(gpu), "vgpu.active", count, out); }
int nvmlVgpuInstanceGetType(u32 instance, u32 *out) { *out = instance; return OK; }
int nvmlVgpuTypeGetName(u32 type, char *out, u32 *size) {
    char name[32];
    snprintf(name, sizeof name, "vgpu.%u", type);
    return text(-1, name, out, *size);
}

int nvmlDeviceGetPowerUsage(void *gpu, u32 *out) { return small(at(gpu), "power", out); }
int nvmlDeviceGetTemperature(void *gpu, u32 sensor, u32 *out) { (void)sensor; return small(at(gpu), "temperature", out); }
int nvmlDeviceGetClockInfo(void *gpu, u32 clock, u32 *out) { (void)clock; return small(at(gpu), "clock", out); }
int nvmlDeviceGetUtilizationRates(void *gpu, u32 *out) { out[1] = 0; return small(at(gpu), "utilization", out); }

int nvmlEventSetCreate(void **out) {
    const char *path = getenv("NVML_STAND_IN_EVENTS");
    if (!path) return NOT_SUPPORTED;
    *out = (void *)(intptr_t)(open(path, O_RDWR) + 1);
    return OK;
}
int nvmlEventSetFree(void *set) { close(at(set)); return OK; }
int nvmlDeviceGetSupportedEventTypes(void *gpu, u64 *out) { (void)gpu; *out = 8; return OK; }
int nvmlDeviceRegisterEvents(void *gpu, u64 types, void *set) { (void)gpu; (void)types; (void)set; return OK; }
int nvmlEventSetWait_v2(void *set, event_data *out, u32 timeout_ms) {
    struct pollfd wait = {at(set), POLLIN, 0};
    char line[64];
    int index;
    size_t n = 0;
    if (poll(&wait, 1, (int)timeout_ms) <= 0) return TIMED_OUT;
    while (n + 1 < sizeof line && read(at(set), line + n, 1) == 1 && line[n] != '\n') n++;
    line[n] = 0;
    if (sscanf(line, "%d %llu", &index, &out->data) != 2) return 999;
    out->gpu = (void *)(intptr_t)(index + 1);
    out->type = 8;
    return OK;
}
