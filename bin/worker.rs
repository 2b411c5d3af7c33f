//! The `worker` process.

fn main() -> std::process::ExitCode {
    app::worker::main()
}
