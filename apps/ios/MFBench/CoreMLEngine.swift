import CoreML
import CoreVideo
import Foundation

/// Where Core ML may run a model; it falls back to the CPU for what a unit cannot run.
enum ComputeUnits: String, CaseIterable, Identifiable {
    case all
    case neuralEngine = "neural-engine"
    case gpu
    case cpu

    var id: String { rawValue }

    var coreML: MLComputeUnits {
        switch self {
        case .all: return .all
        case .neuralEngine: return .cpuAndNeuralEngine
        case .gpu: return .cpuAndGPU
        case .cpu: return .cpuOnly
        }
    }
}

/// What runs a model, so that the protocol can be tested without one.
protocol Engine {
    /// Give the engine one whole batch; not timed.
    func setInput(_ data: Data) throws
    /// One inference; this is what the samples time.
    func infer() throws
    /// The logits of the last inference, a row a sample.
    func logits() throws -> [[Double]]
}

/// One compiled model on the chosen compute units.
final class CoreMLEngine: Engine {
    private let model: MLModel
    private let artifact: Artifact
    private var features: MLFeatureProvider?
    private var answer: MLFeatureProvider?

    /// Opens a compiled model; this is what `load_ms` times.
    init(_ artifact: Artifact, compiled: URL, units: ComputeUnits) throws {
        self.artifact = artifact
        model = try MLModel(contentsOf: compiled, configuration: CoreMLEngine.configuration(units))
    }

    static func configuration(_ units: ComputeUnits) -> MLModelConfiguration {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units.coreML
        return configuration
    }

    func setInput(_ data: Data) throws {
        let input = artifact.manifest.input
        let value: MLFeatureValue
        if input.layout == "NHWC" {
            value = MLFeatureValue(pixelBuffer: try pixelBuffer(data, shape: input.shape))
        } else {
            value = MLFeatureValue(multiArray: try multiArray(data, input))
        }
        features = try MLDictionaryFeatureProvider(dictionary: [input.name: value])
    }

    func infer() throws {
        guard let features else { throw BenchError("no input") }
        answer = try model.prediction(from: features)
    }

    func logits() throws -> [[Double]] {
        let name = artifact.manifest.outputs[0].name
        guard let array = answer?.featureValue(for: name)?.multiArrayValue else {
            throw BenchError("\(artifact.name) has no output \(name)")
        }
        let values = (0..<array.count).map { array[$0].doubleValue }
        let width = values.count / artifact.batch
        return (0..<artifact.batch).map { Array(values[$0 * width..<($0 + 1) * width]) }
    }

    private func multiArray(_ data: Data, _ input: Manifest.Tensor) throws -> MLMultiArray {
        let type: MLMultiArrayDataType = input.dtype == "float16" ? .float16 : .float32
        let array = try MLMultiArray(shape: input.shape.map { NSNumber(value: $0) }, dataType: type)
        let bytes = array.count * (type == .float16 ? 2 : 4)
        guard data.count == bytes else {
            throw BenchError("\(artifact.name): its probe does not fit its input; copy it again")
        }
        data.withUnsafeBytes { source in
            array.dataPointer.copyMemory(from: source.baseAddress!, byteCount: bytes)
        }
        return array
    }

    /// RGB bytes as the picture that Core ML wants: blue, green, red, and an alpha that is not looked at.
    private func pixelBuffer(_ data: Data, shape: [Int]) throws -> CVPixelBuffer {
        guard shape.count == 4, shape[0] == 1, shape[3] == 3, data.count == shape[1] * shape[2] * 3 else {
            throw BenchError("\(artifact.name): its probe does not fit its input; copy it again")
        }
        let (height, width) = (shape[1], shape[2])
        var made: CVPixelBuffer?
        CVPixelBufferCreate(nil, width, height, kCVPixelFormatType_32BGRA, nil, &made)
        guard let buffer = made, CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess,
              let base = CVPixelBufferGetBaseAddress(buffer)
        else {
            throw BenchError("no memory for a picture")
        }
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        let pixels = [UInt8](data)
        for y in 0..<height {
            let row = base.advanced(by: y * stride).assumingMemoryBound(to: UInt8.self)
            for x in 0..<width {
                let source = (y * width + x) * 3
                row[4 * x] = pixels[source + 2]
                row[4 * x + 1] = pixels[source + 1]
                row[4 * x + 2] = pixels[source]
                row[4 * x + 3] = 255
            }
        }
        return buffer
    }
}
