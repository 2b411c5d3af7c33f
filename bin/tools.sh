# Tools from crates.io that checks and builds need, each of one version, for a script that sources this.
# They are installed under .local/tools and nowhere else. Unoptimized, for they work for seconds and compile for minutes.
# shellcheck shell=bash

# pinned_tool NAME: the version that is wanted.
pinned_tool() {
    case $1 in
        cargo-auditable) echo 0.7.7 ;;
        auditable2cdx) echo 0.1.0 ;;
        cargo-deny) echo 0.20.2 ;;
        cargo-machete) echo 0.9.2 ;;
        *) die "nobody has said which version of $1 is wanted" ;;
    esac
}

# has_tool NAME: whether it is there in that version; from here on it is found.
has_tool() {
    PATH=$PWD/.local/tools/bin:${PATH#"$PWD/.local/tools/bin:"}
    grep -qs "^\"$1 $(pinned_tool "$1") " .local/tools/.crates.toml
}

# install_tool NAME: the same, and it is installed where it is not there.
install_tool() {
    if has_tool "$1"; then return; fi
    say "installing $1 $(pinned_tool "$1") from crates.io, once"
    # What is set for the programs that are built here is not meant for it.
    env -u RUSTFLAGS -u CARGO_TARGET_DIR cargo install --locked --quiet --debug --root .local/tools --version "$(pinned_tool "$1")" "$1"
}
