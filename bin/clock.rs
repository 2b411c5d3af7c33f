//! The `clock` process.

fn main() -> std::process::ExitCode {
    app::clock::main()
}
