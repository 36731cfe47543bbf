// LiteRT through the C interface of libLiteRt.so: a compiled model with the CPU accelerator, XNNPACK
// (https://ai.google.dev/edge/litert/next/get_started). Declared here: what is needed of litert/c/*.h.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { CPU = 1, READ = 0, WRITE = 1, MAX_TENSORS = 16 };

typedef struct {
    int32_t element_type;
    uint8_t layout[68];
} TensorType;

typedef int Status;  // 0: no error
typedef void *Handle;

static void *library;
static Handle compiled, inputs[1], outputs[MAX_TENSORS];
static size_t output_count, logits_index;
static const Model *opened;

static void check(Status status, const char *what) {
    if (status) fail("LiteRT cannot %s (status %d)", what, status);
}

#define CALL(what, name, types, ...) check(((Status(*) types)find_function(library, name))(__VA_ARGS__), what)

static const char *load(void) {
    library = open_library("libLiteRt.so");
    return "";  // the library does not tell; the host knows which one it sent
}

static Handle cpu_options(int threads) {
    Handle options, opaque;
    char *toml = malloc(32);
    snprintf(toml, 32, "num_threads = %d\n", threads);
    CALL("make options", "LiteRtCreateOptions", (Handle *), &options);
    CALL("choose the CPU", "LiteRtSetOptionsHardwareAccelerators", (Handle, int), options, CPU);
    CALL("set threads", "LiteRtCreateOpaqueOptions", (const char *, void *, void (*)(void *), Handle *),
         "xnnpack", toml, free, &opaque);
    CALL("set threads", "LiteRtAddOpaqueOptions", (Handle, Handle), options, opaque);
    return options;
}

static Handle buffer(Handle env, Handle tensor, Handle requirements) {
    TensorType type;
    Handle made;
    CALL("read a tensor's type", "LiteRtGetRankedTensorType", (Handle, TensorType *), tensor, &type);
    CALL("make a buffer", "LiteRtCreateManagedTensorBufferFromRequirements",
         (Handle, const TensorType *, Handle, Handle *), env, &type, requirements, &made);
    return made;
}

static void expect_size(Handle of, size_t bytes, const char *name) {
    size_t size;
    CALL("read a buffer's size", "LiteRtGetTensorBufferPackedSize", (Handle, size_t *), of, &size);
    if (size != bytes) fail("%s has %zu bytes in the file, %zu in the manifest", name, size, bytes);
}

static void make_buffers(Handle env, Handle signature) {
    Handle tensor, requirements;
    size_t count;
    CALL("count inputs", "LiteRtGetNumSignatureInputs", (Handle, size_t *), signature, &count);
    if (count != 1) fail("the model has %zu inputs, not 1", count);
    CALL("find the input", "LiteRtGetSignatureInputTensorByIndex", (Handle, size_t, Handle *), signature, 0, &tensor);
    CALL("size the input", "LiteRtGetCompiledModelInputBufferRequirements", (Handle, size_t, size_t, Handle *),
         compiled, 0, 0, &requirements);
    inputs[0] = buffer(env, tensor, requirements);
    expect_size(inputs[0], opened->input_bytes, opened->input_name);

    CALL("count outputs", "LiteRtGetNumSignatureOutputs", (Handle, size_t *), signature, &output_count);
    if (output_count > MAX_TENSORS) fail("the model has %zu outputs", output_count);
    logits_index = output_count;
    for (size_t i = 0; i < output_count; i++) {
        const char *name;
        CALL("find an output", "LiteRtGetSignatureOutputTensorByIndex", (Handle, size_t, Handle *), signature, i, &tensor);
        CALL("size an output", "LiteRtGetCompiledModelOutputBufferRequirements",
             (Handle, size_t, size_t, Handle *), compiled, 0, i, &requirements);
        outputs[i] = buffer(env, tensor, requirements);
        CALL("name an output", "LiteRtGetSignatureOutputName", (Handle, size_t, const char **), signature, i, &name);
        if (!strcmp(name, opened->output_name)) logits_index = i;
    }
    if (logits_index == output_count) fail("the model has no output %s", opened->output_name);
    expect_size(outputs[logits_index], opened->output_count * sizeof(float), opened->output_name);
}

static void open_model(const Model *model) {
    Handle env, file, signature;
    opened = model;
    CALL("start", "LiteRtCreateEnvironment", (int, const void *, Handle *), 0, NULL, &env);
    CALL("read the model", "LiteRtCreateModelFromFile", (Handle, const char *, Handle *), env, model->path, &file);
    CALL("open the model", "LiteRtCreateCompiledModel", (Handle, Handle, Handle, Handle *), env, file,
         cpu_options(model->threads), &compiled);
    CALL("find the signature", "LiteRtGetModelSignature", (Handle, size_t, Handle *), file, 0, &signature);
    make_buffers(env, signature);
}

static void copy(Handle of, void *bytes, size_t size, int mode) {
    void *mapped;
    CALL("lock a buffer", "LiteRtLockTensorBuffer", (Handle, void **, int), of, &mapped, mode);
    if (mode == WRITE)
        memcpy(mapped, bytes, size);
    else
        memcpy(bytes, mapped, size);
    CALL("unlock a buffer", "LiteRtUnlockTensorBuffer", (Handle), of);
}

static void set_input(const void *bytes) { copy(inputs[0], (void *)bytes, opened->input_bytes, WRITE); }

static void run(void) {
    static Status (*run_model)(Handle, size_t, size_t, Handle *, size_t, Handle *);
    if (!run_model) run_model = find_function(library, "LiteRtRunCompiledModel");
    check(run_model(compiled, 0, 1, inputs, output_count, outputs), "run the model");
}

static void get_output(float *logits) {
    copy(outputs[logits_index], logits, opened->output_count * sizeof(float), READ);
}

const Engine tflite_engine = {load, open_model, set_input, run, get_output};
