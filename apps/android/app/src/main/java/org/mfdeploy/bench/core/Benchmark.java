package org.mfdeploy.bench.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** One run of the protocol: opens a model, times it, and checks its answers. */
public final class Benchmark {
    private static final double NANOS_PER_MS = 1e6;
    private static final double NANOS_PER_SECOND = 1e9;
    private static final double PROGRESS_SECONDS = 0.2;
    private static final double CONDITIONS_SECONDS = 10;
    private static final int MAX_CONDITIONS = 10_000;
    private static final int MAX_WARM_UP = 100_000;

    private final Engine engine;
    private final Phone phone;
    private final Progress progress;
    private final Protocol protocol;
    private final List<Map<String, Object>> conditionsOverTime = new ArrayList<>();

    public Benchmark(Engine engine, Phone phone, Protocol protocol, Progress progress) {
        this.engine = engine;
        this.phone = phone;
        this.protocol = protocol;
        this.progress = progress;
    }

    /** The measurement, as the result schema has it; the engine is closed afterwards. */
    public Map<String, Object> run(Model model, int threads, String accelerator) throws BenchException {
        try {
            return measure(model, threads, accelerator);
        } finally {
            engine.close();
        }
    }

    private Map<String, Object> measure(Model model, int threads, String accelerator)
            throws BenchException {
        model.verify(); // also brings the file into the page cache
        Probe probe = Probe.of(model);
        engine.load();
        rest();
        Map<String, Object> before = phone.conditions();
        Long memoryBefore = Memory.residentBytes();
        long start = System.nanoTime();
        engine.open(model, threads, accelerator);
        double loadMs = (System.nanoTime() - start) / NANOS_PER_MS;
        engine.setInput(probe == null ? Probe.randomInput(model, 0) : probe.input(0));
        double firstMs = timeOnce();
        Samples warmUp = warmUp();
        Samples samples = sample();
        Map<String, Object> after = phone.conditions();
        Long peak = Memory.peakBytes();

        Map<String, Object> json = new LinkedHashMap<>();
        json.put("engine", nameAndVersion());
        json.put("accelerator_requested", accelerator);
        json.put("accelerator_used", engine.acceleratorUsed());
        json.put("load_ms", Samples.rounded(loadMs));
        json.put("first_inference_ms", Samples.rounded(firstMs));
        json.put("warmup_ms", warmUp.timesMs());
        json.put("samples_ms", samples.timesMs());
        json.put("sampled_at_s", samples.endsSeconds());
        json.put("kept_every", samples.keptEvery());
        json.put("conditions_over_time", conditionsOverTime);
        Statistics statistics = new Statistics(samples.timesMs());
        json.put("statistics", statistics.toJson());
        json.put("images_per_s", model.batch() * 1e3 / statistics.mean());
        json.put("rss_before_load_bytes", memoryBefore);
        json.put("peak_rss_bytes", peak);
        json.put("before", before);
        json.put("after", after);
        addAnswers(json, probe);
        json.put("placement", engine.placement());
        json.put("partial", progress.stopReason());
        return json;
    }

    private void addAnswers(Map<String, Object> json, Probe probe) throws BenchException {
        if (probe == null) {
            return;
        }
        List<float[]> logits = probe.run(engine);
        Map<String, Object> verdict = probe.judge(logits);
        json.put("probe_logits", finite(logits) ? logits : null);
        json.put("correctness", verdict);
    }

    private Map<String, Object> nameAndVersion() {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("name", engine.name());
        json.put("version", engine.version());
        return json;
    }

    private void rest() {
        long start = System.nanoTime();
        double wanted = protocol.coolDownSeconds;
        for (double done = 0; done < wanted && progress.stopReason() == null; done = secondsSince(start)) {
            progress.at("cooling down", done / wanted, null);
            try {
                Thread.sleep(200);
            } catch (InterruptedException stop) {
                Thread.currentThread().interrupt();
                return;
            }
        }
    }

    private double timeOnce() throws BenchException {
        long start = System.nanoTime();
        engine.infer();
        return (System.nanoTime() - start) / NANOS_PER_MS;
    }

    private Samples warmUp() throws BenchException {
        Samples times = new Samples(MAX_WARM_UP);
        timed("warming up", times, protocol.warmupRuns, protocol.warmupSeconds, false);
        return times;
    }

    private Samples sample() throws BenchException {
        Samples times = new Samples(Protocol.MAX_SAMPLES);
        timed("timing", times, protocol.minRuns, protocol.minSeconds, true);
        return times;
    }

    private void timed(String step, Samples times, int runs, double seconds, boolean watch)
            throws BenchException {
        long start = System.nanoTime();
        double reported = 0;
        double watched = 0;
        double now = 0;
        do {
            double ms = timeOnce();
            now = secondsSince(start);
            times.add(ms, now);
            if (now - reported >= PROGRESS_SECONDS) {
                progress.at(step, fraction(times.seen(), runs, now, seconds), times);
                reported = now;
            }
            if (watch && now - watched >= CONDITIONS_SECONDS && conditionsOverTime.size() < MAX_CONDITIONS) {
                addConditions(now);
                watched = now;
            }
        } while ((times.seen() < runs || now < seconds) && progress.stopReason() == null);
    }

    private void addConditions(double now) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("at_s", Samples.rounded(now));
        json.put("conditions", phone.conditions());
        conditionsOverTime.add(json);
    }

    private static double fraction(long count, int runs, double now, double seconds) {
        return Math.min(1, Math.min((double) count / runs, seconds > 0 ? now / seconds : 1));
    }

    private static double secondsSince(long start) {
        return (System.nanoTime() - start) / NANOS_PER_SECOND;
    }

    private static boolean finite(List<float[]> rows) {
        for (float[] row : rows) {
            for (float value : row) {
                if (Float.isNaN(value) || Float.isInfinite(value)) {
                    return false;
                }
            }
        }
        return true;
    }
}
