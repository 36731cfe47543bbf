package org.mfdeploy.bench.core;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

/**
 * Fixed inputs, and the logits that the host makes of them: a model that is fast because it is wrong is
 * caught.
 *
 * <p>The folder {@code probe} beside the model holds {@code inputs.bin}, whole batches as the model takes
 * them, one after another, and {@code expected.json}. Both are written by mf-bench.
 */
public final class Probe {
    private static final int MAX_INFERENCES = 16;

    private final Model model;
    private final byte[] inputs;
    private final String reference;
    private final double tolerance;
    private final List<float[]> expected = new ArrayList<>();

    private Probe(Model model, byte[] inputs, Map<String, Object> known) throws BenchException {
        this.model = model;
        this.inputs = inputs;
        reference = Model.text(known, "reference");
        tolerance = Model.number(known, "tolerance");
        for (Object row : Model.list(known, "logits")) {
            expected.add(floats(row));
        }
        if (expected.size() != count() * model.batch()) {
            throw new BenchException(model.artifact + ": its probe does not fit its input; push it again");
        }
    }

    /** The probe of a model, or null where none was pushed. */
    public static Probe of(Model model) throws BenchException {
        File folder = new File(model.folder, "probe");
        File inputs = new File(folder, "inputs.bin");
        if (!inputs.isFile()) {
            return null;
        }
        int size = model.inputBytes();
        if (inputs.length() == 0 || inputs.length() % size != 0 || inputs.length() / size > MAX_INFERENCES) {
            throw new BenchException(model.artifact + ": its probe does not fit its input; push it again");
        }
        try {
            byte[] known = Files.readAllBytes(new File(folder, "expected.json").toPath());
            Map<String, Object> json = Json.parseObject(new String(known, StandardCharsets.UTF_8));
            return new Probe(model, Files.readAllBytes(inputs.toPath()), json);
        } catch (IOException unreadable) {
            throw new BenchException(model.artifact + ": cannot read its probe", unreadable);
        }
    }

    /** How many inferences it takes. */
    public int count() throws BenchException {
        return inputs.length / model.inputBytes();
    }

    /** One batch of inputs. */
    public ByteBuffer input(int index) throws BenchException {
        int size = model.inputBytes();
        return ByteBuffer.wrap(Arrays.copyOfRange(inputs, index * size, (index + 1) * size));
    }

    /** The logits of every input, a row a sample. */
    public List<float[]> run(Engine engine) throws BenchException {
        List<float[]> rows = new ArrayList<>();
        for (int i = 0; i < count(); i++) {
            engine.setInput(input(i));
            engine.infer();
            float[] logits = engine.logits();
            int width = logits.length / model.batch();
            for (int row = 0; row < model.batch(); row++) {
                rows.add(Arrays.copyOfRange(logits, row * width, (row + 1) * width));
            }
        }
        return rows;
    }

    /** What these logits are worth, as the result schema has it. */
    public Map<String, Object> judge(List<float[]> rows) {
        double error = largestDifference(rows);
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("reference", reference);
        json.put("inputs", expected.size());
        json.put("max_abs_error", error);
        json.put("tolerance", tolerance);
        json.put("passed", error <= tolerance);
        return json;
    }

    /** Of any logit; NaN, which is never within a tolerance, where they cannot be compared. */
    private double largestDifference(List<float[]> rows) {
        double largest = 0;
        for (int i = 0; i < expected.size(); i++) {
            float[] given = rows.get(i);
            float[] wanted = expected.get(i);
            if (given.length != wanted.length) {
                return Double.NaN;
            }
            for (int j = 0; j < wanted.length; j++) {
                largest = Math.max(largest, Math.abs((double) given[j] - wanted[j]));
            }
        }
        return Double.isInfinite(largest) ? Double.NaN : largest;
    }

    /** A seeded random input for a model without a probe: bytes, or floats that look normalised. */
    public static ByteBuffer randomInput(Model model, long seed) throws BenchException {
        byte[] bytes = new byte[model.inputBytes()];
        Random random = new Random(seed);
        ByteBuffer batch = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        if (model.inputType.equals("float32")) {
            while (batch.hasRemaining()) {
                batch.putFloat((float) random.nextGaussian());
            }
        } else if (model.inputType.equals("float16")) {
            while (batch.hasRemaining()) {
                batch.putShort((short) (0x3000 + random.nextInt(0x0c00))); // 0.125 to 1
            }
        } else {
            random.nextBytes(bytes);
        }
        batch.rewind();
        return batch;
    }

    private static float[] floats(Object row) throws BenchException {
        if (!(row instanceof List)) {
            throw new BenchException("bad probe: a row of logits");
        }
        List<?> values = (List<?>) row;
        float[] floats = new float[values.size()];
        for (int i = 0; i < floats.length; i++) {
            if (!(values.get(i) instanceof Double)) {
                throw new BenchException("bad probe: a logit");
            }
            floats[i] = ((Double) values.get(i)).floatValue();
        }
        return floats;
    }
}
