//! What the process takes of the machine, under the names that Prometheus's own clients give it.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Looks when it is asked.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let myself = || -> procfs::ProcResult<_> {
            let process = procfs::process::Process::myself()?;
            let files = process.limits()?.max_open_files.soft_limit;
            Ok((process.stat()?, process.fd_count()?, files))
        };
        // Where the system does not tell, as in some sandboxes, nothing is told.
        let Ok((stat, open_files, files)) = myself() else { return Ok(()) };
        #[expect(clippy::cast_precision_loss, reason = "a process that ran that long is not known")]
        let cpu = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        let cpu = ConstCounter::new(cpu);
        let described = encoder.encode_descriptor("process_cpu_seconds", "CPU time in seconds", None, cpu.metric_type())?;
        cpu.encode(described)?;
        let most = if let procfs::process::LimitValue::Value(files) = files { files } else { u64::MAX };
        for (name, meaning, value) in [
            ("process_resident_memory_bytes", "Resident memory in bytes", stat.rss * procfs::page_size()),
            ("process_virtual_memory_bytes", "Virtual memory in bytes", stat.vsize),
            ("process_open_fds", "Open file descriptors", open_files as u64),
            ("process_max_fds", "File descriptors that may be open", most),
            ("process_threads", "Threads", stat.num_threads.unsigned_abs()),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, meaning, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
