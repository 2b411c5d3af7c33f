# Runs a formation, for a script that sources this: starts so many processes of each type, restarts those that end, and drains
# all together, as a platform does. Needs services.sh, and the programs on the PATH.
# shellcheck shell=bash disable=SC2153,SC2154 # PORT, run and launched are set elsewhere

# The types of the Procfile in its order, except `release`, which is a one-off.
procfile=${procfile:-Procfile}
types=$(sed -n 's/^\([a-z_]*\):.*/\1/p' "$procfile" | grep -v '^release$')
command_of() { sed -n "s/^$1: *//p" "$procfile"; }

# form TYPE=COUNT…: sets the formation, by default one process of each type, and checks that its ports are free.
formation=()
form() {
    local word n
    for word in "$@"; do
        if ! grep -qx -- "${word%%=*}" <<<"$types" || ! [[ $word =~ ^[a-z_]+=(0|[1-9][0-9]?)$ ]]; then
            die "usage: $0${version:+ $version} [TYPE=COUNT …], where TYPE is one of: $(tr '\n' ' ' <<<"$types")"
        fi
        formation+=("$word")
    done
    if ! [[ $PORT =~ ^[1-9][0-9]{0,4}$ ]] || [ "$PORT" -gt 65000 ]; then die "PORT must be a number from 1 to 65000; each further web uses the next port"; fi
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

# prefix NAME [FILE]: prefixes each line with the name of its process, and appends the line without the prefix to a file.
# It ignores signals and ends with its input, so that no last lines are lost.
prefix() {
    trap '' INT TERM HUP
    exec 9>&-
    local line
    while IFS= read -r line; do
        printf '%s | %s\n' "$1" "$line"
        [ "$#" -lt 2 ] || printf '%s\n' "$line" >>"$2"
    done
}

# The running processes: names, commands, process ids, and start times.
names=() commands=() pids=() births=()
start() {
    local port=$((PORT + ${names[$1]##*.} - 1)) metrics=
    [ -z "${METRICS_PORT:-}" ] || metrics=$((METRICS_PORT + $1))
    launch TERM env PORT="$port" METRICS_PORT="$metrics" sh -c "exec ${commands[$1]}" > >(prefix "${names[$1]}") 2>&1
    pids[$1]=$launched
    births[$1]=$SECONDS
}

# run_formation: starts every process, the first web on PORT and each further one on the next port. Restarts them until a signal.
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
    # As a platform does: a process that ends is restarted, unless it cannot run at all.
    while sleep 0.2; do
        while read -r signal id; do
            if [ "$signal" = INT ] && ! kill -0 "$id" 2>/dev/null; then die "a server that this script started has exited; see $run/*.log"; fi
        done <"$run/started"
        for i in "${!names[@]}"; do
            kill -0 "${pids[$i]}" 2>/dev/null && continue
            status=0
            wait "${pids[$i]}" || status=$?
            forget "${pids[$i]}"
            if [ $((SECONDS - births[i])) -lt 3 ]; then failures=$((failures + 1)); else failures=0; fi
            if [ "$status" -eq 78 ] || [ "$failures" -ge 3 ]; then die "${names[$i]} cannot run (exit $status)"; fi
            say "${names[$i]} exited with status $status; restarting it"
            start "$i"
        done
    done
}

# Stops everything when the script ends, whatever ends it: the processes drain, then the servers stop.
ended() {
    local status=$?
    trap '' INT TERM HUP
    say "stopping"
    finish
    exit "$status"
}
