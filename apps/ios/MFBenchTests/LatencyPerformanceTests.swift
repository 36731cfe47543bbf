import CoreML
import XCTest

@testable import MFBench

/// Xcode's own performance test of every bundled model on every compute unit: a cross-check of the app's
/// figures, with baselines that Xcode keeps. Put models into apps/ios/Models with mf-bench bundle.
final class LatencyPerformanceTests: XCTestCase {
    func testCPU() async throws { try await measureModels(on: .cpu) }
    func testGPU() async throws { try await measureModels(on: .gpu) }
    func testNeuralEngine() async throws { try await measureModels(on: .neuralEngine) }
    func testAll() async throws { try await measureModels(on: .all) }

    func testLogitsAreThoseOfTheComputer() async throws {
        for artifact in try bundled() {
            for units in ComputeUnits.allCases {
                let benchmark = Benchmark(
                    BenchProtocol(minRuns: 3, minSeconds: 0, warmupRuns: 1, warmupSeconds: 0),
                    onProgress: { _ in },
                    stopReason: { nil }
                )
                let measurement = try await benchmark.run(artifact, on: units)
                let verdict = try XCTUnwrap(measurement.correctness)
                XCTAssertTrue(verdict.passed, "\(artifact.name) on \(units.rawValue): \(verdict)")
            }
        }
    }

    private func measureModels(on units: ComputeUnits) async throws {
        var engines: [CoreMLEngine] = []
        for artifact in try bundled() {
            let compiled = try await MLModel.compileModel(at: artifact.modelURL)
            let engine = try CoreMLEngine(artifact, compiled: compiled, units: units)
            try engine.setInput(try XCTUnwrap(try Probe(of: artifact)).inputs[0])
            for _ in 0..<10 { try engine.infer() }
            engines.append(engine)
        }
        measure(metrics: [XCTClockMetric(), XCTCPUMetric(), XCTMemoryMetric()]) {
            for engine in engines {
                for _ in 0..<100 { XCTAssertNoThrow(try engine.infer()) }
            }
        }
    }

    private func bundled() throws -> [Artifact] {
        let folder = try XCTUnwrap(Bundle.main.resourceURL).appendingPathComponent("Models")
        let artifacts = Artifact.find(in: folder).artifacts
        try XCTSkipIf(artifacts.isEmpty, "no models: mf-bench bundle RUN --out apps/ios/Models")
        return artifacts
    }
}
