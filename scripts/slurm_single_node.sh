#!/usr/bin/env bash
# A Slurm cluster of one node, this one, for trying things out: munged, slurmctld and slurmd in a folder of their own,
# listening on loopback only. Needs Debian's slurm-wlm and munge, and root; neither systemd, cgroups nor a database.
#
#   eval "$(scripts/slurm_single_node.sh start)"     starts what does not run, and sets SLURM_CONF, which sbatch, squeue, ... read
#   scripts/slurm_single_node.sh status              what runs and what is queued
#   scripts/slurm_single_node.sh stop                cancels every job and ends it
#
# Usage: slurm_single_node.sh start|stop|status [DIR] [PORT] [CPUS]
#   DIR    configuration, key, state and logs (default: ~/.cache/noisebench-slurm)
#   PORT   of slurmctld; slurmd takes the one above (default: 6817). Each cluster on a machine needs its own two.
#   CPUS   that Slurm gives out (default: those that this process may use)
#
# Partitions: low (the default) and high, whose jobs preempt those of low: they are requeued after a grace of 5 s.
# Exit codes: 2 for a package or permission that is missing, 3 where it could listen on loopback only by force.
set -euo pipefail

action=${1:-}
dir=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/noisebench-slurm}
port=${3:-6817}
cpus=${4:-$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)} # nproc would answer with OpenMP's number

fail() {
    echo "slurm_single_node.sh: ${*:2}" >&2
    exit "$1"
}

running() { # is the process of a pid file there, is it what the file says, and no zombie?
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && grep -q "^Name:.*$1$" "/proc/$pid/status" 2>/dev/null &&
        ! grep -q '^State:.*Z' "/proc/$pid/status"
}

end() {
    running "$1" || return 0
    local pid
    pid=$(cat "$dir/$1.pid")
    kill "$pid"
    for _ in $(seq 100); do
        running "$1" || return 0
        sleep 0.1
    done
    kill -9 "$pid"
}

configure() {
    local gpus memory
    memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.95)}' /proc/meminfo)
    gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
    cat >"$dir/slurm.conf" <<END
ClusterName=noisebench
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=5 State=UP
PartitionName=high Nodes=localhost PriorityTier=2 GraceTime=5 State=UP
END
    : >"$dir/gres.conf"
    [ "$gpus" = 0 ] || echo "NodeName=localhost Name=gpu File=/dev/nvidia[0-$((gpus - 1))]" >"$dir/gres.conf"
    # From 24.05 on slurmd asks for cgroups unless it is told not to; before, it knows no such word.
    if [[ "$(slurmd -V | grep -o '[0-9][0-9]\.[0-9][0-9]' | head -n 1)" > 24.04 ]]; then
        echo "CgroupPlugin=disabled" >"$dir/cgroup.conf"
    fi
}

# Slurm's daemons, and srun too, listen on the address that the machine's name stands for. Where that is no loopback
# address they get a name of their own, "localhost", and their jobs inherit it.
launch() {
    local log="$dir/log/$1.start"
    if getent ahostsv4 "$(uname -n)" | grep '^127\.' >/dev/null; then
        "$@" >"$log" 2>&1 </dev/null
    else
        # shellcheck disable=SC2016
        unshare --uts sh -c 'echo localhost >/proc/sys/kernel/hostname && exec "$@"' _ "$@" >"$log" 2>&1 </dev/null
    fi || fail 1 "$1 does not start: $(tail -n 1 "$log"); see $dir/log"
}

listeners() { # the addresses, as in /proc/net/tcp, that listen on a port
    awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port {print $2}' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null || true
}

start() {
    local missing="" tool
    for tool in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client; do
        command -v "${tool%:*}" >/dev/null || missing="$missing ${tool%:*}"
    done
    [ -z "$missing" ] || fail 2 "not installed:$missing; install them with: apt-get install slurm-wlm munge"
    [ "$(id -u)" = 0 ] || fail 2 "slurmd starts jobs as their user, so it must be started as root"
    if ! getent ahostsv4 "$(uname -n)" | grep '^127\.' >/dev/null && ! unshare --uts true 2>/dev/null; then
        fail 3 "Slurm would listen on the address of $(uname -n), which is no loopback address;" \
            "put a line '127.0.0.1 $(uname -n)' first in /etc/hosts"
    fi
    mkdir -p "$dir/state" "$dir/spool" "$dir/log"
    dir=$(cd "$dir" && pwd)
    [ "${#dir}" -lt 90 ] || fail 1 "$dir: too long a path for a socket"
    chmod 755 "$dir"
    if ! { running munged || running slurmctld || running slurmd; }; then
        [ -z "$(listeners "$port")$(listeners $((port + 1)))" ] || fail 1 "port $port or $((port + 1)) is taken; give another"
        [ -e "$dir/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
        configure
    fi
    export SLURM_CONF=$dir/slurm.conf
    running munged || launch munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed"
    running slurmctld || launch slurmctld
    running slurmd || launch slurmd -N localhost
    local state=""
    for _ in $(seq 150); do
        state=$(sinfo --noheader --nodes=localhost --partition=low --Format=StateLong 2>&1 | tr -d ' ')
        case $state in idle | mixed | allocated | completing) break ;; esac
        sleep 0.2
    done
    case $state in
    idle | mixed | allocated | completing) ;;
    *) stop && fail 1 "the node is not ready: $state; see $dir/log" ;;
    esac
    local found
    found=$(for p in $(sed -n 's/^Slurm\(ctld\|d\)Port=//p' "$dir/slurm.conf"); do listeners "$p"; done)
    if echo "$found" | grep -v '^0100007F:' >/dev/null; then
        stop
        fail 3 "it listened beyond loopback ($(echo $found)) and was stopped"
    fi
    echo "Slurm runs on this machine, with $(sinfo --noheader --partition=low --Format=CPUs | tr -d " ") CPUs; logs in $dir/log" >&2
    echo "export SLURM_CONF='$dir/slurm.conf'"
}

stop() {
    [ -e "$dir/slurm.conf" ] || return 0
    export SLURM_CONF=$dir/slurm.conf
    if running slurmctld && running munged; then
        timeout 5 scancel --quiet --partition=low 2>/dev/null || true
        timeout 5 scancel --quiet --partition=high 2>/dev/null || true
        if running slurmd; then # what it has started ends within KillWait
            for _ in $(seq 100); do
                [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
                sleep 0.1
            done
        fi
    fi
    end slurmd
    end slurmctld
    end munged
}

case $action in
start) start ;;
stop) stop ;;
status)
    export SLURM_CONF=$dir/slurm.conf
    for daemon in munged slurmctld slurmd; do
        running $daemon && echo "$daemon runs (process $(cat "$dir/$daemon.pid"))" || echo "$daemon does not run"
    done
    running slurmctld && sinfo && squeue || exit 1
    ;;
*) fail 2 "usage: $0 start|stop|status [DIR] [PORT] [CPUS]" ;;
esac
