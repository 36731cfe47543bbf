package org.mfdeploy.bench.core;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What to run: from the screen's choices, or from the extras of an intent, which anyone may send. */
public final class Request {
    /** What a model may be asked to run on; the engine falls back to the CPU for what it cannot take. */
    public static final List<String> ACCELERATORS = Arrays.asList("cpu", "xnnpack", "nnapi");

    private static final int MAX_THREADS = 64;

    /** Name of the result's file, without its ending. */
    public final String id;
    /** Path of the model below the models' folder. */
    public final String model;
    public final int threads;
    public final String accelerator;
    public final Protocol protocol;

    /** Refuses a name that is no plain file name, and what the phone cannot run. */
    public Request(String id, String model, int threads, String accelerator, Protocol protocol)
            throws BenchException {
        if (!id.matches("[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}")) {
            throw new BenchException("bad id");
        }
        if (threads < 1 || threads > MAX_THREADS) {
            throw new BenchException("threads must be from 1 to " + MAX_THREADS);
        }
        if (!ACCELERATORS.contains(accelerator)) {
            throw new BenchException("unknown accelerator " + accelerator + "; one of " + ACCELERATORS);
        }
        this.id = id;
        this.model = model;
        this.threads = threads;
        this.accelerator = accelerator;
        this.protocol = protocol;
    }

    /** From named values; those of the protocol that are missing are those of MLPerf Mobile. */
    public static Request of(Map<String, String> values) throws BenchException {
        Protocol usual = Protocol.singleStream();
        Protocol protocol =
                new Protocol(
                        (int) number(values, "runs", usual.minRuns),
                        number(values, "seconds", usual.minSeconds),
                        (int) number(values, "warmup_runs", usual.warmupRuns),
                        number(values, "warmup_seconds", usual.warmupSeconds),
                        number(values, "cool_down_seconds", usual.coolDownSeconds));
        return new Request(
                values.getOrDefault("id", "result"),
                values.getOrDefault("model", ""),
                (int) number(values, "threads", 1),
                values.getOrDefault("accelerator", "cpu"),
                protocol);
    }

    /** The named values of which {@link #of} makes the same request. */
    public Map<String, String> toValues() {
        Map<String, String> values = new LinkedHashMap<>();
        values.put("id", id);
        values.put("model", model);
        values.put("threads", String.valueOf(threads));
        values.put("accelerator", accelerator);
        values.put("runs", String.valueOf(protocol.minRuns));
        values.put("seconds", String.valueOf(protocol.minSeconds));
        values.put("warmup_runs", String.valueOf(protocol.warmupRuns));
        values.put("warmup_seconds", String.valueOf(protocol.warmupSeconds));
        values.put("cool_down_seconds", String.valueOf(protocol.coolDownSeconds));
        return values;
    }

    private static double number(Map<String, String> values, String key, double otherwise)
            throws BenchException {
        String value = values.get(key);
        try {
            return value == null ? otherwise : Double.parseDouble(value);
        } catch (NumberFormatException bad) {
            throw new BenchException(key + " is not a number");
        }
    }
}
