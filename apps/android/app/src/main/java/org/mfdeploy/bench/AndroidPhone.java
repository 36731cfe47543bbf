package org.mfdeploy.bench;

import android.app.ActivityManager;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.BatteryManager;
import android.os.Build;
import android.os.PowerManager;
import java.util.LinkedHashMap;
import java.util.Map;
import org.mfdeploy.bench.core.Phone;

/** What Android tells about the phone. */
final class AndroidPhone implements Phone {
    private static final int ANDROID_10 = 29;
    private static final int ANDROID_12 = 31;

    /** PowerManager.THERMAL_STATUS_NONE, _LIGHT, _MODERATE, _SEVERE, _CRITICAL, _EMERGENCY, _SHUTDOWN. */
    private static final String[] THERMAL_STATES = {
        "nominal", "nominal", "fair", "serious", "critical", "critical", "critical"
    };

    private final Context context;

    AndroidPhone(Context context) {
        this.context = context.getApplicationContext();
    }

    @Override
    public Map<String, Object> device() {
        ActivityManager.MemoryInfo memory = new ActivityManager.MemoryInfo();
        ((ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE)).getMemoryInfo(memory);
        String soc = soc();
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("name", "android");
        json.put("cpu", soc == null ? Build.HARDWARE : soc);
        json.put("cores", Runtime.getRuntime().availableProcessors());
        json.put("memory_bytes", memory.totalMem);
        json.put("os", "Android " + Build.VERSION.RELEASE + ", API " + Build.VERSION.SDK_INT);
        json.put("model", Build.MANUFACTURER + " " + Build.MODEL);
        json.put("soc", soc);
        return json;
    }

    @Override
    public Map<String, Object> conditions() {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("thermal_state", thermalState());
        Intent battery = context.registerReceiver(null, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
        if (battery != null) {
            int level = battery.getIntExtra(BatteryManager.EXTRA_LEVEL, -1);
            int scale = battery.getIntExtra(BatteryManager.EXTRA_SCALE, 0);
            int tenths = battery.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, Integer.MIN_VALUE);
            json.put("temperature_c", tenths == Integer.MIN_VALUE ? null : tenths / 10.0);
            json.put("battery_percent", level >= 0 && scale > 0 ? 100.0 * level / scale : null);
            json.put("charging", battery.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) != 0);
        }
        return json;
    }

    /**
     * PowerManager.getCurrentThermalStatus() came with Android 10. It is called by its name, so that the app
     * also builds with the older SDK that Debian's tools can be had with.
     */
    private String thermalState() {
        if (Build.VERSION.SDK_INT < ANDROID_10) {
            return "unknown";
        }
        try {
            Object power = context.getSystemService(Context.POWER_SERVICE);
            Object status = PowerManager.class.getMethod("getCurrentThermalStatus").invoke(power);
            int index = (Integer) status;
            return index >= 0 && index < THERMAL_STATES.length ? THERMAL_STATES[index] : "unknown";
        } catch (ReflectiveOperationException missing) {
            return "unknown";
        }
    }

    /** Build.SOC_MANUFACTURER and SOC_MODEL came with Android 12; null on an older one. */
    private static String soc() {
        if (Build.VERSION.SDK_INT < ANDROID_12) {
            return null;
        }
        try {
            Object maker = Build.class.getField("SOC_MANUFACTURER").get(null);
            return maker + " " + Build.class.getField("SOC_MODEL").get(null);
        } catch (ReflectiveOperationException missing) {
            return null;
        }
    }
}
