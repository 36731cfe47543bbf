package org.mfdeploy.bench.core;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Resident memory of this process, from the kernel's own account of it. */
public final class Memory {
    private Memory() {}

    /** Bytes now, or null where the kernel does not tell. */
    public static Long residentBytes() {
        return field("VmRSS");
    }

    /** The most bytes that this process has had, or null where the kernel does not tell. */
    public static Long peakBytes() {
        return field("VmHWM");
    }

    private static Long field(String name) {
        try {
            byte[] status = Files.readAllBytes(Paths.get("/proc/self/status"));
            Matcher found =
                    Pattern.compile("(?m)^" + name + ":\\s*(\\d+) kB")
                            .matcher(new String(status, StandardCharsets.UTF_8));
            return found.find() ? Long.valueOf(found.group(1)) * 1024 : null;
        } catch (IOException unreadable) {
            return null;
        }
    }
}
