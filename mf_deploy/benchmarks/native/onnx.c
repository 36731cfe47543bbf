// ONNX Runtime through its C interface: a table of functions whose order never changes
// (https://onnxruntime.ai/docs/api/c/struct_ort_api.html). The few that are needed are named here by
// their place in it, so that no header of the engine's is needed.
#include <string.h>

#include "engine.h"

enum {
    GET_ERROR_MESSAGE = 2,
    CREATE_ENV = 3,
    CREATE_SESSION = 7,
    RUN = 9,
    CREATE_SESSION_OPTIONS = 10,
    SET_SESSION_LOG_SEVERITY_LEVEL = 22,
    SET_INTRA_OP_NUM_THREADS = 24,
    SET_INTER_OP_NUM_THREADS = 25,
    CREATE_TENSOR_WITH_DATA_AS_ORT_VALUE = 49,
    CREATE_CPU_MEMORY_INFO = 69,
    API_VERSION = 17,
    LOG_ERROR = 3,
    ARENA_ALLOCATOR = 1,
    DEFAULT_MEMORY = 0,
};

typedef struct {
    const void *const *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} ApiBase;

typedef void *Status;  // NULL: no error

static const void *const *api;
static void *session, *input, *output;
static const Model *opened;
static void *input_bytes, *output_bytes;

static void check(Status status) {
    if (status) fail("%s", ((const char *(*)(Status))api[GET_ERROR_MESSAGE])(status));
}

static const char *load(void) {
    void *library = open_library("libonnxruntime.so.1");
    const ApiBase *base = ((const ApiBase *(*)(void))find_function(library, "OrtGetApiBase"))();
    api = base->get_api(API_VERSION);
    if (!api) fail("ONNX Runtime %s is too old", base->get_version());
    return base->get_version();
}

static int element_type(const char *name) {
    static const char *const names[] = {"", "float32", "uint8", "int8"};
    for (int type = 1; type < 4; type++)
        if (!strcmp(name, names[type])) return type;
    if (!strcmp(name, "float16")) return 10;
    fail("unknown input type %s", name);
}

static void *tensor(void *bytes, size_t size, const int64_t *shape, size_t rank, int type) {
    void *memory, *value;
    check(((Status(*)(int, int, void **))api[CREATE_CPU_MEMORY_INFO])(ARENA_ALLOCATOR, DEFAULT_MEMORY, &memory));
    check(((Status(*)(void *, void *, size_t, const int64_t *, size_t, int, void **))
               api[CREATE_TENSOR_WITH_DATA_AS_ORT_VALUE])(memory, bytes, size, shape, rank, type, &value));
    return value;
}

static void open_model(const Model *model) {
    void *env, *options;
    opened = model;
    check(((Status(*)(int, const char *, void **))api[CREATE_ENV])(LOG_ERROR, "mf-deploy", &env));
    check(((Status(*)(void **))api[CREATE_SESSION_OPTIONS])(&options));
    check(((Status(*)(void *, int))api[SET_SESSION_LOG_SEVERITY_LEVEL])(options, LOG_ERROR));
    check(((Status(*)(void *, int))api[SET_INTRA_OP_NUM_THREADS])(options, model->threads));
    check(((Status(*)(void *, int))api[SET_INTER_OP_NUM_THREADS])(options, 1));
    check(((Status(*)(void *, const char *, void *, void **))api[CREATE_SESSION])(env, model->path, options,
                                                                                &session));
    input_bytes = allocate(model->input_bytes);
    output_bytes = allocate(model->output_count * sizeof(float));
    input = tensor(input_bytes, model->input_bytes, model->input_shape, model->input_rank,
                   element_type(model->input_type));
    output = tensor(output_bytes, model->output_count * sizeof(float), model->output_shape,
                    model->output_rank, element_type("float32"));
}

static void set_input(const void *bytes) { memcpy(input_bytes, bytes, opened->input_bytes); }

static void run(void) {
    check(((Status(*)(void *, void *, const char *const *, void *const *, size_t, const char *const *, size_t,
                      void **))api[RUN])(session, NULL, &opened->input_name, &input, 1, &opened->output_name, 1,
                                         &output));
}

static void get_output(float *logits) { memcpy(logits, output_bytes, opened->output_count * sizeof(float)); }

const Engine onnx_engine = {load, open_model, set_input, run, get_output};
