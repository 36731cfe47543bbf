/* QEMU plugin: counts the ARM64 instructions of regions that the guest marks, by class.
 *
 * The guest opens a region with prctl(REGION, 1, calls) and closes it with prctl(REGION, 0). Only the
 * thread that opened it is counted. Lines written to the file of the argument out=FILE, where COUNTS are
 * the instructions of each class, in the order below, since the region began:
 *
 *   begin
 *   lap NANOSECONDS COUNTS    the guest read the clock; engines do so around operators when they profile
 *   site ADDRESS CALLS TOTAL  if calls is 1: how often the call at ADDRESS was made, and the instructions
 *                             that ran before it returned
 *   call COUNTS               if calls is an address: the same for each call made there, since it was made
 *   end COUNTS
 *
 * Prototypes are declared here because distributions ship QEMU without qemu-plugin.h; they are the ones of
 * API 1, and of 3 for qemu_plugin_insn_data (https://www.qemu.org/docs/master/devel/tcg-plugins.html).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
typedef void (*translate_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*execute_cb)(unsigned, void *);
typedef void (*syscall_cb)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translate_cb);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, execute_cb, int flags, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
#if QEMU_PLUGIN_API >= 3
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#else
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#endif

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = QEMU_PLUGIN_API;

enum { REGION = 0x6d66, SYS_CLOCK_GETTIME = 113, SYS_PRCTL = 167 };
enum { FMLA, DOT, MMLA, SIMD, MEMORY, BRANCH, OTHER, CLASSES };

enum { NO_CALLS, SURVEY }; /* what prctl says of calls; any other value is an address */
enum { MAX_DEPTH = 1 << 16 };

struct counts {
    uint64_t of[CLASSES];
};

struct block { /* a piece of code that QEMU translated */
    struct counts counts;
    uint64_t address, return_address; /* the latter 0 unless it ends with a call */
    uint64_t calls, instructions;     /* that calls from here made, in the region */
    struct block *next;
};

struct frame { /* a call that has not returned yet */
    struct block *caller;
    struct counts before;
};

static struct counts executed; /* in the region, so far */
static int64_t counted_cpu = -1; /* QEMU's number of the thread in the region */
static uint64_t followed;        /* what prctl said of calls */
static struct frame stack[MAX_DEPTH];
static size_t depth;
static struct block *blocks;
static FILE *out;

static bool any(uint32_t word, uint32_t mask, const uint32_t *values, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((word & mask) == values[i])
            return true;
    return false;
}
#define ANY(word, mask, ...) \
    any(word, mask, (const uint32_t[]){__VA_ARGS__}, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* Arm Architecture Reference Manual, C4.1: A64 instruction set encoding. */
static int class_of(uint32_t word)
{
    if (((word >> 25) & 5) == 4)
        return MEMORY;
    if (((word >> 26) & 7) == 5)
        return (word >> 22) == 0x354 ? OTHER : BRANCH; /* 0x354: system instructions, barriers, hints */
    if (((word >> 25) & 7) != 7)
        return OTHER;
    if (ANY(word, 0xbfa0fc00, 0x0e20cc00, 0x0ea0cc00) || /* FMLA, FMLS (vector) */
        ANY(word, 0xbfe0fc00, 0x0e400c00, 0x0ec00c00) || /* the same in half precision */
        ANY(word, 0xbf80f400, 0x0f801000, 0x0f805000) || /* FMLA, FMLS (by element) */
        ANY(word, 0xbfc0f400, 0x0f001000, 0x0f005000))   /* the same in half precision */
        return FMLA;
    if (ANY(word, 0xbfe0fc00, 0x0e809400, 0x2e809400, 0x0e809c00) ||             /* SDOT, UDOT, USDOT */
        ANY(word, 0xbfc0f400, 0x0f80e000, 0x2f80e000, 0x0f80f000, 0x0f00f000)) /* by element, and SUDOT */
        return DOT;
    if (ANY(word, 0xffe0fc00, 0x4e80a400, 0x6e80a400, 0x4e80ac00)) /* SMMLA, UMMLA, USMMLA */
        return MMLA;
    return SIMD;
}

static bool is_call(uint32_t word)
{
    return (word & 0xfc000000) == 0x94000000 ||                                        /* BL */
           (word & 0xfffffc1f) == 0xd63f0000 || (word & 0xfefff800) == 0xd63f0800; /* BLR, BLRAA and such */
}

static uint64_t total(const struct counts *counts)
{
    uint64_t sum = 0;
    for (int i = 0; i < CLASSES; i++)
        sum += counts->of[i];
    return sum;
}

static void report(const char *what, const struct counts *since)
{
    fputs(what, out);
    for (int i = 0; i < CLASSES; i++)
        fprintf(out, " %llu", (unsigned long long)(executed.of[i] - (since ? since->of[i] : 0)));
    fputc('\n', out);
}

static void on_return(const struct frame *frame)
{
    frame->caller->calls++;
    frame->caller->instructions += total(&executed) - total(&frame->before);
    if (frame->caller->return_address - 4 == followed)
        report("call", &frame->before);
}

static void on_execute(unsigned cpu, void *data)
{
    struct block *block = data;
    if (cpu != counted_cpu)
        return;
    if (followed && depth && stack[depth - 1].caller->return_address == block->address)
        on_return(&stack[--depth]);
    for (int i = 0; i < CLASSES; i++)
        executed.of[i] += block->counts.of[i];
    if (followed && block->return_address && depth < MAX_DEPTH)
        stack[depth++] = (struct frame){block, executed};
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    struct block *block = calloc(1, sizeof *block); /* QEMU does not tell when it drops a translation */
    if (!block)
        abort();
    block->address = qemu_plugin_tb_vaddr(tb);
    block->next = blocks;
    blocks = block;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        uint32_t word;
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
#if QEMU_PLUGIN_API >= 3
        qemu_plugin_insn_data(instruction, &word, sizeof word);
#else
        memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
#endif
        block->counts.of[class_of(word)]++;
        block->return_address = is_call(word) ? qemu_plugin_insn_vaddr(instruction) + 4 : 0;
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execute, 0, block);
}

static void begin(unsigned cpu, uint64_t calls)
{
    memset(&executed, 0, sizeof executed);
    for (struct block *block = blocks; block; block = block->next)
        block->calls = block->instructions = 0;
    depth = 0;
    followed = calls;
    counted_cpu = cpu;
    fputs("begin\n", out);
}

static void end(void)
{
    counted_cpu = -1;
    for (struct block *block = blocks; followed == SURVEY && block; block = block->next)
        if (block->calls)
            fprintf(out, "site %llu %llu %llu\n", (unsigned long long)block->return_address - 4,
                    (unsigned long long)block->calls, (unsigned long long)block->instructions);
    report("end", NULL);
    fflush(out);
}

static void lap(void)
{
    struct timespec now;
    char what[40];
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(what, sizeof what, "lap %llu", now.tv_sec * 1000000000ull + now.tv_nsec);
    report(what, NULL);
}

static void on_syscall(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == SYS_PRCTL && a1 == REGION && a2 == 1)
        begin(cpu, a3);
    else if (cpu == counted_cpu && number == SYS_PRCTL && a1 == REGION)
        end();
    else if (cpu == counted_cpu && number == SYS_CLOCK_GETTIME)
        lap();
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w")))
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
