# Starts private Postgres and Redis servers and other processes for a script that sources this file, and stops them.
#
# Everything that is started is recorded in $run. A watchdog in its own process group stops it as soon as the script has ended,
# whatever ended it: the watchdog reads from a pipe that only the script holds open.
# This works in the bash 3.2 of macOS too.
# shellcheck shell=bash

# say TEXT: prints a message for people on stderr.
say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# forget_settings: unsets the variables that the programs read. A developer's own settings must affect neither tests nor
# demonstrations. Downloads may need SSL_CERT_FILE.
forget_settings() {
    local name
    while read -r name; do unset "$name" "${name}_FILE"; done < <(sed -n 's/^#\{0,1\}\([A-Z0-9_]*\)=.*/\1/p' .env.example | grep -vx SSL_CERT_FILE)
}

# For scripts that use options of the GNU tools.
need_gnu_tools() {
    mv --version >/dev/null 2>&1 && command -v sha256sum >/dev/null ||
        die "this needs the GNU tools; on macOS: brew install coreutils gnu-tar, and put their gnubin folders first in PATH"
}

# pinned NAME: the image that docker-compose.yml pins, for postgres, redis or the object store.
pinned() { sed -n "s|.*image: *\($1:[^ ]*\).*|\1|p" docker-compose.yml; }

# The folder that cargo builds into.
target_directory() { cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'; }

# seed_target FOLDER: creates a target folder with the dependencies from this checkout's own, so that another project, which has
# mostly the same dependencies, does not build them again. The files are linked, or copied if the folder is on another disk.
seed_target() {
    local from way
    from=$(target_directory)/debug
    if [ -d "$1" ] || [ ! -d "$from/deps" ]; then return; fi
    mkdir -p "$1/debug"
    for way in -Rlp -Rp; do if (cd "$from" && cp "$way" deps build .fingerprint "$1/debug/" 2>/dev/null); then break; fi; done
    # cargo overwrites its records of this package. Through a link it would overwrite the checkout's own records.
    rm -rf "$1"/debug/.fingerprint/app-* "$1"/debug/build/app-* "$1"/debug/deps/app-* "$1"/debug/deps/libapp-*
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port [PORT]: prints a free port, the given one if it is free.
free_port() {
    local port=${1:-0}
    while [ "$port" -eq 0 ] || ! is_free "$port"; do port=$((20000 + RANDOM % 12000)); done
    printf '%s' "$port"
}

random_password() { LC_ALL=C tr -dc 'a-zA-Z0-9' </dev/urandom | head -c 24 || true; }

# begin DIR: sets $run to DIR, for this script alone, and starts the watchdog.
begin() {
    run=$1
    mkdir -p "$run"
    local other
    other=$(cat "$run/watchdog" 2>/dev/null || true)
    if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
        # The other script may already be stopping.
        local tries=0
        while kill -0 "$other" 2>/dev/null; do
            [ -e "$run/stopping" ] || [ "$tries" -lt 4 ] || die "$0 is already running here, as process $(cat "$run/pid"): stop it first"
            tries=$((tries + 1))
            sleep 0.25
        done
    fi
    rm -f "$run/life" "$run/stopping"
    : >"$run/started"
    mkfifo "$run/life"
    # With -m, background jobs get their own process group, so that Ctrl-C reaches only this script.
    set -m
    watchdog <"$run/life" >/dev/null 2>&1 &
    set +m
    printf '%s' $! >"$run/watchdog"
    printf '%s' $$ >"$run/pid"
    exec 9>"$run/life"
}

watchdog() {
    set +e
    trap '' INT TERM HUP
    cat >/dev/null
    : >"$run/stopping"
    stop_all
    case $run in
        *.throwaway)
            if [ -L "$run/postgres" ]; then rm -rf "$(readlink "$run/postgres")"; fi
            rm -rf "$run"
            ;;
        *) rm -f "$run/watchdog" "$run/pid" "$run/stopping" "$run/life" "$run/started" "$run/stop-order" ;;
    esac
}

