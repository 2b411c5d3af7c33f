//! The `web` process.

fn main() -> std::process::ExitCode {
    app::processes::web::main()
}
