#!/usr/bin/env bash
# Test launch/slurm.sbatch on a real Slurm of one machine, which this sets up and takes down again.
#
#   tests/launch/slurm_cluster.sh [--keep] [--dry-run]
#
#   --keep       keep the packages that it installs, and its folder with all logs and runs
#   --dry-run    print what it would do
#
# For Debian and Ubuntu, as root. Packages slurm-wlm and munge are installed if they are missing, and
# removed in the end if so. All daemons, keys, settings and runs are in a temporary folder; nothing
# in /etc is written by this script, and a Slurm that the machine has is neither used nor touched.
#
# Two tasks train a tiny model undisturbed. Two tasks train it again, get SIGTERM by scancel in the
# middle, leave with 75, are requeued and resume. The two ends must be bit-identical.
set -euo pipefail
cd "$(dirname "$0")/../.."

STEPS=120 # of the run: long enough to be met in the middle
help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' tests/launch/slurm_cluster.sh; }
fail() {
  printf 'slurm_cluster.sh: %s\n' "$*" >&2
  exit 2
}
say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }

keep='' dry_run=''
while (($#)); do
  case $1 in
    --keep) keep=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) help && exit 0 ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done
packages=()
for package in slurm-wlm munge; do
  dpkg -s "$package" >/dev/null 2>&1 || packages+=("$package")
