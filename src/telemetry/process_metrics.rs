//! Metrics of the process's use of the machine. Prometheus's own clients use the same names.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads the values when the metrics are read.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // Some sandboxes hide these files. Then the metrics are left out.
        let (Ok(used), Ok((most_files, _)), Ok(status), Ok(files)) = (
            getrusage(UsageWho::RUSAGE_SELF),
            getrlimit(Resource::RLIMIT_NOFILE),
            fs::read_to_string("/proc/self/status"),
            fs::read_dir("/proc/self/fd"),
        ) else {
            return Ok(());
        };
        let cpu = ConstCounter::new(seconds(used.user_time() + used.system_time()));
        let described = encoder.encode_descriptor("process_cpu_seconds", "CPU time in seconds", None, cpu.metric_type())?;
        cpu.encode(described)?;
        for (name, meaning, value) in [
            ("process_resident_memory_bytes", "Resident memory in bytes", value_of(&status, "VmRSS:").map(|kib| kib * 1024)),
            ("process_virtual_memory_bytes", "Virtual memory in bytes", value_of(&status, "VmSize:").map(|kib| kib * 1024)),
            // Without the descriptor that reads the folder.
            ("process_open_fds", "Open file descriptors", Some((files.count() as u64).saturating_sub(1))),
            ("process_max_fds", "File descriptors that may be open", Some(most_files)),
            ("process_threads", "Threads", value_of(&status, "Threads:")),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, meaning, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// The number after a name in `/proc/self/status` (`proc_pid_status(5)`). Memory is in KiB.
fn value_of(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "a process that ran that long is not known")]
fn seconds(time: TimeVal) -> f64 {
    time.num_microseconds() as f64 / 1e6
}
