package org.mfdeploy.bench.core;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * How a latency is measured: one input, one inference after another, every one timed.
 *
 * <p>Timing goes on until {@code minRuns} inferences and {@code minSeconds} have both passed; so does
 * the warm-up before it, whose times are not counted. The same rules and numbers as mf-bench's.
 */
public final class Protocol {
    /** Times that are kept at most. */
    public static final int MAX_SAMPLES = 400_000;

    private static final double DAY = 86_400;

    public final int minRuns;
    public final double minSeconds;
    public final int warmupRuns;
    public final double warmupSeconds;
    public final double coolDownSeconds;

    /** Refuses what mf-bench's schema refuses. */
    public Protocol(
            int minRuns, double minSeconds, int warmupRuns, double warmupSeconds, double coolDownSeconds)
            throws BenchException {
        check("runs", minRuns, 1, MAX_SAMPLES);
        check("seconds", minSeconds, 0, DAY);
        check("warm-up runs", warmupRuns, 1, 10_000);
        check("warm-up seconds", warmupSeconds, 0, 600);
        check("cool-down seconds", coolDownSeconds, 0, 3600);
        this.minRuns = minRuns;
        this.minSeconds = minSeconds;
        this.warmupRuns = warmupRuns;
        this.warmupSeconds = warmupSeconds;
        this.coolDownSeconds = coolDownSeconds;
    }

    /** The length of MLPerf Mobile's single-stream scenario: at least 1,024 queries and 60 s. */
    public static Protocol singleStream() throws BenchException {
        return new Protocol(1024, 60, 10, 2, 0);
    }

    /** 200 inferences after half a second of warm-up: for a first look. */
    public static Protocol quick() throws BenchException {
        return new Protocol(200, 0, 10, 0.5, 0);
    }

    /** As long as {@code seconds}: what a phone still does when it is warm. */
    public static Protocol sustained(double seconds) throws BenchException {
        return new Protocol(1, seconds, 10, 0.5, 0);
    }

    /** As the result schema has it. */
    public Map<String, Object> toJson() {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("min_runs", minRuns);
        json.put("min_seconds", minSeconds);
        json.put("warmup_runs", warmupRuns);
        json.put("warmup_seconds", warmupSeconds);
        json.put("cool_down_seconds", coolDownSeconds);
        return json;
    }

    private static void check(String what, double value, double least, double most) throws BenchException {
        if (!(value >= least && value <= most)) {
            throw new BenchException(what + " must be from " + least + " to " + most + ", not " + value);
        }
    }
}
