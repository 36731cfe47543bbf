package org.mfdeploy.bench.core;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.LinkedHashMap;
import java.util.Map;

/** A result file: what mf-bench import and mf-report read. */
public final class Report {
    private static final int SCHEMA_VERSION = 2;
    private static final int MAX_REASON = 1000;

    private Report() {}

    /**
     * The report of a model: its measurement, or the reason why there is none.
     *
     * @param measurement as {@link Benchmark#run} returns it, or null
     * @param notRun null exactly when there is a measurement
     */
    public static Map<String, Object> of(
            Request request, Model model, Phone phone, Map<String, Object> measurement, String notRun) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("schema_version", SCHEMA_VERSION);
        json.put("artifact", model.artifact);
        json.put("model", model.model);
        json.put("target", model.target);
        json.put("scheme", model.scheme);
        json.put("model_sha256", model.sha256);
        json.put("model_bytes", model.bytes);
        json.put("batch", model.batch());
        json.put("kind", "device");
        json.put("device", phone.device());
        json.put("threads", request.threads);
        json.put("protocol", request.protocol.toJson());
        json.put("measurement", measurement);
        json.put("not_run", notRun == null ? null : onOneLine(notRun));
        json.put("measured_by", "Android app");
        json.put("created", Instant.now().truncatedTo(ChronoUnit.SECONDS).toString());
        return json;
    }

    /** What an engine says may be long, and on many lines. */
    private static String onOneLine(String text) {
        String line = text.replaceAll("[\\s\\p{Cntrl}]+", " ").trim();
        return line.length() <= MAX_REASON ? line : line.substring(0, MAX_REASON);
    }

    /** Write a file under another name and rename it, so that a reader never sees half of it. */
    public static void write(File file, String text) throws BenchException {
        File temporary = new File(file.getParentFile(), "." + file.getName() + ".tmp");
        try {
            Files.createDirectories(file.getParentFile().toPath());
            Files.write(temporary.toPath(), text.getBytes(StandardCharsets.UTF_8));
            Files.move(temporary.toPath(), file.toPath(), StandardCopyOption.REPLACE_EXISTING);
        } catch (IOException error) {
            throw new BenchException("cannot write " + file.getName(), error);
        }
    }
}
