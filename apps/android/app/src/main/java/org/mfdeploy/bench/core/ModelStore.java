package org.mfdeploy.bench.core;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The models that were pushed: folders with a manifest, directly in one folder or one level below. */
public final class ModelStore {
    private final File root;
    private final List<Model> models = new ArrayList<>();
    private final List<String> problems = new ArrayList<>();

    /** Read {@code root}, e.g. models/; one model that cannot be read does not hide the others. */
    public ModelStore(File root) {
        this.root = root;
        read(root, 2);
    }

    public List<Model> models() {
        return models;
    }

    /** What could not be read, and why. */
    public List<String> problems() {
        return problems;
    }

    /** The path below the root by which {@link #find} knows a model. */
    public String pathOf(Model model) {
        return root.toPath().relativize(model.folder.toPath()).toString();
    }

    /** The model at a path below the root, e.g. mobile_former_26m/onnx-w8a8. */
    public Model find(String path) throws BenchException {
        for (Model model : models) {
            if (pathOf(model).equals(path)) {
                return model;
            }
        }
        throw new BenchException("no model " + path + "; push it with mf-bench --device adb --app");
    }

    private void read(File folder, int levels) {
        File[] children = folder.listFiles(File::isDirectory);
        if (children == null || levels == 0) {
            return;
        }
        Arrays.sort(children);
        for (File child : children) {
            if (!new File(child, "manifest.json").isFile()) {
                read(child, levels - 1);
                continue;
            }
            try {
                models.add(Model.open(child));
            } catch (BenchException unreadable) {
                problems.add(unreadable.getMessage());
            }
        }
    }
}
