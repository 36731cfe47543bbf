package org.mfdeploy.bench;

import android.app.Activity;
import android.content.Intent;
import android.os.Bundle;
import android.os.Process;
import android.view.View;
import android.view.WindowManager;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.io.File;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicBoolean;
import org.mfdeploy.bench.core.BenchException;
import org.mfdeploy.bench.core.Request;

/**
 * One run: started from the list, or by {@code am start} with the values of {@link Request} as extras.
 *
 * <p>It lives in a process of its own, which ends with it: memory is that of one model, and a model that
 * crashes the engine takes nothing else along. The run ends early when the screen is left, because Android
 * moves what nobody sees to slow cores.
 */
public final class RunActivity extends Activity implements Run.Screen {
    private static final AtomicBoolean BUSY = new AtomicBoolean();

    private TextView step;
    private TextView figures;
    private ProgressBar bar;
    private Run run;

    /** The intent that starts a run of {@code request}. */
    static Intent intentOf(Activity from, Request request) {
        Intent intent = new Intent(from, RunActivity.class);
        for (Map.Entry<String, String> value : request.toValues().entrySet()) {
            intent.putExtra(value.getKey(), value.getValue());
        }
        return intent;
    }

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        getWindow()
                .addFlags(
                        WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
                                | WindowManager.LayoutParams.FLAG_SHOW_WHEN_LOCKED
                                | WindowManager.LayoutParams.FLAG_TURN_SCREEN_ON);
        setContentView(R.layout.run);
        step = (TextView) findViewById(R.id.step);
        figures = (TextView) findViewById(R.id.figures);
        bar = (ProgressBar) findViewById(R.id.bar);
        findViewById(R.id.stop).setOnClickListener(view -> run.stop("stopped by the user"));
        findViewById(R.id.share).setOnClickListener(view -> share());
        if (!BUSY.compareAndSet(false, true)) {
            finish();
            return;
        }
        start();
    }

    @Override
    protected void onStop() {
        super.onStop();
        if (run != null) {
            run.stop("the app left the screen");
        }
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        if (run != null && isFinishing()) {
            Process.killProcess(Process.myPid());
        }
    }

    @Override
    public void show(String what, double fraction, String numbers) {
        runOnUiThread(
                () -> {
                    step.setText(what);
                    bar.setProgress((int) Math.round(fraction * bar.getMax()));
                    figures.setText(numbers);
                });
    }

    @Override
    public void done(String numbers) {
        runOnUiThread(
                () -> {
                    boolean kept = run != null && run.result().isFile();
                    step.setText(kept ? R.string.done : R.string.failed);
                    figures.setText(numbers);
                    bar.setVisibility(View.INVISIBLE);
                    findViewById(R.id.stop).setVisibility(View.GONE);
                    findViewById(R.id.share).setVisibility(kept ? View.VISIBLE : View.GONE);
                });
    }

    private void start() {
        try {
            Request request = Request.of(values(getIntent().getExtras()));
            setTitle(request.model);
            run = new Run(this, request, this);
            new Thread(run, "benchmark").start();
        } catch (BenchException refused) {
            done(refused.getMessage());
        }
    }

    private static Map<String, String> values(Bundle extras) {
        Map<String, String> values = new HashMap<>();
        if (extras != null) {
            for (String key : extras.keySet()) {
                values.put(key, String.valueOf(extras.get(key)));
            }
        }
        return values;
    }

    private void share() {
        File result = run.result();
        Intent send = new Intent(Intent.ACTION_SEND);
        send.setType(ResultProvider.TYPE);
        send.putExtra(Intent.EXTRA_STREAM, ResultProvider.uriOf(this, result));
        send.addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION);
        startActivity(Intent.createChooser(send, result.getName()));
    }
}
