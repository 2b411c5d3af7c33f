//! The `worker` process.

fn main() -> std::process::ExitCode {
    app::processes::worker::main()
}