# Closes the pipe and waits until the watchdog has stopped everything.
finish() {
    local watching
    watching=$(cat "$run/watchdog")
    exec 9>&-
    while kill -0 "$watching" 2>/dev/null; do sleep 0.1; done
}

# launch SIGNAL COMMAND…: starts a command that SIGNAL stops. Sets $launched to its process id.
launch() {
    set -m
    become "$@" </dev/null &
    set +m
    launched=$!
}

# A process records itself before it closes the pipe. Otherwise it would go unrecorded if this script were killed right after the start.
become() {
    # shellcheck disable=SC2016 # macOS's bash has no BASHPID, so a child prints its parent's id
    printf '%s %s\n' "$1" "$(exec sh -c 'echo "$PPID"')" >>"$run/started"
    shift
    exec 9>&-
    case $(type -t "$1") in function) "$@" ;; *) exec "$@" ;; esac
}

# forget PID: records that a process has ended, because its id may be reused.
forget() { printf 'ended %s\n' "$1" >>"$run/started"; }

# Stops everything that was started. The processes of a formation (TERM) drain together, while the servers still run. Then the
# servers are stopped one by one, the last one first.
stop_all() {
    local signal id
    sed '1!G;h;$!d' "$run/started" | awk '$1 == "ended" { ended[$2]; next } $2 in ended { delete ended[$2]; next } 1' >"$run/stop-order"
    while read -r signal id; do
        [ "$signal" != TERM ] || kill -s TERM "$id" 2>/dev/null || true
    done <"$run/stop-order"
    while read -r signal id; do
        [ "$signal" != TERM ] || wait_for_end "$id"
    done <"$run/stop-order"
    while read -r signal id; do
        case $signal in
            TERM) ;;
            container) docker rm --force --volumes "$id" >/dev/null 2>&1 || true ;;
            *)
                kill -s "$signal" "$id" 2>/dev/null || true
                wait_for_end "$id"
                ;;
        esac
    done <"$run/stop-order"
}

wait_for_end() {
    local tries=0
    while kill -0 "$1" 2>/dev/null; do
        tries=$((tries + 1))
        # Longer than DRAIN_TIMEOUT plus the five seconds that a process may take after it.
        if [ "$tries" -eq 350 ]; then kill -s KILL "$1" 2>/dev/null || true; fi
        # A process that is still listed now has ended, and its parent has not collected its status.
        if [ "$tries" -gt 360 ]; then return; fi
        sleep 0.1
    done
}

# Postgres refuses to run as root.
service_user() {
    if [ "$(id -u)" -ne 0 ]; then id -un; elif id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}
as_service_user() {
    if [ "$(id -u)" -ne 0 ]; then exec "$@"; fi
    local user
    user=$(service_user)
    exec setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups "$@"
}

