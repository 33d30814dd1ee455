/* Stands in the driver's place: libnvidia-ml.so.1 with known power. tests/doubles/nvml.py describes the scenario. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GPUS 8
#define SEGMENTS 4096
#define ENTRIES 64
#define SUCCESS 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define TOO_SMALL 7
#define FOREVER 1e18

typedef struct { double from_s, power_w, slope_w_s, before_j; } Segment;
typedef struct {
    char name[96], uuid[96], migs[7][96];
    int n_migs, architecture, has_counter, mig_mode, n_segments, n_pids;
    unsigned pids[ENTRIES];
    double latch_s, phase_s, averaging_s, first_mj, limit_w, scale, frozen_from_s, reset_s;
    double poll_gap_s, last_read_s, lost_j, shown_mj;
    Segment segments[SEGMENTS];
} Gpu;
typedef struct { char symbol[96]; int gpu, code; double from_s, until_s; } Failure;
typedef struct { int gpu; double from_s, until_s; unsigned long long mask; } Throttle;
typedef struct { char symbol[96]; long count; } Calls;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Gpu gpus[GPUS];
static Failure failures[ENTRIES];
static Throttle throttles[ENTRIES];
static Calls calls[ENTRIES];
static int n_gpus, n_failures, n_throttles, n_calls, loaded, manual;
static double epoch_s, manual_s;
static char driver[80] = "550.54.15";

static double monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double double_now(void) { return manual ? manual_s : monotonic_s() - epoch_s; }

static double power_at(const Gpu *gpu, double at_s) {
    const Segment *found = &gpu->segments[0];
    for (int i = 0; i < gpu->n_segments && gpu->segments[i].from_s <= at_s; i++) found = &gpu->segments[i];
    return found->power_w + found->slope_w_s * (at_s - found->from_s);
}

static double energy_at(const Gpu *gpu, double at_s) {
    const Segment *found = &gpu->segments[0];
    for (int i = 0; i < gpu->n_segments && gpu->segments[i].from_s <= at_s; i++) found = &gpu->segments[i];
    double dt = at_s - found->from_s;
    return found->before_j + dt * (found->power_w + found->slope_w_s * dt / 2);
}

static void add_segment(Gpu *gpu, double from_s, double power_w, double slope_w_s) {
    if (gpu->n_segments == SEGMENTS) return;
    double before_j = gpu->n_segments ? energy_at(gpu, from_s) : 0.0;
    gpu->segments[gpu->n_segments++] = (Segment){from_s, power_w, slope_w_s, before_j};
}

static double latched(const Gpu *gpu, double at_s) {
    return floor((at_s - gpu->phase_s) / gpu->latch_s + 1e-9) * gpu->latch_s + gpu->phase_s;
}

/* The exact energy of a GPU since time 0, in J: the truth. */
double double_energy_j(int gpu, double at_s) { return energy_at(&gpus[gpu], at_s); }
void double_advance(double seconds) { manual_s += seconds; }
void double_set(double at_s) { manual_s = at_s; }
long double_calls(const char *symbol) {
    for (int i = 0; i < n_calls; i++) if (!strcmp(calls[i].symbol, symbol)) return calls[i].count;
    return 0;
}

