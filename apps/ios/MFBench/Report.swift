import Foundation

/// A result file: what mf-bench import and mf-report read. Names become snake_case when they are written.
struct Report: Encodable {
    struct Engine: Encodable {
        let name: String
        let version: String
    }

    struct Device: Encodable {
        let name: String
        let cpu: String
        let cores: Int
        let memoryBytes: UInt64
        let os: String
        let model: String
    }

    struct Conditions: Encodable {
        let thermalState: String
        let batteryPercent: Double?
        let charging: Bool?
    }

    struct TimedConditions: Encodable {
        let atS: Double
        let conditions: Conditions
    }

    struct Placement: Encodable, Hashable {
        let `operator`: String
        let name: String
        let unit: String
        let cost: Double?
    }

    struct Correctness: Encodable {
        let reference: String
        let inputs: Int
        @Null var maxAbsError: Double?
        let tolerance: Double
        let passed: Bool
    }

    struct Measurement: Encodable {
        let engine: Engine
        let acceleratorRequested: String
        @Null var acceleratorUsed: String?
        let loadMs: Double
        let firstInferenceMs: Double
        let warmupMs: [Double]
        let samplesMs: [Double]
        let sampledAtS: [Double]
        let keptEvery: Int
        let conditionsOverTime: [TimedConditions]
        let statistics: Statistics
        let imagesPerS: Double
        let rssBeforeLoadBytes: UInt64?
        let peakRssBytes: UInt64?
        let before: Conditions
        let after: Conditions
        let probeLogits: [[Double]]?
        let correctness: Correctness?
        let placement: [Placement]?
        let partial: String?
    }

    let schemaVersion = 2
    let artifact: String
    let model: String
    let target: String
    let scheme: String
    let modelSha256: String
    let modelBytes: Int
    let batch: Int
    let kind = "device"
    let device: Device
    let threads = 1 // Core ML decides for itself
    let `protocol`: BenchProtocol
    let measurement: Measurement?
    let notRun: String?
    let measuredBy = "iOS app"
    let created: String

    /// Exactly one of `measurement` and `notRun` is given.
    init(of artifact: Artifact, under rules: BenchProtocol, measurement: Measurement?, notRun: String?) {
        self.artifact = artifact.name
        model = artifact.manifest.model.name
        target = artifact.manifest.target
        scheme = artifact.manifest.scheme
        modelSha256 = artifact.manifest.sha256
        modelBytes = artifact.manifest.bytes
        batch = artifact.batch
        device = Phone.device
        `protocol` = rules
        self.measurement = measurement
        self.notRun = notRun
        created = ISO8601DateFormatter().string(from: Date())
    }

    var json: Data {
        get throws {
            let encoder = JSONEncoder()
            encoder.keyEncodingStrategy = .convertToSnakeCase
            return try encoder.encode(self)
        }
    }

    /// Writes the report into the app's documents, which the Files app and a Mac can see.
    func save(as name: String) throws -> URL {
        let folder = URL.documentsDirectory.appendingPathComponent("results")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let file = folder.appendingPathComponent(name + ".json")
        try json.write(to: file, options: .atomic)
        return file
    }
}

/// An optional that is written as null, where leaving it out would mean something else.
@propertyWrapper
struct Null<Value: Encodable>: Encodable {
    var wrappedValue: Value?

    func encode(to encoder: Encoder) throws {
        var container = encoder.singleValueContainer()
        if let wrappedValue {
            try container.encode(wrappedValue)
        } else {
            try container.encodeNil()
        }
    }
}
