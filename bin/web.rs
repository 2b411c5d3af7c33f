//! The `web` process.

fn main() -> std::process::ExitCode {
    app::web::main()
}
