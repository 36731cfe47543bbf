import CoreML
import Foundation

/// Which unit Core ML means to run each operation on.
enum ComputePlan {
    /// The operations of the main function, in order; nil before iOS 17.4, or where Core ML does not tell.
    static func placement(of compiled: URL, units: ComputeUnits) async -> [Report.Placement]? {
        guard #available(iOS 17.4, *) else { return nil }
        let configuration = CoreMLEngine.configuration(units)
        guard let plan = try? await MLComputePlan.load(contentsOf: compiled, configuration: configuration),
              case let .program(program) = plan.modelStructure,
              let main = program.functions["main"]
        else { return nil }
        return main.block.operations.compactMap { operation in
            // Constants have no device: they are not run.
            guard let usage = plan.deviceUsage(for: operation) else { return nil }
            return Report.Placement(
                operator: operation.operatorName,
                name: String((operation.outputs.first?.name ?? "").prefix(200)),
                unit: name(of: usage.preferred),
                cost: plan.estimatedCost(of: operation)?.weight
            )
        }
    }

    /// The units that a placement uses, e.g. "cpu, neural-engine".
    static func units(in placement: [Report.Placement]?) -> String? {
        guard let placement, !placement.isEmpty else { return nil }
        return Set(placement.map(\.unit)).sorted().joined(separator: ", ")
    }

    @available(iOS 17.4, *)
    private static func name(of device: MLComputeDevice) -> String {
        switch device {
        case .cpu: return "cpu"
        case .gpu: return "gpu"
        case .neuralEngine: return "neural-engine"
        @unknown default: return "unknown"
        }
    }
}
