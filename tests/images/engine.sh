# What run and base-images ask of the engine that $ENGINE names, docker or buildah, for a script that sources this after
# bin/services.sh.
# shellcheck shell=bash disable=SC2154 # work, run and launched are set elsewhere

# has_plugins: whether Docker can build and compose. base-images installs what is missing.
has_plugins() {
    if [ -d .local/docker/cli-plugins ]; then export DOCKER_CONFIG=$PWD/.local/docker; fi
    { docker compose version && docker buildx version; } >/dev/null 2>&1
}

# The images that the Dockerfile and docker-compose.yml begin with.
base_images() { sed -n 's/^FROM \([a-z]*:[^ ]*\).*/\1/p' Dockerfile && sed -n 's|^ *image: \([a-z/]*:.*\)|\1|p' docker-compose.yml; }

has_image() {
    if [ "$ENGINE" = docker ]; then docker image inspect "$1" >/dev/null 2>&1; else buildah inspect --type image "$1" >/dev/null 2>&1; fi
}
fetch_image() { "$ENGINE" pull --quiet "$1" >/dev/null 2>&1; }

# build NAME CONTEXT OPTIONS…: prints nothing unless it fails.
build() {
    local name=$1 output
    shift
    if [ "$ENGINE" = docker ]; then
        output=$(docker build --tag "$name" "$@" 2>&1) || die "$output"
    else
        output=$(buildah build --isolation chroot --layers --pull-never --tag "$name" "${@:2}" "$1" 2>&1) || die "$output"
    fi
}

# of_image NAME FIELD, label_of NAME FIELD: a field or a label of an image.
of_image() {
    if [ "$ENGINE" = docker ]; then docker image inspect --format "{{.Config.$2}}" "$1"
    else buildah inspect --type image --format "{{.OCIv1.Config.$2}}" "$1"; fi
}
label_of() {
    local config=.Config
    [ "$ENGINE" = docker ] || config=.OCIv1.Config
    local format="{{index $config.Labels \"org.opencontainers.image.$2\"}}"
    if [ "$ENGINE" = docker ]; then docker image inspect --format "$format" "$1"; else buildah inspect --type image --format "$format" "$1"; fi
}

# unpack NAME FOLDER: the file system of a container of the image.
unpack() {
    local container
    if [ "$ENGINE" = docker ]; then
        container=$(docker create "$1")
        docker export "$container" | tar --extract --directory "$2"
        docker rm "$container" >/dev/null
    else
        container=$(buildah from --pull-never "$1")
        cp -R "$(buildah mount "$container")/." "$2"
        buildah rm "$container" >/dev/null
    fi
}

# in_suite COMMAND…: runs a command on this checkout in the image `suite`, as root, with every tool that its tests need. Without
# CI=true, so that bin/setup does not install those of other tests.
in_suite() {
    local rust cargo_home=${CARGO_HOME:-$HOME/.cargo} mounts settings
    rust=$(sed -n 's/^FROM \(rust:[^ ]*\).*/\1/p' Dockerfile)
    mounts=(--volume "$PWD:$PWD")
    # The checkout may belong to another user than root.
    # Its programs are linked with another libc, so they have a separate folder.
    settings=(CI=false "CARGO_TARGET_DIR=$PWD/target/suite" GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*')
    if [ "$(label_of "$rust" title)" = stand-in ]; then
        # It has this machine's toolchain, so it reuses this machine's build if all paths are the same.
        mounts+=(--volume "$cargo_home:$cargo_home")
        settings+=("CARGO_HOME=$cargo_home")
        if [ ! -d target/suite ]; then
            seed_target "$PWD/target/suite"
            # Our own programs are rebuilt. They would be overwritten in place, and the files are hard links to this machine's.
            rm -rf target/suite/debug/.fingerprint/app-* target/suite/debug/build/app-*
        fi
    fi
    # shellcheck disable=SC2016 # the container's shell
    local as_owner='env "$@"; status=$?; chown -R --reference=Cargo.toml target; exit "$status"'
    if [ "$ENGINE" = docker ]; then
        # For strace, and for mounts in tests.
        docker run --rm --init --cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined --shm-size 1g "${mounts[@]}" --volume "$PWD/.local" --workdir "$PWD" suite sh -c "$as_owner" _ "${settings[@]}" "$@"
    else
        local container status=0 own=$work/local
        mkdir -p "$own"
        # The balancer of a test needs more than 1024 files.
        container=$(buildah from --pull-never --cap-add CAP_SYS_ADMIN --cap-add CAP_SYS_PTRACE --security-opt seccomp=unconfined --ulimit nofile=8192:8192 suite)
        buildah run --isolation chroot "${mounts[@]}" --volume "$own:$PWD/.local" --workingdir "$PWD" "$container" -- sh -c "$as_owner" _ "${settings[@]}" "$@" || status=$?
        buildah rm "$container" >/dev/null
        return "$status"
    fi
}

# run_without_engine FOLDER: an unpacked image's programs as a container would run them, from its root and as its user.
run_without_engine() {
    local port url inside status=0
    bin/setup
    . .local/services
    begin ".local/images-$$.throwaway"
    start_for_tests
    port=$(free_port)
    url=http://localhost:$port
    # The files that every engine adds to a container.
    mkdir -p "$1/dev" && cp -R /dev/null /dev/random /dev/urandom "$1/dev/"
    # By its full path, because the programs' PATH is the image's.
    inside=(env -i PATH=/bin PORT="$port" DATABASE_URL="$SERVER_URL/postgres" REDIS_URL="$TEST_REDIS_URL/0" PUBLIC_URL="$url"
        "$(PATH=$PATH:/usr/sbin command -v chroot)" --userspec=10001:10001 "$1")
    "${inside[@]}" admin migrate
    launch TERM "${inside[@]}" web >"$run/web.log"
    local web=$launched tries=0
    until [ "$(curl --silent --output /dev/null --write-out '%{http_code}' "$url/readyz")" = 200 ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || die "web is not ready: $(tail -n 3 "$run/web.log")"
        sleep 0.1
    done
    same "health, as a container asks for it" "$("${inside[@]}" admin health >/dev/null && echo yes)" yes
    kill -s TERM "$web"
    wait "$web" || status=$?
    same "exit of web on SIGTERM" "$status" 0
    finish
}
