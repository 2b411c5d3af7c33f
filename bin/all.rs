//! All process types in one program, which acts by the name that it is called by. The image holds it once, with a link for
//! each name: four programs would carry the same library four times.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use app::lifecycle::EXIT_USAGE;

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    match Path::new(&called).file_name().and_then(OsStr::to_str) {
        Some("web") => app::processes::web::main(),
        Some("worker") => app::processes::worker::main(),
        Some("clock") => app::processes::clock::main(),
        Some("admin") => app::processes::admin::main(),
        _ => {
            let _ = writeln!(std::io::stderr(), "call this by the name of a program: web, worker, clock or admin");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
