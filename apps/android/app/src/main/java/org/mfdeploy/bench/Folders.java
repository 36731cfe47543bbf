package org.mfdeploy.bench;

import android.content.Context;
import java.io.File;

/** Where the app keeps its files: below Android/data on the shared storage, which adb can reach. */
final class Folders {
    private Folders() {}

    static File models(Context context) {
        return made(new File(context.getExternalFilesDir(null), "models"));
    }

    static File results(Context context) {
        return made(new File(context.getExternalFilesDir(null), "results"));
    }

    /** Made by the app itself, which may then write there; what adb makes may belong to the shell. */
    private static File made(File folder) {
        folder.mkdirs();
        return folder;
    }
}
