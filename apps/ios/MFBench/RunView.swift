import SwiftUI
import UIKit

/// One run: progress, figures, and the result to share.
struct RunView: View {
    @StateObject private var run: Run
    @Environment(\.scenePhase) private var scenePhase

    init(artifact: Artifact, units: ComputeUnits, rules: BenchProtocol) {
        _run = StateObject(wrappedValue: Run(artifact: artifact, units: units, rules: rules))
    }

    var body: some View {
        List {
            Section {
                Text(run.step).font(.headline)
                if run.running {
                    ProgressView(value: run.fraction)
                    Button("Stop", role: .destructive) { run.stop("stopped by the user") }
                }
                if let statistics = run.statistics {
                    Figure(name: "p50", value: statistics.p50Ms)
                    Figure(name: "p90", value: statistics.p90Ms)
                    Figure(name: "p99", value: statistics.p99Ms)
                }
                if let verdict = run.verdict {
                    Text(verdict.passed ? "Logits as on the computer" : "Wrong logits")
                        .foregroundStyle(verdict.passed ? .green : .red)
                }
            }
            if let result = run.result {
                ShareLink("Share result", item: result)
            }
            if !run.placement.isEmpty {
                Section("Where operations run") {
                    ForEach(run.placement) { LabeledContent($0.unit, value: "\($0.count)") }
                }
            }
        }
        .navigationTitle(run.artifact.name)
        .onAppear { run.start() }
        .onDisappear { run.stop("the screen was left") }
        .onChange(of: scenePhase) { phase in
            if phase == .background { run.stop("the app left the screen") }
        }
    }
}

private struct Figure: View {
    let name: String
    let value: Double

    var body: some View {
        LabeledContent(name) {
            Text("\(value, specifier: "%.2f") ms").monospacedDigit()
        }
    }
}

/// How many operations a unit runs.
struct UnitShare: Identifiable {
    let unit: String
    let count: Int

    var id: String { unit }
}

/// The state of a run, for the screen.
@MainActor
final class Run: ObservableObject {
    @Published private(set) var step = "Opening …"
    @Published private(set) var fraction = 0.0
    @Published private(set) var running = false
    @Published private(set) var statistics: Statistics?
    @Published private(set) var verdict: Report.Correctness?
    @Published private(set) var placement: [UnitShare] = []
    @Published private(set) var result: URL?

    let artifact: Artifact
    private let units: ComputeUnits
    private let rules: BenchProtocol
    private let stopper = Stopper()

    init(artifact: Artifact, units: ComputeUnits, rules: BenchProtocol) {
        self.artifact = artifact
        self.units = units
        self.rules = rules
    }

    func stop(_ reason: String) {
        stopper.stop(reason)
    }

    func start() {
        guard !running, result == nil else { return }
        running = true
        UIApplication.shared.isIdleTimerDisabled = true
        let (artifact, units, rules, stopper) = (artifact, units, rules, stopper)
        Task.detached(priority: .userInitiated) { [weak self] in
            let benchmark = Benchmark(
                rules,
                onProgress: { [weak self] progress in
                    Task { @MainActor [weak self] in self?.show(progress) }
                },
                stopReason: { stopper.reason }
            )
            let outcome: Result<Report.Measurement, Error>
            do {
                outcome = .success(try await benchmark.run(artifact, on: units))
            } catch {
                outcome = .failure(error)
            }
            await self?.finish(outcome)
        }
    }

    private func show(_ progress: Benchmark.Progress) {
        guard running else { return }
        step = progress.step
        fraction = progress.fraction
    }

    private func finish(_ outcome: Result<Report.Measurement, Error>) {
        running = false
        UIApplication.shared.isIdleTimerDisabled = false
        let measurement = try? outcome.get()
        var reason: String?
        if case let .failure(error) = outcome {
            let line = error.localizedDescription.split(whereSeparator: \.isNewline).joined(separator: " ")
            reason = String(line.prefix(1000))
        }
        step = reason ?? measurement?.partial.map { "Ended early: \($0)" } ?? "Done"
        statistics = measurement?.statistics
        verdict = measurement?.correctness
        let byUnit = Dictionary(grouping: measurement?.placement ?? [], by: \.unit)
        placement = byUnit.map { UnitShare(unit: $0.key, count: $0.value.count) }
            .sorted { $0.count > $1.count }
        let report = Report(of: artifact, under: rules, measurement: measurement, notRun: reason)
        do {
            let name = "\(artifact.manifest.sha256.prefix(12))-\(units.rawValue)-\(Int(Date().timeIntervalSince1970))"
            result = try report.save(as: name)
        } catch {
            step = "The result cannot be kept: \(error.localizedDescription)"
        }
    }
}

/// Why to stop, told from one thread to another.
private final class Stopper: @unchecked Sendable {
    private let lock = NSLock()
    private var told: String?

    var reason: String? {
        lock.lock()
        defer { lock.unlock() }
        return told
    }

    func stop(_ reason: String) {
        lock.lock()
        defer { lock.unlock() }
        told = told ?? reason
    }
}
