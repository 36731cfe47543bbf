import SwiftUI

/// The models on this phone and how to run them.
struct ModelList: View {
    @State private var artifacts: [Artifact] = []
    @State private var problems: [String] = []
    @State private var results: [URL] = []
    @State private var units = ComputeUnits.all
    @State private var choice = 0

    var body: some View {
        List {
            Section {
                Picker("Run on", selection: $units) {
                    ForEach(ComputeUnits.allCases) { Text($0.rawValue).tag($0) }
                }
                Picker("Protocol", selection: $choice) {
                    ForEach(BenchProtocol.choices.indices, id: \.self) { index in
                        Text(BenchProtocol.choices[index].name).tag(index)
                    }
                }
            }
            Section("Models") {
                if artifacts.isEmpty {
                    Text("None. Copy what mf-bench bundle writes into this app's folder.")
                        .foregroundStyle(.secondary)
                }
                ForEach(artifacts) { artifact in
                    NavigationLink {
                        RunView(artifact: artifact, units: units, rules: BenchProtocol.choices[choice].value)
                    } label: {
                        ModelRow(artifact: artifact)
                    }
                }
                ForEach(problems, id: \.self) { Text($0).font(.footnote).foregroundStyle(.red) }
            }
            if !results.isEmpty {
                Section("Results") {
                    ShareLink("Share all \(results.count)", items: results)
                }
            }
        }
        .navigationTitle("mf-bench")
        .onAppear(perform: read)
    }

    private func read() {
        let bundled = Bundle.main.resourceURL?.appendingPathComponent("Models")
        let found = [URL.documentsDirectory, bundled].compactMap { $0 }.map(Artifact.find)
        artifacts = found.flatMap(\.artifacts)
        problems = found.flatMap(\.problems)
        let folder = URL.documentsDirectory.appendingPathComponent("results")
        let files = try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        results = (files ?? []).filter { $0.pathExtension == "json" }.sorted { $0.path < $1.path }
    }
}

private struct ModelRow: View {
    let artifact: Artifact

    var body: some View {
        VStack(alignment: .leading) {
            Text(artifact.name)
            let megabytes = Double(artifact.manifest.bytes) / 1e6
            Text("\(artifact.manifest.model.name), \(megabytes, specifier: "%.1f") MB")
                .font(.footnote)
                .foregroundStyle(.secondary)
        }
    }
}
