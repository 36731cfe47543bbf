package org.mfdeploy.bench.core;

import java.nio.ByteBuffer;
import java.util.List;
import java.util.Map;

/** What runs a model. One model, opened once; used by one thread. */
public interface Engine extends AutoCloseable {
    String name();

    String version();

    /** Load the engine's library, so that opening a model does not pay for it. */
    void load() throws BenchException;

    /** Open the model; this is what {@code load_ms} times. */
    void open(Model model, int threads, String accelerator) throws BenchException;

    /** Take over the bytes of one whole batch, as the model wants them; not timed. */
    void setInput(ByteBuffer batch) throws BenchException;

    /** One inference; this is what the samples time. */
    void infer() throws BenchException;

    /** The logits of the last inference, all rows of the batch after one another. */
    float[] logits() throws BenchException;

    /** What really runs the model, e.g. cpu; null where the engine does not tell. */
    String acceleratorUsed();

    /** Which part of the phone runs each operator, as the result schema has it; null where unknown. */
    List<Map<String, Object>> placement();

    @Override
    void close();
}