int double_load(const char *path) {
    FILE *file = fopen(path, "r");
    char line[512], word[32], text[96], more[400];
    pthread_mutex_lock(&lock);
    memset(gpus, 0, sizeof gpus);
    n_gpus = n_failures = n_throttles = n_calls = manual = 0;
    manual_s = 0;
    epoch_s = monotonic_s();
    loaded = 1;
    while (file && fgets(line, sizeof line, file)) {
        double a, b, c;
        int gpu, code;
        unsigned long long mask;
        if (sscanf(line, "%31s", word) != 1 || word[0] == '#') continue;
        if (!strcmp(word, "clock")) manual = strstr(line, "manual") != NULL;
        else if (!strcmp(word, "epoch")) sscanf(line, "%*s %lf", &epoch_s);
        else if (!strcmp(word, "driver")) sscanf(line, "%*s %79s", driver);
        else if (!strcmp(word, "gpu") && n_gpus < GPUS) {
            Gpu *made = &gpus[n_gpus];
            sscanf(line, "%*s %95s %399[^\n]", made->name, more);
            for (char *space = made->name; *space; space++) if (*space == '_') *space = ' ';
            snprintf(made->uuid, sizeof made->uuid, "GPU-%08d-0000-0000-0000-000000000000", n_gpus);
            made->architecture = 8; made->has_counter = 1; made->latch_s = 0.1; made->averaging_s = 0.025;
            made->first_mj = 123456789; made->limit_w = 400; made->scale = 1; made->frozen_from_s = FOREVER;
            made->reset_s = FOREVER; made->last_read_s = -FOREVER;
            for (char *option = strtok(more, " \n"); option; option = strtok(NULL, " \n")) {
                char *value = strchr(option, '=');
                if (!value) continue;
                *value++ = 0;
                if (!strcmp(option, "uuid")) snprintf(made->uuid, sizeof made->uuid, "%s", value);
                else if (!strcmp(option, "arch")) made->architecture = atoi(value);
                else if (!strcmp(option, "latch_ms")) made->latch_s = atof(value) / 1e3;
                else if (!strcmp(option, "phase_ms")) made->phase_s = atof(value) / 1e3;
                else if (!strcmp(option, "averaging_ms")) made->averaging_s = atof(value) / 1e3;
                else if (!strcmp(option, "first_mj")) made->first_mj = atof(value);
                else if (!strcmp(option, "limit_w")) made->limit_w = atof(value);
                else if (!strcmp(option, "counter")) made->has_counter = atoi(value);
                else if (!strcmp(option, "mig")) made->mig_mode = atoi(value);
            }
            more[0] = 0;
            n_gpus++;
        }
        else if (sscanf(line, "power %d %lf %lf", &gpu, &a, &b) == 3) add_segment(&gpus[gpu], a, b, 0);
        else if (sscanf(line, "ramp %d %lf %lf %lf", &gpu, &a, &b, &c) == 4) {
            double from_w = power_at(&gpus[gpu], a);
            add_segment(&gpus[gpu], a, from_w, (c - from_w) / (b - a));
            add_segment(&gpus[gpu], b, c, 0);
        }
        else if (sscanf(line, "error %95s %d %d %lf %lf", text, &gpu, &code, &a, &b) == 5 && n_failures < ENTRIES) {
            Failure *made = &failures[n_failures++];
            snprintf(made->symbol, sizeof made->symbol, "%s", text);
            made->gpu = gpu; made->code = code; made->from_s = a; made->until_s = b;
        }
        else if (sscanf(line, "reset %d %lf", &gpu, &a) == 2) gpus[gpu].reset_s = a;
        else if (sscanf(line, "frozen %d %lf", &gpu, &a) == 2) gpus[gpu].frozen_from_s = a;
        else if (sscanf(line, "scale %d %lf", &gpu, &a) == 2) gpus[gpu].scale = a;
        else if (sscanf(line, "pollloss %d %lf", &gpu, &a) == 2) gpus[gpu].poll_gap_s = a;
        else if (sscanf(line, "process %d %d", &gpu, &code) == 2) gpus[gpu].pids[gpus[gpu].n_pids++] = (unsigned)code;
        else if (sscanf(line, "migdevice %d %95s", &gpu, text) == 2) strcpy(gpus[gpu].migs[gpus[gpu].n_migs++], text);
        else if (sscanf(line, "throttle %d %lf %lf %llx", &gpu, &a, &b, &mask) == 4)
            throttles[n_throttles++] = (Throttle){gpu, a, b, mask};
        else { fprintf(stderr, "nvml double: cannot read %s", line); n_gpus = 0; break; }
    }
    if (file) fclose(file);
    pthread_mutex_unlock(&lock);
    return n_gpus;
}

