package org.mfdeploy.bench.core;

/** Hears how far a benchmark is, and may end it early. Called between inferences, never inside one. */
public interface Progress {
    /**
     * @param step what is being done, e.g. timing
     * @param fraction of the step that is done
     * @param samples the times so far
     */
    void at(String step, double fraction, Samples samples);

    /** Why to stop now, or null to go on; what was measured is kept. */
    String stopReason();
}
