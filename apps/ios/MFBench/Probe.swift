import Foundation

/// Fixed inputs, and the logits that the computer makes of them: a model that is fast because it is wrong is
/// caught. `mf-bench bundle` writes both into the folder `probe` beside the model.
struct Probe {
    private struct Expected: Decodable {
        let reference: String
        let tolerance: Double
        let inputs: Int
        let logits: [[Double]]
    }

    private let expected: Expected
    /// Whole batches as the model takes them.
    let inputs: [Data]

    /// The probe of an artifact, or nil where there is none.
    init?(of artifact: Artifact) throws {
        let folder = artifact.folder.appendingPathComponent("probe")
        guard let all = try? Data(contentsOf: folder.appendingPathComponent("inputs.bin")) else { return nil }
        let json = try Data(contentsOf: folder.appendingPathComponent("expected.json"))
        let known = try JSONDecoder().decode(Expected.self, from: json)
        guard known.inputs > 0, all.count % known.inputs == 0, known.logits.count == known.inputs * artifact.batch
        else {
            throw BenchError("\(artifact.name): its probe does not fit; copy it again")
        }
        let size = all.count / known.inputs
        inputs = (0..<known.inputs).map { all.subdata(in: $0 * size..<($0 + 1) * size) }
        expected = known
    }

    /// What these logits are worth.
    func judge(_ rows: [[Double]]) -> Report.Correctness {
        var largest: Double? = 0
        for (given, wanted) in zip(rows, expected.logits) {
            guard given.count == wanted.count, given.allSatisfy(\.isFinite) else {
                largest = nil
                break
            }
            for (a, b) in zip(given, wanted) {
                largest = max(largest ?? 0, abs(a - b))
            }
        }
        return Report.Correctness(
            reference: expected.reference,
            inputs: expected.logits.count,
            maxAbsError: largest,
            tolerance: expected.tolerance,
            passed: rows.count == expected.logits.count && (largest ?? .infinity) <= expected.tolerance
        )
    }
}
