#!/usr/bin/env bash
# A Ray cluster of one node on this machine, for trying `--executor ray` out. All of it listens on 127.0.0.1 alone.
#
#   scripts/ray_local.sh start [--cpus N] [--gpus N] [--port P] [--folder DIR]     stop | status [--folder DIR]
#
# CPUs and GPUs are those of the machine by default; more GPUs than there are can be claimed, to see how cells share
# them. DIR (default /tmp/noisebench-ray-UID) holds sockets and logs; Ray wants its path short. `stop` ends the cluster
# of that folder and no other. Ray asks for the token in ~/.ray/auth_token, so that nobody else here can run code as you.
set -euo pipefail

usage() {
    sed -n '4p' "$0" | sed 's/^# */usage: /' >&2
    exit 2
}

command=${1:-}
[[ $# -gt 0 ]] && shift
port=26379 folder=/tmp/noisebench-ray-$(id -u) node=()
while [[ $# -gt 0 ]]; do
    [[ $# -gt 1 ]] || usage
    case $1 in
        --cpus) node+=("--num-cpus=$2") ;;
        --gpus) node+=("--num-gpus=$2") ;;
        --port) port=$2 ;;
        --folder) folder=$2 ;;
        *) usage ;;
    esac
    shift 2
done

# Processes of the session that `start` opened, if its leader's id was not given to another one since.
processes() {
    local session
    session=$(cat "$folder/session" 2>/dev/null) || return 0
    # No pipe to grep -q: it would break the pipe, and pipefail call that a failure.
    [[ $(ps -ww -s "$session" -o args=) != *"$folder/"* ]] || ps -s "$session" -o pid= || true # they may end in between
}

case $command in
    start)
        command -v ray >/dev/null || { echo "ray is not installed: pip install 'noisebench[ray]'" >&2; exit 1; }
        if [[ -n $(processes) ]]; then
            echo "a cluster of $folder runs already: scripts/ray_local.sh stop" >&2
            exit 1
        fi
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "port $port is taken: give another one by --port" >&2
            exit 1
        fi
        mkdir -p -m 700 "$folder"
        [[ -O $folder ]] || { echo "$folder is somebody else's: give another one by --folder" >&2; exit 1; }
        # The server for ray:// is there with ray[client] only, and has a port of its own.
        if "$(dirname "$(command -v ray)")/python" -c 'from grpc import StatusCode' 2>/dev/null; then
            node+=("--ray-client-server-port=$((port + 1))")
        fi
        # Without the first, Ray puts a node that is told 127.0.0.1 at the machine's outer address, open to all.
        export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_USAGE_STATS_ENABLED=0
        export RAY_AUTH_MODE=token
        # Ray would make it for all to read. It fails where it is there, or where Ray is too old to know any.
        (umask 077 && ray get-auth-token --generate >/dev/null 2>&1) || true
        # shellcheck disable=SC2016
        if ! setsid --wait bash -c 'echo $$ >"$1/session"; shift; exec "$@"' _ "$folder" \
            ray start --head --node-ip-address=127.0.0.1 --port="$port" --temp-dir="$folder" \
            --include-dashboard=false --dashboard-host=127.0.0.1 --include-log-monitor=false \
            --object-store-memory=100000000 "${node[@]}" </dev/null >"$folder/start.log" 2>&1; then
            cat "$folder/start.log" >&2
            exit 1
        fi
        echo "Ray runs on 127.0.0.1:$port; logs: $folder/session_latest/logs"
        echo "  noisebench leaderboard --executor ray --set execution.ray.address=127.0.0.1:$port"
        echo "  scripts/ray_local.sh stop"
        ;;
    stop)
        found=$(processes)
        if [[ -z $found ]]; then
            echo "no cluster of $folder runs"
            exit 0
        fi
        # shellcheck disable=SC2086
        kill $found 2>/dev/null || true
        for _ in $(seq 20); do
            [[ -z $(processes) ]] && break
            sleep 0.1
        done
        found=$(processes)
        # shellcheck disable=SC2086
        [[ -z $found ]] || kill -9 $found 2>/dev/null || true
        rm -rf "$folder"
        echo "stopped"
        ;;
    status)
        if [[ -z $(processes) ]]; then
            echo "no cluster of $folder runs"
            exit 1
        fi
        echo "runs on $(cat "$folder/ray_current_cluster"); logs: $folder/session_latest/logs"
        ;;
    *) usage ;;
esac
