import SwiftUI

/// Runs Core ML artifacts by the protocol of mf-bench, and writes the same result files.
@main
struct MFBenchApp: App {
    var body: some Scene {
        WindowGroup {
            NavigationStack {
                ModelList()
            }
        }
    }
}