static int answer(const char *symbol, int gpu) {
    if (!loaded) double_load(getenv("NVML_DOUBLE_SCENARIO") ? getenv("NVML_DOUBLE_SCENARIO") : "");
    int i;
    pthread_mutex_lock(&lock);
    for (i = 0; i < n_calls && strcmp(calls[i].symbol, symbol); i++) { }
    if (i == n_calls && n_calls < ENTRIES) { strcpy(calls[n_calls].symbol, symbol); calls[n_calls++].count = 0; }
    if (i < ENTRIES) calls[i].count++;
    pthread_mutex_unlock(&lock);
    double now_s = double_now();
    for (i = 0; i < n_failures; i++)
        if (!strcmp(failures[i].symbol, symbol) && (failures[i].gpu < 0 || failures[i].gpu == gpu) &&
            now_s >= failures[i].from_s && now_s < failures[i].until_s) return failures[i].code;
    return SUCCESS;
}

#define MIG_BASE 1000
static int gpu_of(void *device) {
    long number = (long)device;
    return (int)(number >= MIG_BASE ? (number - MIG_BASE) / 16 : number - 1);
}
static int is_mig(void *device) { return (long)device >= MIG_BASE; }
#define ENTER(gpu) do { int code = answer(__func__, gpu); if (code) return code; } while (0)
#define ENTER_BOARD(device) ENTER(gpu_of(device)); if (is_mig(device)) return NOT_SUPPORTED

int nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(-1); return n_gpus ? SUCCESS : 9; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { ENTER(-1); return SUCCESS; }
const char *nvmlErrorString(int code) {
    switch (code) {
        case 3: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case 6: return "Not Found";
        case 9: return "Driver Not Loaded";
        case 13: return "Function Not Found";
        case 15: return "GPU is lost";
        case 18: return "Driver/library version mismatch";
        default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *text, unsigned length) { ENTER(-1); snprintf(text, length, "%s", driver); return SUCCESS; }
int nvmlSystemGetNVMLVersion(char *text, unsigned length) { ENTER(-1); snprintf(text, length, "12.%s", driver); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { ENTER(-1); *count = (unsigned)n_gpus; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    ENTER((int)index);
    if (index >= (unsigned)n_gpus) return INVALID;
    *device = (void *)(long)(index + 1);
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    ENTER(-1);
    for (long i = 0; i < n_gpus; i++) if (!strcmp(gpus[i].uuid, uuid)) { *device = (void *)(i + 1); return SUCCESS; }
    return NOT_FOUND;
}
int nvmlDeviceGetName(void *device, char *text, unsigned length) { ENTER(gpu_of(device)); snprintf(text, length, "%s", gpus[gpu_of(device)].name); return SUCCESS; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    ENTER(gpu_of(device));
    const Gpu *gpu = &gpus[gpu_of(device)];
    snprintf(text, length, "%s", is_mig(device) ? gpu->migs[((long)device - MIG_BASE) % 16] : gpu->uuid);
    return SUCCESS;
}
int nvmlDeviceGetIndex(void *device, unsigned *index) { ENTER(gpu_of(device)); *index = (unsigned)gpu_of(device); return SUCCESS; }
int nvmlDeviceGetArchitecture(void *device, unsigned *architecture) { ENTER(gpu_of(device)); *architecture = (unsigned)gpus[gpu_of(device)].architecture; return SUCCESS; }
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    ENTER(gpu_of(device));
    if (gpus[gpu_of(device)].architecture < 7) return NOT_SUPPORTED;
    *current = *pending = (unsigned)gpus[gpu_of(device)].mig_mode;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { ENTER(gpu_of(device)); *count = (unsigned)gpus[gpu_of(device)].n_migs; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **mig) {
    ENTER(gpu_of(device));
    if (index >= (unsigned)gpus[gpu_of(device)].n_migs) return NOT_FOUND;
    *mig = (void *)(long)(MIG_BASE + 16 * gpu_of(device) + (int)index);
    return SUCCESS;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *mig, void **device) { ENTER(gpu_of(mig)); *device = (void *)(long)(gpu_of(mig) + 1); return SUCCESS; }

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) { ENTER(gpu_of(device)); *memory = (Memory){40ull << 30, 40ull << 30, 0}; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *limit_mw) { ENTER_BOARD(device); *limit_mw = (unsigned)(1e3 * gpus[gpu_of(device)].limit_w); return SUCCESS; }
int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *limit_mw) { return nvmlDeviceGetEnforcedPowerLimit(device, limit_mw); }
int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *low_mw, unsigned *high_mw) { *low_mw = 100000; return nvmlDeviceGetEnforcedPowerLimit(device, high_mw); }

