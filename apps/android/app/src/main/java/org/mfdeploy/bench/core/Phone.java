package org.mfdeploy.bench.core;

import java.util.Map;

/** What a result says about the phone, in the result schema's words. */
public interface Phone {
    /** The device: name, cpu, cores, memory_bytes, os, model, soc. */
    Map<String, Object> device();

    /** Temperature, thermal state and battery now; fields that the phone does not tell are left out. */
    Map<String, Object> conditions();
}
