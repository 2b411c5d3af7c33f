//! `bin/bench start`: how long a process takes from its start until it is ready, and from SIGTERM until it has exited. The
//! yardstick is a program of the same size that does nothing. Also the sizes of the programs and the image.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod report;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use report::{Report, median, spread};

const ROUNDS: usize = 30;

fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let mut report = Report::default();
    let mut nothing = Vec::new();
    let mut times = [("web", Vec::new(), Vec::new()), ("worker", Vec::new(), Vec::new()), ("clock", Vec::new(), Vec::new())];
    for _ in 0..ROUNDS {
        nothing.push(milliseconds(|| drop(Command::new(programs.join("admin")).arg("--version").output().unwrap())));
        for (program, ready, gone) in &mut times {
            let (to_ready, to_exit) = live_and_die(&programs, program);
            ready.push(to_ready);
            gone.push(to_exit);
        }
    }
    report.figure("admin --version, exec to exit, ms, median", format!("{:.1}", median(&nothing)));
    for (program, ready, gone) in &times {
        report.reach(&format!("{program}, exec to ready, ms, median"), median(ready), median(ready) <= 30.0, "30");
        report.figure("   of thirty starts", spread(ready, 1));
        report.reach(&format!("{program}, idle, SIGTERM to exit, ms, median"), median(gone), median(gone) <= 20.0, "20");
        report.figure("   of thirty ends", spread(gone, 1));
    }
    for program in ["web", "worker", "clock", "admin"] {
        let bytes = std::fs::metadata(programs.join(program)).unwrap().len();
        #[expect(clippy::cast_precision_loss, reason = "bytes of a program")]
        report.figure(&format!("{program}, size, MB"), format!("{:.1}", bytes as f64 / 1e6));
    }
    report.figure("image, size, MB", image_mb().map_or_else(|| "not built".to_owned(), |mb| format!("{mb:.1}")));
    report.finish("start");
}

/// The size of the image that docker-compose.yml names, if Docker has it.
fn image_mb() -> Option<f64> {
    let name = std::env::var("IMAGE").ok()?;
    let output = Command::new("docker").args(["image", "inspect", "--format", "{{.Size}}", &name]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse::<f64>().ok().map(|bytes| bytes / 1e6)
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64() * 1000.0
}

/// Starts and stops a process. Returns the time until it is ready, and the time from SIGTERM until it has exited.
fn live_and_die(programs: &std::path::Path, program: &str) -> (f64, f64) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let variable = if program == "web" { "PORT" } else { "METRICS_PORT" };
    let mut command = Command::new(programs.join(program));
    command.env(variable, port.to_string()).stdout(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    while !is_ready(port) {
        assert!(started.elapsed() < Duration::from_secs(10), "{program} does not become ready");
        std::thread::sleep(Duration::from_micros(500));
    }
    let to_ready = started.elapsed().as_secs_f64() * 1000.0;
    // Waits for the work that a start leaves to do.
    std::thread::sleep(Duration::from_millis(200));
    let to_exit = milliseconds(|| {
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    });
    (to_ready, to_exit)
}

fn is_ready(port: u16) -> bool {
    let asking = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    asking().unwrap_or(false)
}
