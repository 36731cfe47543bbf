package org.mfdeploy.bench.core;

import java.util.Arrays;

/**
 * Times and when they ended. Never more than a limit: when there are more, every second one is dropped,
 * and from then on only every second one is kept, and so on.
 */
public final class Samples {
    private final int limit;
    private double[] times = new double[1024];
    private double[] ends = new double[1024];
    private int kept;
    private long seen;
    private int every = 1;

    public Samples(int limit) {
        this.limit = limit;
    }

    /** An inference took {@code ms} and ended {@code atSeconds} after the timed part began. */
    public void add(double ms, double atSeconds) {
        if (seen++ % every != 0) {
            return;
        }
        if (kept == limit) {
            thin();
            if ((seen - 1) % every != 0) {
                return;
            }
        }
        if (kept == times.length) {
            times = Arrays.copyOf(times, Math.min(limit, 2 * kept));
            ends = Arrays.copyOf(ends, times.length);
        }
        times[kept] = rounded(ms);
        ends[kept++] = rounded(atSeconds);
    }

    /** Inferences so far, kept or not. */
    public long seen() {
        return seen;
    }

    public double[] timesMs() {
        return Arrays.copyOf(times, kept);
    }

    /** The last times, at most so many of them. */
    public double[] lastMs(int most) {
        return Arrays.copyOfRange(times, Math.max(0, kept - most), kept);
    }

    public double[] endsSeconds() {
        return Arrays.copyOf(ends, kept);
    }

    /** Of so many inferences, one is kept. */
    public int keptEvery() {
        return every;
    }

    private void thin() {
        for (int i = 0; 2 * i < kept; i++) {
            times[i] = times[2 * i];
            ends[i] = ends[2 * i];
        }
        kept = (kept + 1) / 2;
        every *= 2;
    }

    /** To a tenth of a microsecond, as mf-bench does; a finer clock reading is noise. */
    public static double rounded(double value) {
        return Math.round(value * 1e4) / 1e4;
    }
}
