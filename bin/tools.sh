# Installs pinned tools from crates.io that checks and builds need, for a script that sources this.
# They are installed only under .local/tools, without optimizations, because they run for seconds and compile for minutes.
# shellcheck shell=bash

# pinned_tool NAME: prints the pinned version.
pinned_tool() {
    case $1 in
        cargo-auditable) echo 0.7.7 ;;
        auditable2cdx) echo 0.1.0 ;;
        cargo-deny) echo 0.20.2 ;;
        cargo-machete) echo 0.9.2 ;;
        *) die "bin/tools.sh pins no version of $1" ;;
    esac
}

# has_tool NAME: whether the pinned version is installed. It also adds the tools to PATH.
has_tool() {
    PATH=$PWD/.local/tools/bin:${PATH#"$PWD/.local/tools/bin:"}
    grep -qs "^\"$1 $(pinned_tool "$1") " .local/tools/.crates.toml
}

# install_tool NAME: installs the pinned version if it is missing, and adds it to PATH.
install_tool() {
    if has_tool "$1"; then return; fi
    say "installing $1 $(pinned_tool "$1") from crates.io, once"
    # Without the variables that are set for the programs that are built here.
    env -u RUSTFLAGS -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=false cargo install --locked --quiet --debug --root .local/tools --version "$(pinned_tool "$1")" "$1"
}
