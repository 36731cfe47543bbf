/* QEMU plugin: counts the ARM64 instructions of regions that the guest marks, by class.
 *
 * The guest marks a region with prctl(REGION, 1) and prctl(REGION, 0). While one is open, every
 * clock_gettime is a lap: engines read the clock around each operator when they profile. Lines
 * written to the file of the argument out=FILE, counts in the order of the classes below:
 *
 *   begin
 *   lap COUNT...      since the region began
 *   end COUNT...      since the region began
 *
 * Only the thread that opened the region is counted. Prototypes are declared here because distributions ship
 * QEMU without qemu-plugin.h; they are the ones of API 1, and of 3 for qemu_plugin_insn_data
 * (https://www.qemu.org/docs/master/devel/tcg-plugins.html).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

struct counts {
    uint64_t of[CLASSES];
};

static struct counts executed; /* in the region, so far */
static int64_t counted_cpu = -1; /* QEMU's number of the thread in the region */
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

static void on_execute(unsigned cpu, void *block)
{
    if (cpu != counted_cpu)
        return;
    for (int i = 0; i < CLASSES; i++)
        executed.of[i] += ((struct counts *)block)->of[i];
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    struct counts *block = calloc(1, sizeof *block); /* lives as long as the translation, that is: always */
    if (!block)
        abort();
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        uint32_t word;
#if QEMU_PLUGIN_API >= 3
        qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i), &word, sizeof word);
#else
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
#endif
        block->of[class_of(word)]++;
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execute, 0, block);
}

static void report(const char *what)
{
    fputs(what, out);
    for (int i = 0; i < CLASSES; i++)
        fprintf(out, " %llu", (unsigned long long)executed.of[i]);
    fputc('\n', out);
}

static void on_syscall(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == SYS_PRCTL && a1 == REGION && a2 == 1) {
        memset(&executed, 0, sizeof executed);
        counted_cpu = cpu;
        fputs("begin\n", out);
    } else if (cpu == counted_cpu && number == SYS_PRCTL && a1 == REGION) {
        counted_cpu = -1;
        report("end");
        fflush(out);
    } else if (cpu == counted_cpu && number == SYS_CLOCK_GETTIME) {
        report("lap");
    }
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
