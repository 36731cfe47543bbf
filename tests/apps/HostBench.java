import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.mfdeploy.bench.core.BenchException;
import org.mfdeploy.bench.core.Benchmark;
import org.mfdeploy.bench.core.Engine;
import org.mfdeploy.bench.core.Json;
import org.mfdeploy.bench.core.Model;
import org.mfdeploy.bench.core.ModelStore;
import org.mfdeploy.bench.core.Phone;
import org.mfdeploy.bench.core.Placement;
import org.mfdeploy.bench.core.Progress;
import org.mfdeploy.bench.core.Report;
import org.mfdeploy.bench.core.Request;
import org.mfdeploy.bench.core.Samples;
import org.mfdeploy.bench.core.Statistics;

/**
 * The app's own code on a computer: what the Android classes do with it, without Android.
 *
 * <p>The engine is ONNX Runtime in a process beside this one (onnx_engine.py), so that models, logits and
 * profiles are real; the times include the pipe between the two.
 */
public final class HostBench {
    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "run":
                run(new File(arguments[1]), new File(arguments[2]), arguments);
                break;
            case "statistics":
                Map<?, ?> numbers = Json.parseObject(read(arguments[1]));
                System.out.println(Json.format(new Statistics(array(numbers.get("samples"))).toJson()));
                break;
            case "thin":
                thin(Integer.parseInt(arguments[1]), Integer.parseInt(arguments[2]));
                break;
            case "json":
                System.out.println(Json.format(Json.parse(read(arguments[1]))));
                break;
            default:
                throw new IllegalArgumentException(arguments[0]);
        }
    }

    /** run MODELS RESULT KEY=VALUE...; KEY is one of a request's, or engine=COMMAND, or stop=SECONDS. */
    private static void run(File models, File result, String[] arguments) throws Exception {
        Map<String, String> values = new HashMap<>();
        for (int i = 3; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=", 2);
            values.put(pair[0], pair[1]);
        }
        try {
            Request request = Request.of(Request.of(values).toValues());
            ModelStore store = new ModelStore(models);
            for (String problem : store.problems()) {
                System.err.println(problem);
            }
            Model model = store.find(request.model);
            Phone phone = new Computer();
            double stop = Double.parseDouble(values.getOrDefault("stop", "1e9"));
            Engine engine = new PipeEngine(values.get("engine").split(" "));
            Map<String, Object> measurement = null;
            String notRun = null;
            try {
                measurement =
                        new Benchmark(engine, phone, request.protocol, new Until(stop))
                                .run(model, request.threads, request.accelerator);
            } catch (BenchException error) {
                notRun = error.getMessage();
            }
            Report.write(result, Json.format(Report.of(request, model, phone, measurement, notRun)));
        } catch (BenchException error) {
            System.err.println(error.getMessage());
            System.exit(2);
        }
    }

    private static void thin(int limit, int count) {
        Samples samples = new Samples(limit);
        for (int i = 0; i < count; i++) {
            samples.add(i, i);
        }
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("times", samples.timesMs());
        json.put("ends", samples.endsSeconds());
        json.put("every", samples.keptEvery());
        json.put("seen", samples.seen());
        System.out.println(Json.format(json));
    }

    private static String read(String file) throws IOException {
        return new String(Files.readAllBytes(new File(file).toPath()), StandardCharsets.UTF_8);
    }

    private static double[] array(Object numbers) {
        return ((List<?>) numbers).stream().mapToDouble(number -> (Double) number).toArray();
    }

    private static final class Computer implements Phone {
        @Override
        public Map<String, Object> device() {
            Map<String, Object> json = new LinkedHashMap<>();
            json.put("name", "android");
            json.put("cpu", System.getProperty("os.arch"));
            json.put("cores", Runtime.getRuntime().availableProcessors());
            json.put("os", System.getProperty("os.name"));
            json.put("model", "no phone: the app's code on a computer");
            return json;
        }

        @Override
        public Map<String, Object> conditions() {
            Map<String, Object> json = new LinkedHashMap<>();
            json.put("thermal_state", "unknown");
            return json;
        }
    }

    private static final class Until implements Progress {
        private final double seconds;
        private long start;

        Until(double seconds) {
            this.seconds = seconds;
        }

        @Override
        public void at(String step, double fraction, Samples samples) {
            start = step.equals("timing") && start == 0 ? System.nanoTime() : start;
        }

        @Override
        public String stopReason() {
            boolean late = start != 0 && System.nanoTime() - start > seconds * 1e9;
            return late ? "stopped by the user" : null;
        }
    }

    private static final class PipeEngine implements Engine {
        private final String[] command;
        private Process process;
        private DataOutputStream to;
        private DataInputStream from;
        private byte[] input;
        private float[] logits;

        PipeEngine(String[] command) {
            this.command = command;
        }

        @Override
        public String name() {
            return "ONNX Runtime";
        }

        @Override
        public String version() {
            return "of the test";
        }

        @Override
        public void load() {}

        @Override
        public void open(Model model, int threads, String accelerator) throws BenchException {
            try {
                process =
                        new ProcessBuilder(command)
                                .redirectError(ProcessBuilder.Redirect.INHERIT)
                                .start();
                to = new DataOutputStream(process.getOutputStream());
                from = new DataInputStream(process.getInputStream());
                to.writeUTF(model.file.getPath());
                to.writeInt(threads);
                to.flush();
                if (from.readInt() != 0) {
                    throw new IOException("the engine refuses it");
                }
            } catch (IOException error) {
                throw new BenchException("cannot open " + model.artifact, error);
            }
        }

        @Override
        public void setInput(ByteBuffer batch) {
            input = new byte[batch.remaining()];
            batch.get(input);
        }

        @Override
        public void infer() throws BenchException {
            try {
                to.writeInt(input.length);
                to.write(input);
                to.flush();
                logits = new float[from.readInt()];
                for (int i = 0; i < logits.length; i++) {
                    logits[i] = from.readFloat();
                }
            } catch (IOException error) {
                throw new BenchException("the engine died", error);
            }
        }

        @Override
        public float[] logits() {
            return logits;
        }

        @Override
        public String acceleratorUsed() {
            return Placement.units(placement());
        }

        @Override
        public List<Map<String, Object>> placement() {
            try {
                to.writeInt(0);
                to.flush();
                byte[] profile = new byte[from.readInt()];
                from.readFully(profile);
                return Placement.ofProfile(new String(profile, StandardCharsets.UTF_8));
            } catch (IOException | BenchException error) {
                throw new IllegalStateException(error);
            }
        }

        @Override
        public void close() {
            if (process != null) {
                process.destroy();
            }
        }
    }
}
