package org.mfdeploy.bench.core;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.List;
import java.util.Map;

/** An artifact folder on the phone: the model file and what its manifest says about it. */
public final class Model {
    private static final int MAX_MANIFEST_BYTES = 16 << 20;

    public final File folder;
    public final File file;
    public final String artifact;
    public final String model;
    public final String target;
    public final String scheme;
    public final String sha256;
    public final long bytes;
    public final String inputName;
    public final String inputType;
    public final long[] inputShape;
    public final String outputName;

    private Model(File folder, Map<String, Object> manifest) throws BenchException {
        this.folder = folder;
        artifact = folder.getName();
        target = text(manifest, "target");
        scheme = text(manifest, "scheme");
        model = text(object(manifest, "model"), "name");
        Map<String, Object> input = object(manifest, "input");
        inputName = text(input, "name");
        inputType = text(input, "dtype");
        inputShape = shape(list(input, "shape"));
        outputName = text(item(list(manifest, "outputs"), 0), "name");
        file = inside(folder, text(manifest, "model_file"));
        List<Object> files = list(manifest, "files");
        if (files.size() != 1) {
            throw new BenchException(artifact + " has " + files.size() + " files; this app runs single files");
        }
        Map<String, Object> only = item(files, 0);
        sha256 = text(only, "sha256");
        bytes = (long) number(only, "bytes");
        if (!file.equals(inside(folder, text(only, "name")))) {
            throw new BenchException(artifact + ": the model file is not in its list of files");
        }
    }

    /** Read a folder's manifest; the model file itself is checked by {@link #verify}. */
    public static Model open(File folder) throws BenchException {
        File manifest = new File(folder, "manifest.json");
        try {
            if (manifest.length() > MAX_MANIFEST_BYTES) {
                throw new BenchException(folder.getName() + ": the manifest is too large");
            }
            byte[] json = Files.readAllBytes(manifest.toPath());
            return new Model(folder, Json.parseObject(new String(json, StandardCharsets.UTF_8)));
        } catch (IOException unreadable) {
            throw new BenchException(folder.getName() + ": cannot read its manifest", unreadable);
        }
    }

    /** Samples in one batch. */
    public int batch() {
        return (int) inputShape[0];
    }

    /** Bytes of one whole input. */
    public int inputBytes() throws BenchException {
        long count = bytesOf(inputType);
        for (long side : inputShape) {
            count *= side;
        }
        if (count > 1 << 28) {
            throw new BenchException(artifact + ": its input is too large");
        }
        return (int) count;
    }

    /** Refuse a file that is not the one that the manifest tells of. */
    public void verify() throws BenchException {
        try (InputStream stream = Files.newInputStream(file.toPath())) {
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            byte[] buffer = new byte[1 << 16];
            for (int count = stream.read(buffer); count >= 0; count = stream.read(buffer)) {
                digest.update(buffer, 0, count);
            }
            String found = String.format("%064x", new BigInteger(1, digest.digest()));
            if (!found.equals(sha256) || file.length() != bytes) {
                throw new BenchException(artifact + ": the model file is damaged; push it again");
            }
        } catch (IOException unreadable) {
            throw new BenchException(artifact + ": cannot read its model file", unreadable);
        } catch (NoSuchAlgorithmException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private static int bytesOf(String type) throws BenchException {
        switch (type) {
            case "float32":
                return 4;
            case "float16":
                return 2;
            case "uint8":
            case "int8":
                return 1;
            default:
                throw new BenchException("unknown input type " + type);
        }
    }

    private static File inside(File folder, String name) throws BenchException {
        try {
            File file = new File(folder, name).getCanonicalFile();
            if (!file.toPath().startsWith(folder.getCanonicalFile().toPath())) {
                throw new BenchException(name + " lies outside " + folder.getName());
            }
            return file;
        } catch (IOException unreadable) {
            throw new BenchException("cannot read " + name, unreadable);
        }
    }

    private static long[] shape(List<Object> sides) throws BenchException {
        long[] shape = new long[sides.size()];
        for (int i = 0; i < shape.length; i++) {
            Object side = sides.get(i);
            if (!(side instanceof Double) || (Double) side < 1 || (Double) side > 65_536) {
                throw new BenchException("bad manifest: the input's shape");
            }
            shape[i] = ((Double) side).longValue();
        }
        if (shape.length == 0) {
            throw new BenchException("bad manifest: the input has no shape");
        }
        return shape;
    }

    static String text(Map<String, Object> from, String key) throws BenchException {
        return typed(from.get(key), String.class, key);
    }

    static double number(Map<String, Object> from, String key) throws BenchException {
        return typed(from.get(key), Double.class, key);
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> object(Map<String, Object> from, String key) throws BenchException {
        return typed(from.get(key), Map.class, key);
    }

    @SuppressWarnings("unchecked")
    static List<Object> list(Map<String, Object> from, String key) throws BenchException {
        return typed(from.get(key), List.class, key);
    }

    @SuppressWarnings("unchecked")
    private static Map<String, Object> item(List<Object> list, int index) throws BenchException {
        return typed(index < list.size() ? list.get(index) : null, Map.class, "item " + index);
    }

    private static <T> T typed(Object value, Class<T> type, String key) throws BenchException {
        if (!type.isInstance(value)) {
            throw new BenchException("bad manifest: " + key);
        }
        return type.cast(value);
    }
}
