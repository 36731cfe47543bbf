import XCTest

@testable import MFBench

/// The protocol and its figures, without a model.
final class BenchmarkTests: XCTestCase {
    private final class Adder: Engine {
        private(set) var count = 0

        func setInput(_: Data) {}
        func infer() { count += 1 }
        func logits() -> [[Double]] { [[Double(count)]] }
    }

    private func benchmark(_ rules: BenchProtocol, stopReason: @escaping () -> String? = { nil }) -> Benchmark {
        Benchmark(rules, onProgress: { _ in }, stopReason: stopReason)
    }

    func testPercentilesInterpolate() {
        let of = Statistics(of: [4, 1, 3, 2])
        XCTAssertEqual(of.p50Ms, 2.5, accuracy: 1e-12)
        XCTAssertEqual(of.p90Ms, 3.7, accuracy: 1e-12)
        XCTAssertEqual(of.stdMs, 1.290994448735806, accuracy: 1e-12)
        XCTAssertEqual(Statistics(of: [2]).stdMs, 0)
    }

    func testSamplesAreThinned() {
        var samples = Samples(limit: 8)
        (0..<40).forEach { samples.add(Double($0), at: Double($0)) }
        XCTAssertEqual(samples.seen, 40)
        XCTAssertEqual(samples.keptEvery, 8)
        XCTAssertEqual(samples.timesMs, [0, 8, 16, 24, 32])
    }

    func testEveryInferenceIsTimed() throws {
        let engine = Adder()
        let rules = BenchProtocol(minRuns: 30, minSeconds: 0, warmupRuns: 4, warmupSeconds: 0)
        XCTAssertEqual(try benchmark(rules).warmUp(engine).seen, 4)
        XCTAssertEqual(try benchmark(rules).sample(engine).seen, 30)
        XCTAssertEqual(engine.count, 34)
    }

    func testItStopsWhenTold() throws {
        let rules = BenchProtocol(minRuns: 1_000_000, minSeconds: 600)
        XCTAssertEqual(try benchmark(rules, stopReason: { "stop" }).sample(Adder()).seen, 1)
    }

    func testNamesAreTheSchemas() throws {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        let text = String(decoding: try encoder.encode(Statistics(of: [1])), as: UTF8.self)
        for name in ["p50_ms", "p90_ms", "mean_ms", "std_ms", "max_ms"] {
            XCTAssertTrue(text.contains("\"\(name)\""), text)
        }
    }
}
