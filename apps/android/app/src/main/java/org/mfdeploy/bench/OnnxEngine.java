package org.mfdeploy.bench;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.mfdeploy.bench.core.BenchException;
import org.mfdeploy.bench.core.Engine;
import org.mfdeploy.bench.core.Model;
import org.mfdeploy.bench.core.Placement;

/** ONNX Runtime on the CPU, with XNNPACK, or with NNAPI. */
final class OnnxEngine implements Engine {
    private static final long MAX_PROFILE_BYTES = 64 << 20;

    private final File scratch;
    private OrtEnvironment environment;
    private Model model;
    private int threads;
    private String accelerator;
    private OrtSession session;
    private OnnxTensor input;
    private OrtSession.Result result;
    private Map<String, OnnxTensor> inputs;
    private Set<String> outputs;
    private List<Map<String, Object>> placement;

    /** {@code scratch} is a folder for files that are deleted again. */
    OnnxEngine(File scratch) {
        this.scratch = scratch;
    }

    @Override
    public String name() {
        return "ONNX Runtime";
    }

    @Override
    public String version() {
        return environment.getVersion();
    }

    @Override
    public void load() throws BenchException {
        try {
            environment = OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR);
            environment.setTelemetry(false);
        } catch (OrtException error) {
            throw new BenchException("cannot load ONNX Runtime", error);
        }
    }

    @Override
    public void open(Model model, int threads, String accelerator) throws BenchException {
        if (!model.target.equals("onnx")) {
            throw new BenchException(model.artifact + " is for " + model.target + "; this app runs onnx");
        }
        this.model = model;
        this.threads = threads;
        this.accelerator = accelerator;
        outputs = Collections.singleton(model.outputName);
        try (OrtSession.SessionOptions options = options()) {
            session = environment.createSession(model.file.getPath(), options);
        } catch (OrtException error) {
            throw new BenchException("cannot open " + model.artifact, error);
        }
    }

    @Override
    public void setInput(ByteBuffer batch) throws BenchException {
        ByteBuffer direct = ByteBuffer.allocateDirect(batch.remaining()).order(ByteOrder.nativeOrder());
        direct.put(batch);
        direct.rewind();
        try {
            if (input != null) {
                input.close();
            }
            input = OnnxTensor.createTensor(environment, direct, model.inputShape, type(model.inputType));
            inputs = Collections.singletonMap(model.inputName, input);
        } catch (OrtException error) {
            throw new BenchException("cannot feed " + model.artifact, error);
        }
    }

    @Override
    public void infer() throws BenchException {
        try {
            OrtSession.Result before = result;
            result = session.run(inputs, outputs);
            if (before != null) {
                before.close();
            }
        } catch (OrtException error) {
            throw new BenchException("cannot run " + model.artifact, error);
        }
    }

    @Override
    public float[] logits() throws BenchException {
        FloatBuffer values = ((OnnxTensor) result.get(0)).getFloatBuffer();
        if (values == null) {
            throw new BenchException(model.artifact + ": its output is not floating point");
        }
        float[] logits = new float[values.remaining()];
        values.get(logits);
        return logits;
    }

    @Override
    public String acceleratorUsed() {
        List<Map<String, Object>> known = placement();
        return known == null ? null : Placement.units(known);
    }

    /** From a second session that writes a profile of one inference; opened when it is first asked for. */
    @Override
    public List<Map<String, Object>> placement() {
        if (placement == null && session != null) {
            try {
                placement = profile();
            } catch (OrtException | IOException | BenchException unknown) {
                return null; // the engine does not tell; the times stand without it
            }
        }
        return placement;
    }

    @Override
    public void close() {
        try {
            if (result != null) {
                result.close();
            }
            if (input != null) {
                input.close();
            }
            if (session != null) {
                session.close();
            }
        } catch (OrtException ignored) {
            // the process ends after a run
        }
    }

    private List<Map<String, Object>> profile() throws OrtException, IOException, BenchException {
        File written = null;
        try (OrtSession.SessionOptions options = options()) {
            options.enableProfiling(new File(scratch, "profile").getPath());
            try (OrtSession profiled = environment.createSession(model.file.getPath(), options)) {
                profiled.run(inputs, outputs).close();
                written = new File(profiled.endProfiling());
            }
            if (written.length() > MAX_PROFILE_BYTES) {
                throw new BenchException("the profile is too large");
            }
            byte[] json = Files.readAllBytes(written.toPath());
            return Placement.ofProfile(new String(json, StandardCharsets.UTF_8));
        } finally {
            if (written != null) {
                Files.deleteIfExists(written.toPath());
            }
        }
    }

    /** XNNPACK has threads of its own; the engine's would only fight with them. */
    private OrtSession.SessionOptions options() throws OrtException {
        OrtSession.SessionOptions options = new OrtSession.SessionOptions();
        options.setInterOpNumThreads(1);
        options.setIntraOpNumThreads(accelerator.equals("xnnpack") ? 1 : threads);
        if (accelerator.equals("xnnpack")) {
            options.addConfigEntry("session.intra_op.allow_spinning", "0");
            options.addXnnpack(
                    Collections.singletonMap("intra_op_num_threads", String.valueOf(threads)));
        } else if (accelerator.equals("nnapi")) {
            options.addNnapi();
        }
        return options;
    }

    private static OnnxJavaType type(String name) {
        switch (name) {
            case "float16":
                return OnnxJavaType.FLOAT16;
            case "uint8":
                return OnnxJavaType.UINT8;
            case "int8":
                return OnnxJavaType.INT8;
            default:
                return OnnxJavaType.FLOAT;
        }
    }
}
