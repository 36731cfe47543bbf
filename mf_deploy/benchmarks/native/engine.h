// What the timing loop asks of an engine: open a model, run it on one input, read its logits.
#ifndef MF_DEPLOY_ENGINE_H
#define MF_DEPLOY_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define MAX_RANK 8

typedef struct {
    const char *path;
    int threads;
    const char *input_name, *input_type;  // float32, float16, uint8 or int8
    const char *output_name;
    int64_t input_shape[MAX_RANK], output_shape[MAX_RANK];
    size_t input_rank, output_rank;
    size_t input_bytes, output_count;  // of the whole tensors
} Model;

typedef struct {
    // Load the engine's library, so that opening a model does not pay for it; returns its version.
    const char *(*load)(void);
    void (*open)(const Model *model);
    void (*set_input)(const void *bytes);
    void (*run)(void);
    void (*get_output)(float *logits);  // output_count of them
} Engine;

extern const Engine onnx_engine, tflite_engine;

// Print "error ..." for the host and end the process.
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

// The library, or the function in it; fails without it.
void *open_library(const char *name);
void *find_function(void *library, const char *name);

// Zeroed memory, aligned as every engine wants it.
void *allocate(size_t bytes);

#endif