done
if [[ -n $dry_run ]]; then
  ((${#packages[@]} == 0)) || echo "apt-get install --no-install-recommends ${packages[*]}"
  echo "munged, slurmctld, slurmd with settings in a temporary folder"
  bash launch/slurm.sbatch --dry-run train --steps "$STEPS" --workdir "FOLDER/undisturbed"
  bash launch/slurm.sbatch --dry-run train --steps "$STEPS" --workdir "FOLDER/preempted"
  echo "scancel --signal=TERM JOB, in the middle of the second"
  [[ -n $keep ]] || ((${#packages[@]} == 0)) || echo "apt-get purge, of what was installed here"
  exit 0
fi
((EUID == 0)) || fail "this sets up a Slurm of its own, for which it must be root"
program=${CLIP_JAX:-$PWD/.venv/bin/clip-jax}
[[ -x $program ]] || fail "$program is missing: make test installs it, or name one in CLIP_JAX"
host=$(hostname -s)
getent hosts "$host" >/dev/null || fail "the name of this machine, $host, has no address: add it to /etc/hosts"

folder=$(mktemp -d /tmp/clip_jax_slurm.XXXXXX)
chmod 755 "$folder" # Slurm and munge look at who may write above their files
started=()          # the daemons that were started here, by their numbers
installed=()        # the packages
jobs=()             # and those of its Slurm
clean_up() {
  local code=$? pid
  trap - EXIT
  for job in ${jobs[@]+"${jobs[@]}"}; do scancel "$job" 2>/dev/null || true; done
  for _ in {1..100}; do # a daemon that ends before its jobs leaves them behind
    [[ ${#jobs[@]} -gt 0 && -n $(squeue --noheader 2>/dev/null) ]] || break
    sleep 0.2
  done
  for ((index = ${#started[@]} - 1; index >= 0; index--)); do
    pid=${started[$index]}
    kill "$pid" 2>/dev/null || true
    for _ in {1..50}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
    if kill -0 "$pid" 2>/dev/null; then kill -KILL "$pid"; fi
  done
  if [[ -n $keep ]] || ((code)); then
    say "logs and runs are in $folder"
  else
    rm -r "$folder"
  fi
  if ((${#installed[@]})) && [[ -z $keep ]]; then
    say "removing the ${#installed[@]} packages that were installed"
    DEBIAN_FRONTEND=noninteractive apt-get purge -yq "${installed[@]}" >/dev/null 2>&1
  fi
  exit "$code"
}
trap clean_up EXIT

if ((${#packages[@]})); then
  say "installing ${packages[*]}"
  dpkg-query -W -f '${Package}\n' | sort >"$folder/before"
  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${packages[@]}" >"$folder/apt.log" 2>&1 ||
    fail "apt-get could not install ${packages[*]}: $(tail -n 1 "$folder/apt.log")"
  dpkg-query -W -f '${Package}\n' | sort >"$folder/after"
  mapfile -t installed < <(comm -13 "$folder/before" "$folder/after")
fi

# ------------------------------------------------------------------------------- the cluster

mkdir "$folder/munge" "$folder/state" "$folder/spool"
chmod 700 "$folder/munge"
(umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
mkdir -m 755 "$folder/socket"
port=$((20000 + RANDOM % 10000))
cat >"$folder/slurm.conf" <<END
ClusterName=clip-jax-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for as long as a credential lives, 120 s by default.
AuthInfo=socket=$folder/socket/munge,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:8 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=60 State=UP
END
mkdir "$folder/gpus" && touch "$folder"/gpus/{0..7} # eight that nobody has
echo "NodeName=$host Name=gpu File=$folder/gpus/[0-7]" >"$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf

start() { # NAME COMMAND...: a daemon, in the foreground of a background job
  local name=$1
  shift
  "$@" >>"$folder/$name.out" 2>&1 &
  started+=($!)
  sleep 1
  kill -0 $! 2>/dev/null || fail "$name has ended at once: $(tail -n 3 "$folder/$name.out")"
}
start munged munged --foreground --force --socket "$folder/socket/munge" \
  --key-file "$folder/munge/key" --pid-file "$folder/munge/pid" \
  --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
start slurmctld slurmctld -D -f "$SLURM_CONF"
start slurmd slurmd -D -f "$SLURM_CONF" -N "$host"
for _ in {1..60}; do
  [[ $(sinfo --noheader --format=%t 2>/dev/null) == idle ]] && break
  sleep 0.5
done
[[ $(sinfo --noheader --format=%t) == idle ]] || fail "the node does not come up: $(sinfo --noheader)"
say "$(sinfo --version) is up: $(sinfo --noheader --format='%D node, %c cores, %G')"

# ---------------------------------------------------------------------------------- the runs

export CLIP_JAX=$program JAX_PLATFORMS=cpu XDG_CACHE_HOME=$folder/cache
"$(dirname "$program")/python" -m clip_jax.cli data --help >/dev/null # compiled once
submit() { # NAME: prints the number of the job
  sbatch --parsable --ntasks=2 --ntasks-per-node=2 --chdir="$folder" --output="$folder/$1.log" \
    "$PWD/launch/slurm.sbatch" train --workdir "$folder/$1" --steps "$STEPS" \
    --model.name ViT-test --model.dtype float32 --data.source shapes:tiny \
    --data.data-dir "$folder/data" --data.batch-size 256 --data.threads 1 \
    --tokenizer.vocab-size 300 --optimizer.warmup-steps 2 --evaluation.batch-size 32 \
    --checkpoint.every-steps 50 --logging.every-steps 1 --logging.no-progress \
    --logging.loggers jsonl --logging.no-report
}
field() { scontrol show job "$1" | grep -o "$2=[^ ]*" | head -n 1 | cut -d= -f2; }
last_step() { tail -n 1 "$folder/$1/metrics.jsonl" 2>/dev/null | grep -o '"step": [0-9]*' | grep -o '[0-9]*$' || echo 0; }
until_done() { # JOB NAME
  for _ in {1..1200}; do
    case $(field "$1" JobState) in
      COMPLETED) return ;;
      FAILED | CANCELLED | NODE_FAIL | TIMEOUT | OUT_OF_MEMORY)
        fail "job $1 is $(field "$1" JobState): $(tail -n 5 "$folder/$2.log")"
        ;;
    esac
    sleep 0.5
  done
  fail "job $1 is still $(field "$1" JobState): $(tail -n 5 "$folder/$2.log")"
}

job=$(submit undisturbed)
jobs+=("$job")
until_done "$job" undisturbed
say "job $job, undisturbed: $(field "$job" JobState), step $(last_step undisturbed), Restarts=$(field "$job" Restarts)"

job=$(submit preempted)
jobs+=("$job")
for _ in {1..2400}; do
  (($(last_step preempted) >= STEPS / 4)) && break
  sleep 0.1
done
scancel --signal=TERM "$job"
say "job $job: SIGTERM by scancel at step $(last_step preempted)"
for _ in {1..600}; do
  grep -q 'exit code 75: requeueing' "$folder/preempted.log" && break
  sleep 0.1
done
say "job $job: $(grep -o 'exit code 75: requeueing.*' "$folder/preempted.log" || fail 'it does not leave with 75')"
until_done "$job" preempted
say "job $job: $(grep -o 'Preempted (SIGTERM): .*' "$folder/preempted.log" | head -n 1); $(grep -o 'Resuming from step [0-9]*' "$folder/preempted.log" | head -n 1)"
say "job $job, preempted: $(field "$job" JobState), step $(last_step preempted), Restarts=$(field "$job" Restarts)"
# More than one where the machine stood still for so long that JAX took the tasks for dead.
(($(field "$job" Restarts) >= 1)) || fail "the job was not requeued"

"$(dirname "$program")/python" tests/launch/same_bits.py "$folder/undisturbed" "$folder/preempted" "$STEPS" \
  2>"$folder/same_bits.err" || fail "they are not the same: $(tail -n 1 "$folder/same_bits.err")"
say "passed"
