package org.mfdeploy.bench.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;

/** Which part of the phone runs each operator, read from a profile that ONNX Runtime wrote. */
public final class Placement {
    private static final int MAX_NAME = 200;
    private static final String PROVIDER_SUFFIX = "ExecutionProvider";
    private static final String EVENT_SUFFIX = "_kernel_time";

    private Placement() {}

    /** The operators of a profile of one inference in the order of execution, as the result schema has them. */
    public static List<Map<String, Object>> ofProfile(String json) throws BenchException {
        Object events = Json.parse(json);
        if (!(events instanceof List)) {
            throw new BenchException("not a profile");
        }
        List<Map<String, Object>> placement = new ArrayList<>();
        for (Object event : (List<?>) events) {
            if (event instanceof Map && "Node".equals(((Map<?, ?>) event).get("cat"))) {
                addNode((Map<?, ?>) event, placement);
            }
        }
        return placement;
    }

    /** The parts that a placement uses, e.g. "cpu, nnapi"; null where it names none. */
    public static String units(List<Map<String, Object>> placement) {
        TreeSet<String> units = new TreeSet<>();
        for (Map<String, Object> operator : placement) {
            units.add(operator.get("unit").toString());
        }
        return units.isEmpty() ? null : String.join(", ", units);
    }

    private static void addNode(Map<?, ?> event, List<Map<String, Object>> placement) {
        String name = String.valueOf(event.get("name"));
        Object arguments = event.get("args");
        if (!name.endsWith(EVENT_SUFFIX) || !(arguments instanceof Map)) {
            return;
        }
        Map<?, ?> known = (Map<?, ?>) arguments;
        Map<String, Object> operator = new LinkedHashMap<>();
        operator.put("operator", cut(String.valueOf(known.get("op_name"))));
        operator.put("name", cut(name.substring(0, name.length() - EVENT_SUFFIX.length())));
        operator.put("unit", unit(String.valueOf(known.get("provider"))));
        placement.add(operator);
    }

    private static String unit(String provider) {
        boolean usual = provider.endsWith(PROVIDER_SUFFIX);
        int end = usual ? provider.length() - PROVIDER_SUFFIX.length() : provider.length();
        return cut(provider.substring(0, end).toLowerCase(java.util.Locale.ROOT));
    }

    private static String cut(String text) {
        return text.length() <= MAX_NAME ? text : text.substring(0, MAX_NAME);
    }
}