# start_postgres OPTIONS…: starts a private server with its data in $run. Sets $postgres_url, without the name of a
# database.
start_postgres() {
    local data=$PWD/$run/postgres port password tries=0 auth=scram-sha-256
    # In the unoptimized programs of tests, SCRAM takes 50 ms for each connection.
    case $run in *.throwaway) auth=password ;; esac
    port=$(free_port "$(cat "$run/postgres.port" 2>/dev/null || echo 0)")
    printf '%s' "$port" >"$run/postgres.port"
    [ -s "$run/postgres.password" ] || (umask 077 && random_password >"$run/postgres.password")
    password=$(cat "$run/postgres.password")
    # shellcheck disable=SC2034 # for the script that sources this
    postgres_url=postgres://postgres:$password@127.0.0.1:$port
    if [ "$POSTGRES" = docker ]; then
        local name=postgres-$port
        printf 'container %s\n' "$name" >>"$run/started"
        local keep=(--volume "$name:/var/lib/postgresql/data")
        case $run in *.throwaway) keep=(--tmpfs /var/lib/postgresql/data) ;; esac
        docker run --detach --rm --name "$name" --publish "127.0.0.1:$port:5432" --env "POSTGRES_PASSWORD=$password" --env "POSTGRES_HOST_AUTH_METHOD=$auth" \
            "${keep[@]}" "$(pinned postgres)" postgres "$@" >/dev/null 2>"$run/postgres.log" \
            || die "Postgres did not start in Docker: $(cat "$run/postgres.log")"
    else
        if [ "$(id -u)" -eq 0 ]; then
            # The other user must be able to reach the data, which it cannot below root's home.
            [ -L "$data" ] || mkdir -p "$data"
            if [ ! -L "$data" ] && ! (as_service_user test -x "$data"); then
                rmdir "$data"
                ln -s "$(mktemp -d /var/tmp/postgres.XXXXXX)" "$data"
            fi
            [ ! -L "$data" ] || data=$(readlink "$data")
            chown "$(service_user)" "$data"
        fi
        if ! (as_service_user test -s "$data/PG_VERSION"); then
            local secret
            secret=$(mktemp)
            printf '%s' "$password" >"$secret"
            chown "$(id -u "$(service_user)")" "$secret"
            (as_service_user "$POSTGRES/initdb" --pgdata="$data" --username=postgres --auth="$auth" --encoding=UTF8 --no-locale \
                --pwfile="$secret" >"$run/postgres.log" 2>&1) || die "initdb failed: $(tail -n 5 "$run/postgres.log")"
            rm -f "$secret"
        fi
        # INT is Postgres's fast shutdown. Without a socket file it needs no other folder.
        launch INT as_service_user "$POSTGRES/postgres" -D "$data" -p "$port" -h 127.0.0.1 -k '' "$@" >>"$run/postgres.log" 2>&1
    fi
    until answers_postgres "$port"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 300 ]; then die "Postgres does not answer: $(tail -n 5 "$run/postgres.log")"; fi
        if [ "$POSTGRES" != docker ] && ! kill -0 "$launched" 2>/dev/null; then die "Postgres exited: $(tail -n 5 "$run/postgres.log")"; fi
        sleep 0.1
    done
}

answers_postgres() {
    if [ "$POSTGRES" = docker ]; then
        docker exec "postgres-$1" pg_isready --quiet --host=127.0.0.1 2>/dev/null
    else
        "$POSTGRES/pg_isready" --quiet --host=127.0.0.1 --port="$1"
    fi
}

# start_redis OPTIONS…: starts a private server with its data in $run. Sets $redis_url, without the number of a database.
start_redis() {
    local port tries=0
    port=$(free_port "$(cat "$run/redis.port" 2>/dev/null || echo 0)")
    printf '%s' "$port" >"$run/redis.port"
    # shellcheck disable=SC2034 # for the script that sources this
    redis_url=redis://127.0.0.1:$port
    mkdir -p "$run/redis"
    if [ "$REDIS" = docker ]; then
        local name=redis-$port
        printf 'container %s\n' "$name" >>"$run/started"
        docker run --detach --rm --name "$name" --publish "127.0.0.1:$port:6379" "$(pinned redis)" redis-server "$@" \
            >/dev/null 2>"$run/redis.log" || die "Redis did not start in Docker: $(cat "$run/redis.log")"
    else
        launch INT "$REDIS" --port "$port" --bind 127.0.0.1 --dir "$PWD/$run/redis" "$@" >>"$run/redis.log" 2>&1
    fi
    # Docker opens the port before Redis does, so this waits until Redis answers.
    until (exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'PING\r\n' >&3 && read -r -t 1 answer <&3 && [ "${answer%?}" = +PONG ]) 2>/dev/null; do
        tries=$((tries + 1))
        if [ "$tries" -gt 100 ]; then die "Redis does not answer: $(tail -n 5 "$run/redis.log")"; fi
        sleep 0.1
    done
}

