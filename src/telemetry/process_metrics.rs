//! What the process takes of the machine, under the names that Prometheus's own clients give it.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Looks when it is asked.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // Where the system does not tell, as in some sandboxes, nothing is told.
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
            ("process_resident_memory_bytes", "Resident memory in bytes", said(&status, "VmRSS:").map(|kib| kib * 1024)),
            ("process_virtual_memory_bytes", "Virtual memory in bytes", said(&status, "VmSize:").map(|kib| kib * 1024)),
            // One of them reads the folder.
            ("process_open_fds", "Open file descriptors", Some((files.count() as u64).saturating_sub(1))),
            ("process_max_fds", "File descriptors that may be open", Some(most_files)),
            ("process_threads", "Threads", said(&status, "Threads:")),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, meaning, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// The number behind a name in `/proc/self/status` (`proc_pid_status(5)`); of memory in KiB.
fn said(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "a process that ran that long is not known")]
fn seconds(time: TimeVal) -> f64 {
    time.num_microseconds() as f64 / 1e6
}
