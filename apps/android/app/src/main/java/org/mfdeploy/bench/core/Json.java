package org.mfdeploy.bench.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON as Java's own values: Map, List, String, Double, Boolean and null.
 *
 * <p>Files from outside are read with it, so it is strict: no comments, no trailing commas, no key
 * twice, no NaN, at most {@value #MAX_DEPTH} levels.
 */
public final class Json {
    private static final int MAX_DEPTH = 64;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** The value of a whole JSON text. */
    public static Object parse(String text) throws BenchException {
        Json reader = new Json(text);
        Object value = reader.value(0);
        reader.skipSpace();
        if (reader.at != text.length()) {
            throw reader.wrong("something after the end");
        }
        return value;
    }

    /** The object of a whole JSON text. */
    @SuppressWarnings("unchecked")
    public static Map<String, Object> parseObject(String text) throws BenchException {
        Object value = parse(text);
        if (!(value instanceof Map)) {
            throw new BenchException("not a JSON object");
        }
        return (Map<String, Object>) value;
    }

    /** The text of a value; arrays of numbers may be double[], float[] or lists. */
    public static String format(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private Object value(int depth) throws BenchException {
        if (depth > MAX_DEPTH) {
            throw wrong("too many levels");
        }
        skipSpace();
        switch (peek()) {
            case '{':
                return object(depth);
            case '[':
                return array(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) throws BenchException {
        Map<String, Object> found = new LinkedHashMap<>();
        take('{');
        skipSpace();
        while (peek() != '}') {
            skipSpace();
            String key = string();
            if (found.containsKey(key)) {
                throw wrong("the key " + key + " twice");
            }
            skipSpace();
            take(':');
            found.put(key, value(depth + 1));
            endOfItem('}');
        }
        take('}');
        return found;
    }

    private List<Object> array(int depth) throws BenchException {
        List<Object> found = new ArrayList<>();
        take('[');
        skipSpace();
        while (peek() != ']') {
            found.add(value(depth + 1));
            endOfItem(']');
        }
        take(']');
        return found;
    }

    private void endOfItem(char end) throws BenchException {
        skipSpace();
        if (peek() == ',') {
            at++;
            skipSpace();
            if (peek() == end) {
                throw wrong("a comma before " + end);
            }
        } else if (peek() != end) {
            throw wrong("no comma");
        }
    }

    private String string() throws BenchException {
        take('"');
        StringBuilder found = new StringBuilder();
        while (peek() != '"') {
            char next = text.charAt(at++);
            if (next < ' ') {
                throw wrong("a control character");
            }
            found.append(next == '\\' ? escaped() : next);
        }
        take('"');
        return found.toString();
    }

    private char escaped() throws BenchException {
        char next = peek();
        at++;
        if (next != 'u') {
            int which = "\"\\/bfnrt".indexOf(next);
            if (which < 0) {
                throw wrong("an unknown escape");
            }
            return "\"\\/\b\f\n\r\t".charAt(which);
        }
        int code = 0;
        for (int end = at + 4; at < end; at++) {
            int digit = Character.digit(peek(), 16);
            if (digit < 0) {
                throw wrong("a bad \\u escape");
            }
            code = code * 16 + digit;
        }
        return (char) code;
    }

    private Double number() throws BenchException {
        int start = at;
        while (at < text.length() && "+-0123456789.eE".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String digits = text.substring(start, at);
        if (!digits.matches("-?(0|[1-9]\\d*)(\\.\\d+)?([eE][+-]?\\d+)?")) {
            throw wrong("neither a value nor a number");
        }
        return Double.valueOf(digits);
    }

    private Object word(String word, Object meaning) throws BenchException {
        if (!text.startsWith(word, at)) {
            throw wrong("an unknown word");
        }
        at += word.length();
        return meaning;
    }

    private void skipSpace() {
        while (at < text.length() && " \t\n\r".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char peek() throws BenchException {
        if (at >= text.length()) {
            throw wrong("the end");
        }
        return text.charAt(at);
    }

    private void take(char wanted) throws BenchException {
        if (peek() != wanted) {
            throw wrong("no " + wanted);
        }
        at++;
    }

    private BenchException wrong(String what) {
        return new BenchException("bad JSON: " + what + " at character " + at);
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof Map) {
            writeObject((Map<?, ?>) value, out);
        } else if (value instanceof List) {
            writeList((List<?>) value, out);
        } else if (value instanceof double[]) {
            writeList(boxed((double[]) value), out);
        } else if (value instanceof float[]) {
            writeList(boxed((float[]) value), out);
        } else if (value instanceof Number) {
            writeNumber((Number) value, out);
        } else if (value == null || value instanceof Boolean) {
            out.append(value);
        } else {
            writeString(value.toString(), out);
        }
    }

    private static void writeObject(Map<?, ?> object, StringBuilder out) {
        String separator = "{";
        for (Map.Entry<?, ?> entry : object.entrySet()) {
            out.append(separator);
            writeString(entry.getKey().toString(), out);
            out.append(':');
            write(entry.getValue(), out);
            separator = ",";
        }
        out.append(object.isEmpty() ? "{}" : "}");
    }

    private static void writeList(List<?> list, StringBuilder out) {
        String separator = "[";
        for (Object item : list) {
            out.append(separator);
            write(item, out);
            separator = ",";
        }
        out.append(list.isEmpty() ? "[]" : "]");
    }

    private static List<Double> boxed(double[] numbers) {
        List<Double> list = new ArrayList<>(numbers.length);
        for (double number : numbers) {
            list.add(number);
        }
        return list;
    }

    private static List<Float> boxed(float[] numbers) {
        List<Float> list = new ArrayList<>(numbers.length);
        for (float number : numbers) {
            list.add(number);
        }
        return list;
    }

    /**
     * A float is written as the double that equals it: its own shortest digits would be another number.
     * JSON knows no NaN and no infinity: they become null, which no reader takes for a number.
     */
    private static void writeNumber(Number number, StringBuilder out) {
        double value = number.doubleValue();
        if (Double.isNaN(value) || Double.isInfinite(value)) {
            out.append("null");
        } else {
            out.append(number instanceof Float ? (Number) value : number);
        }
    }

    private static void writeString(String string, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < string.length(); i++) {
            char next = string.charAt(i);
            if (next == '"' || next == '\\') {
                out.append('\\').append(next);
            } else if (next < ' ' || Character.isSurrogate(next)) {
                out.append(String.format("\\u%04x", (int) next));
            } else {
                out.append(next);
            }
        }
        out.append('"');
    }
}
