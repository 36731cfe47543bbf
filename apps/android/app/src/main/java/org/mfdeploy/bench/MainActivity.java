package org.mfdeploy.bench;

import android.app.Activity;
import android.content.Intent;
import android.net.Uri;
import android.os.Bundle;
import android.view.View;
import android.widget.ArrayAdapter;
import android.widget.ListView;
import android.widget.Spinner;
import android.widget.TextView;
import android.widget.Toast;
import java.io.File;
import java.util.ArrayList;
import java.util.List;
import org.mfdeploy.bench.core.BenchException;
import org.mfdeploy.bench.core.Model;
import org.mfdeploy.bench.core.ModelStore;
import org.mfdeploy.bench.core.Protocol;
import org.mfdeploy.bench.core.Request;

/** The models on this phone and how to run them; a tap on a model runs it. */
public final class MainActivity extends Activity {
    private static final int SUSTAINED_SHORT_S = 600;
    private static final int SUSTAINED_LONG_S = 1800;

    private ModelStore store;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.main);
        fill(R.id.accelerator, Request.ACCELERATORS);
        fill(R.id.threads, threadCounts());
        ListView list = (ListView) findViewById(R.id.models);
        list.setEmptyView(findViewById(R.id.empty));
        list.setOnItemClickListener((parent, view, position, id) -> run(store.models().get(position)));
        findViewById(R.id.share_all).setOnClickListener(view -> shareAll());
    }

    @Override
    protected void onResume() {
        super.onResume();
        store = new ModelStore(Folders.models(this));
        Folders.results(this);
        List<String> names = new ArrayList<>();
        for (Model model : store.models()) {
            names.add(String.format("%s\n%.1f MB", store.pathOf(model), model.bytes / 1e6));
        }
        ListView list = (ListView) findViewById(R.id.models);
        list.setAdapter(new ArrayAdapter<>(this, android.R.layout.simple_list_item_1, names));
        TextView problems = (TextView) findViewById(R.id.problems);
        problems.setText(String.join("\n", store.problems()));
        problems.setVisibility(store.problems().isEmpty() ? View.GONE : View.VISIBLE);
    }

    private void run(Model model) {
        try {
            String accelerator = chosen(R.id.accelerator);
            int threads = Integer.parseInt(chosen(R.id.threads));
            String id = model.sha256.substring(0, 12) + "-" + accelerator + "-t" + threads;
            String path = store.pathOf(model);
            startActivity(
                    RunActivity.intentOf(this, new Request(id, path, threads, accelerator, protocol())));
        } catch (BenchException refused) {
            Toast.makeText(this, refused.getMessage(), Toast.LENGTH_LONG).show();
        }
    }

    private Protocol protocol() throws BenchException {
        switch (((Spinner) findViewById(R.id.protocol)).getSelectedItemPosition()) {
            case 1:
                return Protocol.quick();
            case 2:
                return Protocol.sustained(SUSTAINED_SHORT_S);
            case 3:
                return Protocol.sustained(SUSTAINED_LONG_S);
            default:
                return Protocol.singleStream();
        }
    }

    private static List<String> threadCounts() {
        List<String> counts = new ArrayList<>();
        int cores = Runtime.getRuntime().availableProcessors();
        for (int count = 1; count <= cores; count *= 2) {
            counts.add(String.valueOf(count));
        }
        return counts;
    }

    private String chosen(int spinner) {
        return ((Spinner) findViewById(spinner)).getSelectedItem().toString();
    }

    private void fill(int spinner, List<String> choices) {
        ArrayAdapter<String> adapter =
                new ArrayAdapter<>(this, android.R.layout.simple_spinner_item, choices);
        adapter.setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item);
        ((Spinner) findViewById(spinner)).setAdapter(adapter);
    }

    private void shareAll() {
        ArrayList<Uri> results = new ArrayList<>();
        File[] files = Folders.results(this).listFiles((folder, name) -> name.endsWith(".json"));
        for (File file : files == null ? new File[0] : files) {
            results.add(ResultProvider.uriOf(this, file));
        }
        if (results.isEmpty()) {
            Toast.makeText(this, R.string.no_results, Toast.LENGTH_LONG).show();
            return;
        }
        Intent send = new Intent(Intent.ACTION_SEND_MULTIPLE);
        send.setType(ResultProvider.TYPE);
        send.putParcelableArrayListExtra(Intent.EXTRA_STREAM, results);
        send.addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION);
        startActivity(Intent.createChooser(send, getString(R.string.share_all)));
    }
}
