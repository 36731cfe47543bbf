import CryptoKit
import Foundation

/// Something that whoever runs the benchmark can act on, in one line.
struct BenchError: LocalizedError {
    let message: String

    init(_ message: String) {
        self.message = message
    }

    var errorDescription: String? { message }
}

/// What the app reads of an artifact's manifest.json.
struct Manifest: Decodable {
    struct Tensor: Decodable {
        let name: String
        let shape: [Int]
        let layout: String
        let dtype: String
    }

    struct Output: Decodable {
        let name: String
    }

    struct Source: Decodable {
        let name: String
    }

    struct File: Decodable {
        let name: String
        let sha256: String
        let bytes: Int
    }

    let target: String
    let scheme: String
    let model: Source
    let modelFile: String
    let input: Tensor
    let outputs: [Output]
    let files: [File]

    /// Of the model: its one file's digest, or that of the names and digests of a package's files.
    var sha256: String {
        let sorted = files.sorted { ($0.name, $0.sha256) < ($1.name, $1.sha256) }
        if sorted.count == 1 {
            return sorted[0].sha256
        }
        let listing = sorted.map { "\($0.sha256)  \($0.name)\n" }.joined()
        return hexDigest(of: Data(listing.utf8))
    }

    var bytes: Int {
        files.reduce(0) { $0 + $1.bytes }
    }
}

/// An artifact folder that was copied to the phone, or bundled with the app.
struct Artifact: Identifiable {
    let folder: URL
    let manifest: Manifest

    var id: String { folder.path }
    var name: String { folder.lastPathComponent }
    var modelURL: URL { folder.appendingPathComponent(manifest.modelFile) }
    var batch: Int { manifest.input.shape.first ?? 1 }

    init(folder: URL) throws {
        let data = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        self.folder = folder
        manifest = try decoder.decode(Manifest.self, from: data)
        guard manifest.target == "coreml", !manifest.outputs.isEmpty, !manifest.input.shape.isEmpty else {
            throw BenchError("\(folder.lastPathComponent) is for \(manifest.target); this app runs coreml")
        }
    }

    /// Refuses files that are not those that the manifest tells of.
    func verify() throws {
        let root = folder.standardizedFileURL.path + "/"
        for file in manifest.files {
            let url = folder.appendingPathComponent(file.name).standardizedFileURL
            guard url.path.hasPrefix(root) else {
                throw BenchError("\(file.name) lies outside \(name)")
            }
            let data = try Data(contentsOf: url, options: .mappedIfSafe)
            guard data.count == file.bytes, hexDigest(of: data) == file.sha256 else {
                throw BenchError("\(name): \(file.name) is damaged; copy it again")
            }
        }
    }

    /// The artifacts directly in `root` or one level below, sorted, and what could not be read.
    static func find(in root: URL) -> (artifacts: [Artifact], problems: [String]) {
        var found: [Artifact] = []
        var problems: [String] = []
        for folder in folders(in: root).flatMap({ [$0] + folders(in: $0) }) {
            let manifest = folder.appendingPathComponent("manifest.json")
            guard FileManager.default.fileExists(atPath: manifest.path) else { continue }
            do {
                found.append(try Artifact(folder: folder))
            } catch {
                problems.append("\(folder.lastPathComponent): \(error.localizedDescription)")
            }
        }
        return (found, problems)
    }

    private static func folders(in root: URL) -> [URL] {
        let keys: [URLResourceKey] = [.isDirectoryKey]
        let found = try? FileManager.default.contentsOfDirectory(at: root, includingPropertiesForKeys: keys)
        return (found ?? [])
            .filter { (try? $0.resourceValues(forKeys: Set(keys)).isDirectory) == true }
            .sorted { $0.path < $1.path }
    }
}

private func hexDigest(of data: Data) -> String {
    SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
}
