package org.mfdeploy.bench.core;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** Of samples: percentiles interpolate linearly between them, the deviation is that of a sample (n - 1). */
public final class Statistics {
    private final double[] sorted;

    /** Of at least one sample, milliseconds. */
    public Statistics(double[] samplesMs) {
        if (samplesMs.length == 0) {
            throw new IllegalArgumentException("no samples");
        }
        sorted = samplesMs.clone();
        Arrays.sort(sorted);
    }

    /** The value below which {@code percent} percent of the samples lie. */
    public double percentile(double percent) {
        double place = percent / 100 * (sorted.length - 1);
        int below = (int) Math.floor(place);
        int above = Math.min(below + 1, sorted.length - 1);
        return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
    }

    public double mean() {
        double sum = 0;
        for (double sample : sorted) {
            sum += sample;
        }
        return sum / sorted.length;
    }

    /** The standard deviation; 0 of a single sample. */
    public double deviation() {
        double mean = mean();
        double squares = 0;
        for (double sample : sorted) {
            squares += (sample - mean) * (sample - mean);
        }
        return sorted.length > 1 ? Math.sqrt(squares / (sorted.length - 1)) : 0;
    }

    /** As the result schema has it. */
    public Map<String, Object> toJson() {
        Map<String, Object> json = new LinkedHashMap<>();
        for (int percent : new int[] {50, 90, 95, 99}) {
            json.put("p" + percent + "_ms", percentile(percent));
        }
        json.put("mean_ms", mean());
        json.put("std_ms", deviation());
        json.put("min_ms", sorted[0]);
        json.put("max_ms", sorted[sorted.length - 1]);
        return json;
    }
}
