// Times one model in one engine, as mf_deploy/benchmarks/protocol.py says, and tells the host line by line:
//
//   pid N | engine VERSION | rss_before BYTES | load MS | first MS | logits INDEX VALUE... (one line a probe)
//   warmup MS (one line a run) | s MS AT_S (one line a timed run) | peak BYTES | done
//   error TEXT (and the process ends)
//
// Arguments are KEY=VALUE, all of them required. The file of inputs holds whole input tensors, one after the
// other: the first is timed, the others are the probe.
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

#define FLUSH_S 0.2

void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    printf("error ");
    vprintf(format, values);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

void *open_library(const char *name) {
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("%s", dlerror());
    return library;
}

void *find_function(void *library, const char *name) {
    void *function = dlsym(library, name);
    if (!function) fail("the engine has no function %s", name);
    return function;
}

void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) fail("not enough memory");
    return memset(memory, 0, bytes);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static const char *text(char **arguments, const char *key) {
    size_t length = strlen(key);
    for (; *arguments; arguments++)
        if (!strncmp(*arguments, key, length) && (*arguments)[length] == '=') return *arguments + length + 1;
    fail("%s=... is missing", key);
}

static double number(char **arguments, const char *key) {
    char *end;
    const char *value = text(arguments, key);
    double parsed = strtod(value, &end);
    if (end == value || *end || !(parsed >= 0)) fail("bad %s=%s", key, value);
    return parsed;
}

// "1,3,224,224" into shape and rank; returns the number of elements.
static size_t read_shape(const char *value, int64_t *shape, size_t *rank) {
    size_t count = 1;
    char *end = (char *)value;
    for (*rank = 0; *rank < MAX_RANK; value = end + 1) {
        long long size = strtoll(value, &end, 10);
        if (end == value || size < 1 || size > 1 << 28) fail("bad shape");
        shape[(*rank)++] = size;
        count *= (size_t)size;
        if (!*end) return count;
    }
    fail("more than %d dimensions", MAX_RANK);
}

static Model describe(char **arguments) {
    Model model = {.path = text(arguments, "model"),
                   .threads = (int)number(arguments, "threads"),
                   .input_name = text(arguments, "input_name"),
                   .input_type = text(arguments, "input_type"),
                   .output_name = text(arguments, "output_name")};
    size_t bytes = !strcmp(model.input_type, "float32") ? 4 : !strcmp(model.input_type, "float16") ? 2 : 1;
    model.input_bytes = bytes * read_shape(text(arguments, "input_shape"), model.input_shape, &model.input_rank);
    model.output_count = read_shape(text(arguments, "output_shape"), model.output_shape, &model.output_rank);
    return model;
}

// Whole tensors in the file; their number goes to count.
static char *read_inputs(const char *path, size_t tensor_bytes, size_t *count) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail("cannot read %s", path);
    size_t size = (size_t)ftell(file);
    char *bytes = allocate(size);
    rewind(file);
    *count = size / tensor_bytes;
    if (!*count || size % tensor_bytes || fread(bytes, 1, size, file) != size)
        fail("%s does not hold whole inputs of %zu bytes", path, tensor_bytes);
    fclose(file);
    return bytes;
}

// A number of kB in /proc/self/status, in bytes.
static long long memory_bytes(const char *field) {
    char line[256];
    long long kilobytes = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, field, strlen(field))) kilobytes = atoll(line + strlen(field) + 1);
    if (status) fclose(status);
    return kilobytes * 1024;
}

static double run_ms(const Engine *engine) {
    double start = now_s();
    engine->run();
    return 1e3 * (now_s() - start);
}

static void probe(const Engine *engine, const Model *model, const char *inputs, size_t count) {
    float *logits = allocate(model->output_count * sizeof(float));
    for (size_t index = 1; index < count; index++) {
        engine->set_input(inputs + index * model->input_bytes);
        engine->run();
        engine->get_output(logits);
        printf("logits %zu", index - 1);
        for (size_t i = 0; i < model->output_count; i++) printf(" %.9g", (double)logits[i]);
        printf("\n");
    }
    fflush(stdout);
    free(logits);
}

// Run until there were so many runs and so many seconds; a line goes out for each, a few times a second. Ends
// the process when nobody listens any more.
static void repeat(const Engine *engine, const char *format, double runs, double seconds) {
    double start = now_s(), flushed = start, now = start;
    for (double count = 0; count < runs || now - start < seconds; count++) {
        double milliseconds = run_ms(engine);
        now = now_s();
        printf(format, milliseconds, now - start);
        if (now - flushed >= FLUSH_S) {
            if (fflush(stdout)) _exit(1);
            flushed = now;
        }
    }
    if (fflush(stdout)) _exit(1);
}

int main(int argc, char **arguments) {
    static char buffer[1 << 20];  // lines wait here: none is written during a timed run
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    (void)argc;
    arguments++;
    const char *name = text(arguments, "engine");
    const Engine *engine = !strcmp(name, "onnx") ? &onnx_engine : !strcmp(name, "tflite") ? &tflite_engine : NULL;
    if (!engine) fail("unknown engine %s", name);
    Model model = describe(arguments);
    size_t count;
    char *inputs = read_inputs(text(arguments, "inputs"), model.input_bytes, &count);

    printf("pid %d\nengine %s\n", (int)getpid(), engine->load());
    printf("rss_before %lld\n", memory_bytes("VmRSS:"));
    double start = now_s();
    engine->open(&model);
    printf("load %.4f\n", 1e3 * (now_s() - start));
    engine->set_input(inputs);
    printf("first %.4f\n", run_ms(engine));
    probe(engine, &model, inputs, count);
    engine->set_input(inputs);
    repeat(engine, "warmup %.4f\n", number(arguments, "warmup_runs"), number(arguments, "warmup_seconds"));
    repeat(engine, "s %.4f %.3f\n", number(arguments, "min_runs"), number(arguments, "min_seconds"));
    printf("peak %lld\ndone\n", memory_bytes("VmHWM:"));
    fflush(stdout);
    _exit(0);  // the engines' own ends are none of the user's time
}