# start_pgbouncer: starts a pooler in transaction mode in front of the started Postgres. Sets $pooler_url.
start_pgbouncer() {
    local port
    port=$(free_port)
    # shellcheck disable=SC2034 # for the script that sources this
    pooler_url=${postgres_url%:*}:$port
    printf '"postgres" "%s"\n' "$(cat "$run/postgres.password")" >"$run/pgbouncer.users"
    printf '%s\n' '[databases]' "* = host=127.0.0.1 port=$(cat "$run/postgres.port")" '[pgbouncer]' 'listen_addr = 127.0.0.1' "listen_port = $port" \
        'unix_socket_dir =' 'auth_type = plain' "auth_file = $PWD/$run/pgbouncer.users" 'pool_mode = transaction' 'max_prepared_statements = 200' \
        'ignore_startup_parameters = extra_float_digits' 'max_client_conn = 1000' >"$run/pgbouncer.ini"
    chown "$(service_user)" "$run/pgbouncer.users" "$run/pgbouncer.ini"
    launch INT as_service_user "$(PATH=$PATH:/usr/sbin command -v pgbouncer)" "$run/pgbouncer.ini" >>"$run/pgbouncer.log" 2>&1
    until ! is_free "$port"; do kill -0 "$launched" 2>/dev/null || die "PgBouncer exited: $(tail -n 5 "$run/pgbouncer.log")"; sleep 0.1; done
}

# start_store PORT: starts an object store with its objects in $run/store. If the port is taken, it uses a free one. Sets $store_url.
# If $STORE names a program of SeaweedFS, starts that instead of examples/s3.rs.
start_store() {
    local program=${STORE_PROGRAM:-} log=$run/store.log
    : >"$log"
    if [ -n "${STORE:-}" ]; then start_seaweedfs; return; fi
    if [ -z "$program" ]; then
        cargo build --locked --quiet --example s3
        program=$(target_directory)/debug/examples/s3
    fi
    launch INT "$program" "$PWD/$run/store" "127.0.0.1:$1" >>"$log" 2>&1
    until grep -q '^keeps objects at' "$log"; do
        kill -0 "$launched" 2>/dev/null || die "the object store exited: $(cat "$log")"
        sleep 0.1
    done
    store_url=$(sed -n 's/^keeps objects at //p' "$log")
}

start_seaweedfs() {
    local port attempt tries log=$run/store.log
    mkdir -p "$run/store"
    # Each of its other servers listens on two ports: the given one and the one 10000 above, which may be taken.
    for attempt in 1 2 3; do
        port=$(free_port)
        launch INT "$STORE" server -dir="$PWD/$run/store" -ip=127.0.0.1 -master.port="$(free_port)" -volume.port="$(free_port)" -filer.port="$(free_port)" \
            -master.volumeSizeLimitMB=64 -s3 -s3.port="$port" -s3.port.iceberg=0 -s3.port.lance=0 -s3.config=deploy/store/identities.json >>"$log" 2>&1
        # shellcheck disable=SC2034 # for the script that sources this
        store_url=http://127.0.0.1:$port
        tries=0
        while kill -0 "$launched" 2>/dev/null && [ "$tries" -lt 300 ]; do
            if curl --silent --output /dev/null --fail "$store_url/healthz"; then return; fi
            tries=$((tries + 1))
            sleep 0.1
        done
        kill "$launched" 2>/dev/null || true
        say "SeaweedFS did not start ($attempt of 3)"
    done
    die "SeaweedFS does not answer: $(tail -n 5 "$log")"
}

# Starts temporary servers for tests and exports their URLs.
start_for_tests() {
    start_postgres -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=500
    start_redis --save '' --databases 1000
    start_store 0
    export SERVER_URL=$postgres_url TEST_REDIS_URL=$redis_url TEST_STORE_URL=$store_url
}

# take_config FILE: replaces the environment by a release's config. The values never appear on a command line.
take_config() {
    local name line
    for name in $(compgen -e); do unset "$name" 2>/dev/null || true; done
    while IFS= read -r line; do export "${line?}"; done <"$1"
    export PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
}
