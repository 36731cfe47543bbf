import Foundation

/// How a latency is measured: one input, one inference after another, every one timed.
///
/// Timing goes on until `minRuns` inferences and `minSeconds` have both passed; so does the warm-up before
/// it, whose times are not counted. The same rules and numbers as mf-bench's.
struct BenchProtocol: Codable, Hashable {
    /// Times that are kept at most.
    static let maxSamples = 400_000

    var minRuns = 1024
    var minSeconds = 60.0
    var warmupRuns = 10
    var warmupSeconds = 2.0
    var coolDownSeconds = 0.0

    /// The length of MLPerf Mobile's single-stream scenario: at least 1,024 queries and 60 s.
    static let singleStream = BenchProtocol()

    /// 200 inferences after half a second of warm-up: for a first look.
    static let quick = BenchProtocol(minRuns: 200, minSeconds: 0, warmupSeconds: 0.5)

    /// As long as `seconds`: what a phone still does when it is warm.
    static func sustained(seconds: Double) -> BenchProtocol {
        BenchProtocol(minRuns: 1, minSeconds: seconds, warmupSeconds: 0.5)
    }

    /// What the screen offers.
    static let choices: [(name: String, value: BenchProtocol)] = [
        ("1,024 queries, 60 s", .singleStream),
        ("quick", .quick),
        ("sustained, 10 min", .sustained(seconds: 600)),
        ("sustained, 30 min", .sustained(seconds: 1800)),
    ]
}
