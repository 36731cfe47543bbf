package org.mfdeploy.bench;

import android.content.Context;
import java.io.File;
import java.util.Locale;
import java.util.Map;
import org.mfdeploy.bench.core.BenchException;
import org.mfdeploy.bench.core.Benchmark;
import org.mfdeploy.bench.core.Json;
import org.mfdeploy.bench.core.Model;
import org.mfdeploy.bench.core.ModelStore;
import org.mfdeploy.bench.core.Phone;
import org.mfdeploy.bench.core.Progress;
import org.mfdeploy.bench.core.Report;
import org.mfdeploy.bench.core.Request;
import org.mfdeploy.bench.core.Samples;
import org.mfdeploy.bench.core.Statistics;

/**
 * Does one request on a thread of its own, and leaves a file: {@code results/<id>.json}.
 *
 * <p>Meanwhile {@code results/<id>.progress} holds the step and the fraction done, for who waits at the
 * other end of a cable; a request that cannot be done leaves {@code results/<id>.error}.
 */
final class Run implements Runnable, Progress {
    private static final long SHOW_EVERY_MS = 1000;
    private static final int SHOWN = 1000;

    /** What shows the run. */
    interface Screen {
        void show(String step, double fraction, String numbers);

        void done(String numbers);
    }

    private final Context context;
    private final Request request;
    private final Screen screen;
    private volatile String stopReason;
    private long shown;

    Run(Context context, Request request, Screen screen) {
        this.context = context.getApplicationContext();
        this.request = request;
        this.screen = screen;
    }

    /** The result's file; it is there when the run is done. */
    File result() {
        return file(".json");
    }

    void stop(String reason) {
        if (stopReason == null) {
            stopReason = reason;
        }
    }

    @Override
    public void run() {
        result().delete();
        file(".error").delete();
        try {
            ModelStore store = new ModelStore(Folders.models(context));
            screen.done(benchmark(store.find(request.model)));
        } catch (BenchException error) {
            fail(error.getMessage());
        } catch (RuntimeException | LinkageError error) {
            fail(error.toString());
        } finally {
            file(".progress").delete();
        }
    }

    @Override
    public void at(String step, double fraction, Samples samples) {
        long now = System.currentTimeMillis();
        if (now - shown < SHOW_EVERY_MS) {
            return;
        }
        shown = now;
        // Of the last ones: to sort a long run every second would disturb it.
        String numbers = samples == null ? "" : numbers(samples.lastMs(SHOWN), samples.seen());
        screen.show(step, fraction, numbers);
        try {
            Report.write(file(".progress"), String.format(Locale.ROOT, "%.3f %s", fraction, step));
        } catch (BenchException unwritable) {
            stop(unwritable.getMessage());
        }
    }

    @Override
    public String stopReason() {
        return stopReason;
    }

    /** Runs the protocol and writes the report, also of a model that cannot be run; returns what to show. */
    private String benchmark(Model model) throws BenchException {
        Phone phone = new AndroidPhone(context);
        OnnxEngine engine = new OnnxEngine(context.getCacheDir());
        Benchmark benchmark = new Benchmark(engine, phone, request.protocol, this);
        Map<String, Object> measurement = null;
        String notRun = null;
        try {
            measurement = benchmark.run(model, request.threads, request.accelerator);
        } catch (BenchException error) {
            notRun = error.getMessage();
        }
        Map<String, Object> report = Report.of(request, model, phone, measurement, notRun);
        Report.write(result(), Json.format(report));
        return measurement == null ? notRun : summary(measurement);
    }

    private static String summary(Map<String, Object> measurement) {
        double[] times = (double[]) measurement.get("samples_ms");
        StringBuilder text = new StringBuilder(numbers(times, times.length));
        Object correctness = measurement.get("correctness");
        if (correctness instanceof Map) {
            Map<?, ?> verdict = (Map<?, ?>) correctness;
            boolean passed = Boolean.TRUE.equals(verdict.get("passed"));
            text.append(passed ? "\nlogits as on the host" : "\nWRONG LOGITS");
            text.append(String.format(" (largest difference %.2g)", verdict.get("max_abs_error")));
        }
        text.append("\non ").append(measurement.get("accelerator_used"));
        if (measurement.get("partial") != null) {
            text.append("\nended early: ").append(measurement.get("partial"));
        }
        return text.toString();
    }

    private static String numbers(double[] timesMs, long inferences) {
        Statistics of = new Statistics(timesMs);
        return String.format(
                "p50 %.2f ms\np90 %.2f ms\np99 %.2f ms\n%d inferences",
                of.percentile(50), of.percentile(90), of.percentile(99), inferences);
    }

    private void fail(String reason) {
        try {
            Report.write(file(".error"), reason);
        } catch (BenchException unwritable) {
            reason = reason + "; " + unwritable.getMessage();
        }
        screen.done(reason);
    }

    private File file(String ending) {
        return new File(Folders.results(context), request.id + ending);
    }
}
