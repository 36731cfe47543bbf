import Foundation

/// Of samples: percentiles interpolate linearly between them, the deviation is that of a sample (n - 1).
struct Statistics: Codable, Equatable {
    let p50Ms, p90Ms, p95Ms, p99Ms: Double
    let meanMs, stdMs, minMs, maxMs: Double

    /// Of at least one sample, milliseconds.
    init(of samples: [Double]) {
        precondition(!samples.isEmpty, "no samples")
        let sorted = samples.sorted()
        let mean = sorted.reduce(0, +) / Double(sorted.count)
        let squares = sorted.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
        p50Ms = Statistics.percentile(50, of: sorted)
        p90Ms = Statistics.percentile(90, of: sorted)
        p95Ms = Statistics.percentile(95, of: sorted)
        p99Ms = Statistics.percentile(99, of: sorted)
        meanMs = mean
        stdMs = sorted.count > 1 ? (squares / Double(sorted.count - 1)).squareRoot() : 0
        minMs = sorted[0]
        maxMs = sorted[sorted.count - 1]
    }

    private static func percentile(_ percent: Double, of sorted: [Double]) -> Double {
        let place = percent / 100 * Double(sorted.count - 1)
        let below = Int(place)
        let above = min(below + 1, sorted.count - 1)
        return sorted[below] + (place - Double(below)) * (sorted[above] - sorted[below])
    }
}

/// Times and when they ended. Never more than a limit: when there are more, every second one is dropped, and
/// from then on only every second one is kept, and so on.
struct Samples {
    private(set) var timesMs: [Double] = []
    private(set) var endsSeconds: [Double] = []
    private(set) var keptEvery = 1
    private(set) var seen = 0
    private let limit: Int

    init(limit: Int = BenchProtocol.maxSamples) {
        self.limit = limit
    }

    /// An inference took `ms` and ended `seconds` after the timed part began.
    mutating func add(_ ms: Double, at seconds: Double) {
        defer { seen += 1 }
        guard seen % keptEvery == 0 else { return }
        if timesMs.count == limit {
            timesMs = Samples.everySecond(timesMs)
            endsSeconds = Samples.everySecond(endsSeconds)
            keptEvery *= 2
        }
        guard seen % keptEvery == 0 else { return }
        timesMs.append(Samples.rounded(ms))
        endsSeconds.append(Samples.rounded(seconds))
    }

    /// To a tenth of a microsecond, as mf-bench does; a finer clock reading is noise.
    static func rounded(_ value: Double) -> Double {
        (value * 10_000).rounded() / 10_000
    }

    private static func everySecond(_ values: [Double]) -> [Double] {
        stride(from: 0, to: values.count, by: 2).map { values[$0] }
    }
}
