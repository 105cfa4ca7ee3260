// Preconcurrency: mach_task_self_ is a variable in C, though nobody changes it.
#if canImport(Darwin)
  @preconcurrency import Darwin
  import os
#endif

/// What the kernel says of this process's memory, in bytes.
struct TaskMemory {
  /// phys_footprint, which the system kills by.
  let footprint: Int64
  let highestFootprint: Int64
  let resident: Int64

  /// Nil where the system does not tell.
  static func now() -> TaskMemory? {
    #if canImport(Darwin)
      var info = task_vm_info_data_t()
      var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size)
      let status = withUnsafeMutablePointer(to: &info) { pointer in
        pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
          task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
        }
      }
      guard status == KERN_SUCCESS else { return nil }
      return TaskMemory(
        footprint: Int64(info.phys_footprint), highestFootprint: Int64(info.ledger_phys_footprint_peak),
        resident: Int64(info.resident_size))
    #else
      return nil
    #endif
  }

  /// How much more this process may take before the system ends it; nil where there is no such limit.
  static func available() -> Int64? {
    #if os(iOS)
      let bytes = os_proc_available_memory()
      return bytes > 0 ? Int64(bytes) : nil
    #else
      return nil
    #endif
  }
}
