import CoreML
import Foundation

/// One run of the protocol: opens a model, times it, and checks its answers.
final class Benchmark {
    struct Progress {
        let step: String
        let fraction: Double
        let samples: Samples?
    }

    private static let progressSeconds = 0.2
    private static let conditionsSeconds = 10.0
    /// The peak of memory is the process's, so it is that of one model for the first run only.
    private static var memoryIsOfOneModel = true

    private let rules: BenchProtocol
    private let onProgress: (Progress) -> Void
    private let stopReason: () -> String?
    private var conditionsOverTime: [Report.TimedConditions] = []

    /// `stopReason` tells why to stop now, or nil to go on; what was measured is kept.
    init(
        _ rules: BenchProtocol,
        onProgress: @escaping (Progress) -> Void,
        stopReason: @escaping () -> String?
    ) {
        self.rules = rules
        self.onProgress = onProgress
        self.stopReason = stopReason
    }

    /// Runs an artifact on some compute units, off the main thread.
    func run(_ artifact: Artifact, on units: ComputeUnits) async throws -> Report.Measurement {
        try artifact.verify()
        guard let probe = try Probe(of: artifact) else {
            throw BenchError("\(artifact.name) has no probe; write it with mf-bench bundle")
        }
        let compiled = try await MLModel.compileModel(at: artifact.modelURL)
        defer { try? FileManager.default.removeItem(at: compiled) }
        try await Task.sleep(nanoseconds: UInt64(rules.coolDownSeconds * 1e9))

        let before = Phone.conditions
        let memoryBefore = Phone.memory?.now
        let start = DispatchTime.now()
        let engine = try CoreMLEngine(artifact, compiled: compiled, units: units)
        let loadMs = milliseconds(since: start)
        try engine.setInput(probe.inputs[0])
        let firstMs = try timeOnce(engine)
        let warm = try warmUp(engine)
        let samples = try sample(engine)
        let (after, peak) = (Phone.conditions, Phone.memory?.peak)
        let logits: [[Double]] = try probe.inputs.flatMap { input in
            try engine.setInput(input)
            try engine.infer()
            return try engine.logits()
        }
        let placement = await ComputePlan.placement(of: compiled, units: units)
        let alone = Benchmark.memoryIsOfOneModel
        Benchmark.memoryIsOfOneModel = false
        let statistics = Statistics(of: samples.timesMs)
        return Report.Measurement(
            engine: Report.Engine(name: "Core ML", version: Phone.version),
            acceleratorRequested: units.rawValue,
            acceleratorUsed: ComputePlan.units(in: placement),
            loadMs: Samples.rounded(loadMs),
            firstInferenceMs: Samples.rounded(firstMs),
            warmupMs: warm.timesMs,
            samplesMs: samples.timesMs,
            sampledAtS: samples.endsSeconds,
            keptEvery: samples.keptEvery,
            conditionsOverTime: conditionsOverTime,
            statistics: statistics,
            imagesPerS: Double(artifact.batch) * 1e3 / statistics.meanMs,
            rssBeforeLoadBytes: alone ? memoryBefore : nil,
            peakRssBytes: alone ? peak : nil,
            before: before,
            after: after,
            probeLogits: logits.allSatisfy { $0.allSatisfy(\.isFinite) } ? logits : nil,
            correctness: probe.judge(logits),
            placement: placement,
            partial: stopReason()
        )
    }

    func warmUp(_ engine: Engine) throws -> Samples {
        try timed("warming up", engine, runs: rules.warmupRuns, seconds: rules.warmupSeconds, watch: false)
    }

    func sample(_ engine: Engine) throws -> Samples {
        try timed("timing", engine, runs: rules.minRuns, seconds: rules.minSeconds, watch: true)
    }

    private func timed(
        _ step: String, _ engine: Engine, runs: Int, seconds: Double, watch: Bool
    ) throws -> Samples {
        var samples = Samples()
        let start = DispatchTime.now()
        var (now, reported, watched) = (0.0, 0.0, 0.0)
        repeat {
            let ms = try timeOnce(engine)
            now = milliseconds(since: start) / 1e3
            samples.add(ms, at: now)
            if now - reported >= Benchmark.progressSeconds {
                let done = min(Double(samples.seen) / Double(runs), seconds > 0 ? now / seconds : 1)
                onProgress(Progress(step: step, fraction: min(done, 1), samples: samples))
                reported = now
            }
            if watch, now - watched >= Benchmark.conditionsSeconds {
                let at = Samples.rounded(now)
                conditionsOverTime.append(Report.TimedConditions(atS: at, conditions: Phone.conditions))
                watched = now
            }
        } while (samples.seen < runs || now < seconds) && stopReason() == nil
        return samples
    }

    private func timeOnce(_ engine: Engine) throws -> Double {
        try autoreleasepool {
            let start = DispatchTime.now()
            try engine.infer()
            return milliseconds(since: start)
        }
    }

    private func milliseconds(since start: DispatchTime) -> Double {
        Double(DispatchTime.now().uptimeNanoseconds - start.uptimeNanoseconds) / 1e6
    }
}
