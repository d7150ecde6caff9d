#!/usr/bin/env bash
# A Slurm of one node on loopback, all of it below a folder; needs slurm-wlm and munge, and root.
#   setup.sh FOLDER        starts it; clients find it by SLURM_CONF=FOLDER/slurm.conf
#   setup.sh FOLDER stop   ends it
set -euo pipefail
folder=$1
if [ "${2:-}" = stop ]; then
    for name in slurmctld slurmd munged; do
        [ ! -s "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" || true
    done
    exit 0
fi
export PATH=$PATH:/usr/sbin
mkdir -p "$folder"/{state,spool}
chmod 755 "$folder"
head -c 128 /dev/urandom > "$folder/munge.key"
chmod 600 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
host=$(hostname -s)
read -r control node < <(python3 -c "
import socket
taken = [socket.socket() for _ in range(2)]
[each.bind(('127.0.0.1', 0)) for each in taken]
print(*(each.getsockname()[1] for each in taken))")
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control
SlurmdPort=$node
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
JobRequeue=1
KillWait=60
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=one Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
    if sinfo -h -o %t 2> /dev/null | grep -q idle; then exit 0; fi
    sleep 0.5
done
tail -n 20 "$folder"/*.log >&2
exit 1
