//! One-off tasks, in the same release and with the same config as the processes.

fn main() -> std::process::ExitCode {
    app::processes::admin::main()
}
