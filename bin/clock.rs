//! The `clock` process.

fn main() -> std::process::ExitCode {
    app::processes::clock::main()
}
