import Foundation
import UIKit

/// What iOS tells about the phone.
enum Phone {
    /// The device by its identifier, e.g. iPhone16,1; Apple names no processor.
    static var device: Report.Device {
        var system = utsname()
        uname(&system)
        let machine = withUnsafeBytes(of: &system.machine) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        let info = ProcessInfo.processInfo
        return Report.Device(
            name: "ios",
            cpu: machine,
            cores: info.activeProcessorCount,
            memoryBytes: info.physicalMemory,
            os: version,
            model: machine
        )
    }

    /// e.g. iOS 17.5.1; Core ML has no version of its own.
    static var version: String {
        let of = ProcessInfo.processInfo.operatingSystemVersion
        return "iOS \(of.majorVersion).\(of.minorVersion).\(of.patchVersion)"
    }

    /// Thermal state and battery now.
    static var conditions: Report.Conditions {
        let battery = UIDevice.current
        battery.isBatteryMonitoringEnabled = true
        let known = battery.batteryState != .unknown && battery.batteryLevel >= 0
        return Report.Conditions(
            thermalState: thermalState,
            batteryPercent: known ? Double(battery.batteryLevel) * 100 : nil,
            charging: known ? battery.batteryState != .unplugged : nil
        )
    }

    private static var thermalState: String {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: return "nominal"
        case .fair: return "fair"
        case .serious: return "serious"
        case .critical: return "critical"
        @unknown default: return "unknown"
        }
    }

    /// Resident memory of this process, bytes: now, and the most that it has been.
    static var memory: (now: UInt64, peak: UInt64)? {
        var info = mach_task_basic_info()
        var count = mach_msg_type_number_t(MemoryLayout<mach_task_basic_info>.size / MemoryLayout<natural_t>.size)
        let status = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(MACH_TASK_BASIC_INFO), $0, &count)
            }
        }
        guard status == KERN_SUCCESS else { return nil }
        return (UInt64(info.resident_size), UInt64(info.resident_size_max))
    }
}
