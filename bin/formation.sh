# The processes of a formation, for a script that sources this: how many of each type, started, kept up and drained together
# as a platform does it. Needs services.sh, and the programs on the PATH.
# shellcheck shell=bash disable=SC2153,SC2154 # PORT, run and launched are set elsewhere

# The types of the Procfile in its order, but for the one-off that prepares a release.
procfile=${procfile:-Procfile}
types=$(sed -n 's/^\([a-z_]*\):.*/\1/p' "$procfile" | grep -v '^release$')
command_of() { sed -n "s/^$1: *//p" "$procfile"; }

# form TYPE=COUNT…: sets the formation, one of each type unless told otherwise, and looks whether there is room for it.
formation=()
form() {
    local word n
    for word in "$@"; do
        if ! grep -qx -- "${word%%=*}" <<<"$types" || ! [[ $word =~ ^[a-z_]+=(0|[1-9][0-9]?)$ ]]; then
            die "usage: $0${version:+ $version} [TYPE=COUNT …], where TYPE is one of: $(tr '\n' ' ' <<<"$types")"
        fi
        formation+=("$word")
    done
    if ! [[ $PORT =~ ^[1-9][0-9]{0,4}$ ]] || [ "$PORT" -gt 65000 ]; then die "PORT must be a number from 1 to 65000, so that there is room for more than one web"; fi
    for ((n = 0; n < $(count_of web); n++)); do
        is_free $((PORT + n)) || die "port $((PORT + n)) is taken: stop what listens there, or choose another with PORT="
    done
}
count_of() {
    local word count=1
    for word in ${formation+"${formation[@]}"}; do
        [ "${word%%=*}" = "$1" ] && count=${word#*=}
    done
    printf '%s' "$count"
}

# prefix NAME [FILE]: prefixes each line with the name of its process, and adds it to a file as it was.
# It ends with its input and not before, or last words would be lost.
prefix() {
    trap '' INT TERM HUP
    exec 9>&-
    local line
    while IFS= read -r line; do
        printf '%s | %s\n' "$1" "$line"
        [ "$#" -lt 2 ] || printf '%s\n' "$line" >>"$2"
    done
}

# What runs: names, commands, process ids, and when each was started.
names=() commands=() pids=() births=()
start() {
    local port=$((PORT + ${names[$1]##*.} - 1)) metrics=
    [ -z "${METRICS_PORT:-}" ] || metrics=$((METRICS_PORT + $1))
    launch TERM env PORT="$port" METRICS_PORT="$metrics" sh -c "exec ${commands[$1]}" > >(prefix "${names[$1]}") 2>&1
    pids[$1]=$launched
    births[$1]=$SECONDS
}

# run_formation: starts every process, the first web on PORT, the next on the next, and keeps them up until a signal.
run_formation() {
    local type n i signal id status failures=0
    for type in $types; do
        for ((n = 0; n < $(count_of "$type"); n++)); do
            names+=("$type.$((n + 1))")
            commands+=("$(command_of "$type")")
        done
    done
    for i in "${!names[@]}"; do start "$i"; done
    [ "$(count_of web)" -eq 0 ] || say "web serves at http://localhost:$PORT"
    # As a platform would: what ends is started again, unless it cannot run at all.
    while sleep 0.2; do
        while read -r signal id; do
            if [ "$signal" = INT ] && ! kill -0 "$id" 2>/dev/null; then die "a service that was started here has ended; see $run/*.log"; fi
        done <"$run/started"
        for i in "${!names[@]}"; do
            kill -0 "${pids[$i]}" 2>/dev/null && continue
            status=0
            wait "${pids[$i]}" || status=$?
            forget "${pids[$i]}"
            if [ $((SECONDS - births[i])) -lt 3 ]; then failures=$((failures + 1)); else failures=0; fi
            if [ "$status" -eq 78 ] || [ "$failures" -ge 3 ]; then die "${names[$i]} cannot run (exit $status)"; fi
            say "${names[$i]} ended (exit $status) and is started again"
            start "$i"
        done
    done
}

# Stops all that was started when the script ends, whatever ends it: the processes drain, then the services stop.
ended() {
    local status=$?
    trap '' INT TERM HUP
    say "stopping"
    finish
    exit "$status"
}
