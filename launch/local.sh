#!/usr/bin/env bash
# Train on this machine, in one process or in several, and start again what was preempted or killed.
#
#   launch/local.sh [options] -- train --config configs/shapes_tiny.py ...
#
#   --processes N   so many processes on the CPU (default 1, which takes whatever devices there are)
#   --gpus N        so many processes, of one GPU each
#   --restarts N    starts after the first one, at most (default 10); 0: none
#   --port P        where the processes meet (default: a free one)
#   --dry-run       print what would be started, and start nothing
#
# What follows -- goes to clip-jax, or to the program that the variable CLIP_JAX names. Exit code 75
# and an end by a signal lead to another start; 0, 1, 2 and 130 are passed on (docs/faults.md).
# SIGTERM is handed on, so that the run saves and leaves with 75. Ctrl-C, likewise, with 130.
set -euo pipefail

# Once a process has ended badly the others end by themselves in seconds, but for those that still
# wait for it to come at all: they are asked to leave after some seconds, and killed in the end.
ASK_S=15
PATIENCE_S=120

help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"; }
fail() {
  printf 'local.sh: %s (see --help)\n' "$*" >&2
  exit 2
}
log() { printf 'local.sh: %s\n' "$*" >&2; }
whole() { # NAME VALUE LEAST
  [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || fail "$1=$2 must be a whole number"
  (($2 >= $3)) || fail "$1=$2 must be at least $3"
}

processes=1 gpus='' restarts=10 port='' dry_run=''
while (($#)); do
  case $1 in
    --processes | --gpus | --restarts | --port)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --processes) whole "$1" "$2" 1 && processes=$2 ;;
        --gpus) whole "$1" "$2" 1 && processes=$2 gpus=yes ;;
        --restarts) whole "$1" "$2" 0 && restarts=$2 ;;
        --port) whole "$1" "$2" 1 && port=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry_run=yes && shift ;;
    --help | -h) help && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown option $1; what is meant for clip-jax stands after --" ;;
  esac
done
(($#)) || fail "nothing to run: give -- train --config FILE"
arguments=("$@")
program=${CLIP_JAX:-clip-jax}
[[ -n $dry_run ]] || command -v "$program" >/dev/null || fail "$program is not installed: activate its environment"

free_port() {
  local number
  while :; do
    number=$((10000 + RANDOM % 20000))
    # Nobody answers at a free port.
    (exec 3<>"/dev/tcp/127.0.0.1/$number") 2>/dev/null || break
  done
  echo "$number"
}

command_of() { # INDEX PORT: sets `command`
  command=(env)
  if [[ -n $gpus ]]; then
    command+=("CUDA_VISIBLE_DEVICES=$1")
  elif ((processes > 1)); then
    command+=("JAX_PLATFORMS=cpu")
  fi
  command+=("$program" "${arguments[@]}")
  if ((processes > 1)); then
    command+=(--distributed.coordinator "127.0.0.1:$2")
    command+=(--distributed.processes "$processes" --distributed.process-index "$1")
  fi
}

running=() # the processes that this script has started and that have not ended
asked=''   # the signal that asked this script to leave
start_all() {
  local index meeting=${port:-$(free_port)}
  for ((index = 0; index < processes; index++)); do
    command_of "$index" "$meeting"
    "${command[@]}" &
    running+=($!)
  done
}

# A process that was ended by a signal has a code of 128 and more.
wait_for_all() { # sets `code` to that of the first process that ended badly
  local pid ended still since='' told=''
  code=0
  while ((${#running[@]})); do
    still=()
    for pid in "${running[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        still+=("$pid")
        continue
      fi
      ended=0
      wait "$pid" || ended=$?
      if ((ended && !code)); then
        code=$ended since=$SECONDS
      fi
    done
    running=(${still[@]+"${still[@]}"})
    if [[ -n $since && -z $told ]] && ((SECONDS - since > ASK_S)); then
      hand_on TERM
      told=yes
    fi
    if [[ -n $since ]] && ((SECONDS - since > PATIENCE_S)); then
      log "killing ${#running[@]} processes that still run ${PATIENCE_S} s after another has ended"
      hand_on KILL
      since=$SECONDS
    fi
    sleep 0.2
  done
}

hand_on() { # SIGNAL, to what was started here and runs
  local pid
  for pid in ${running[@]+"${running[@]}"}; do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}
on_term() {
  asked=TERM
  hand_on TERM
}
on_interrupt() {
  asked=INT
  # One process tells the others; a second Ctrl-C ends all at once.
  hand_on INT
}

if [[ -n $dry_run ]]; then
  for ((index = 0; index < processes; index++)); do
    command_of "$index" "${port:-PORT}"
    printf '%q ' "${command[@]}"
    printf '&\n'
  done
  exit 0
fi

set -m # each process in a group of its own: a Ctrl-C reaches them once, through this script
trap on_term TERM
trap on_interrupt INT
for ((start = 0; ; start++)); do
  start_all
  [[ $asked != TERM ]] || hand_on TERM # it came while they were being started
  wait_for_all
  if [[ $asked == INT ]] && ((code)); then exit 130; fi
  if ((code == 75 || (code > 128 && code != 130))); then
    [[ -z $asked ]] || exit 75
    if ((start >= restarts)); then
      log "exit code $code, and the last of $restarts restarts is used: --restarts allows more"
      exit 75
    fi
    log "exit code $code: start $((start + 1)) of $restarts after the first"
    until_s=$((SECONDS + (start < 30 ? start + 1 : 30)))
    while ((SECONDS < until_s)) && [[ -z $asked ]]; do sleep 0.2; done
    [[ -z $asked ]] || exit 75
    continue
  fi
  exit "$code"
done