static unsigned long long counter_mj(Gpu *gpu) {
    double now_s = double_now();
    double at_s = latched(gpu, fmin(now_s, gpu->frozen_from_s));
    if (at_s < 0) at_s = 0;
    if (gpu->poll_gap_s > 0) {
        double from_s = fmax(gpu->last_read_s, now_s - gpu->poll_gap_s);
        gpu->lost_j += energy_at(gpu, now_s) - energy_at(gpu, fmax(from_s, 0));
        gpu->last_read_s = now_s;
    }
    double energy_j = energy_at(gpu, at_s) - gpu->lost_j;
    if (at_s >= gpu->reset_s) return (unsigned long long)(1e3 * gpu->scale * (energy_at(gpu, at_s) - energy_at(gpu, gpu->reset_s)));
    gpu->shown_mj = fmax(gpu->shown_mj, gpu->first_mj + 1e3 * gpu->scale * energy_j);  /* it never runs back */
    return (unsigned long long)gpu->shown_mj;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy_mj) {
    ENTER_BOARD(device);
    Gpu *gpu = &gpus[gpu_of(device)];
    if (!gpu->has_counter) return NOT_SUPPORTED;
    pthread_mutex_lock(&lock);
    *energy_mj = counter_mj(gpu);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
static unsigned power_mw(const Gpu *gpu, double averaging_s) {
    double at_s = latched(gpu, double_now());
    double from_s = at_s - averaging_s;
    if (from_s < 0) return (unsigned)(1e3 * power_at(gpu, at_s));
    return (unsigned)(1e3 * (averaging_s > 0 ? (energy_at(gpu, at_s) - energy_at(gpu, from_s)) / averaging_s : power_at(gpu, at_s)));
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *power) { ENTER_BOARD(device); *power = power_mw(&gpus[gpu_of(device)], gpus[gpu_of(device)].averaging_s); return SUCCESS; }

typedef struct { unsigned field, scope; int64_t timestamp, latency; unsigned type, code; union { double d; unsigned u; unsigned long long ull; } value; } Field;
int nvmlDeviceGetFieldValues(void *device, int count, Field *fields) {
    ENTER(gpu_of(device));
    const Gpu *gpu = &gpus[gpu_of(device)];
    for (int i = 0; i < count; i++) {
        fields[i].code = is_mig(device) ? NOT_SUPPORTED : SUCCESS;
        fields[i].type = 1;
        if (fields[i].code) continue;
        if (gpu->architecture < 7 || answer("field", gpu_of(device))) fields[i].code = NOT_SUPPORTED;
        else if (fields[i].field == 186) fields[i].value.u = power_mw(gpu, 0.025);
        else if (fields[i].field == 185) fields[i].value.u = power_mw(gpu, 1.0);
        else fields[i].code = NOT_SUPPORTED;
    }
    return SUCCESS;
}
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    ENTER(gpu_of(device));
    const Gpu *gpu = &gpus[gpu_of(device)];
    unsigned room = *count;
    *count = (unsigned)gpu->n_pids;
    if (!gpu->n_pids) return SUCCESS;
    if (room < *count || !processes) return TOO_SMALL;
    for (int i = 0; i < gpu->n_pids; i++) processes[i] = (Process){gpu->pids[i], 1 << 30, 0, 0};
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *mask) {
    ENTER_BOARD(device);
    double now_s = double_now();
    *mask = 0;
    for (int i = 0; i < n_throttles; i++)
        if (throttles[i].gpu == gpu_of(device) && now_s >= throttles[i].from_s && now_s < throttles[i].until_s) *mask |= throttles[i].mask;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *mask) { return nvmlDeviceGetCurrentClocksEventReasons(device, mask); }
