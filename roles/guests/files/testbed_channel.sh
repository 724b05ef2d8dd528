#!/bin/sh
# Answers the hypervisor's requests on a serial port, the argument: a line `ID COMMAND [ARGUMENT]`, a line of JSON back.
# A shell and not Python waits here, since whatever waits is part of what an idle guest's memory holds; and a serial port
# and not virtio-serial, whose reader returns at once while nobody is connected, so that every idle guest would have to poll.
stty -F "$1" 115200 raw -echo clocal || exit 1
exec 3<>"$1"

answer() { # KEY JSON
  printf '{"id": "%s", "%s": %s}\n' "$id" "$1" "$2" >&3
}

# Set the clock, wait for the boot's end, switch swap off; say what memory there is. The shell does so by itself: a
# restored QEMU translates all code anew, and that of Python and systemctl cost each emulated guest 3 s of CPU.
barrier() { # SECONDS since the epoch, a whole number
  case $1 in
    '' | 0* | *[!0-9]*) answer error '"SECONDS must be the time since the epoch, a whole number"'; return ;;
  esac
  # A restored guest has the time at which it was saved. The clock only goes forward: a request that waited for the
  # guest, or was sent again, has an old time.
  behind=$(($1 - $(date +%s)))
  if [ "$behind" -gt 1 ] && ! date --set="@$1" >/dev/null; then
    answer error '"the clock cannot be set"'
    return
  fi
  # The boot ends once, and what this shell knows is restored with it.
  case $state in
    running | degraded) ;;
    *) state=$(systemctl is-system-running --wait) ;;
  esac
  swapped=false
  { read -r line && read -r line; } </proc/swaps && swapped=true
  if $swapped && ! swapoff --all; then
    answer error '"swap cannot be switched off"'
    return
  fi
  while read -r name available_kib unit && [ "$name" != MemAvailable: ]; do :; done </proc/meminfo
  answer answer "{\"system_state\": \"$state\", \"available_bytes\": $((available_kib * 1024)), \
\"clock_behind_seconds\": $behind, \"swap_was_on\": $swapped}"
}

state=
while read -r id command argument <&3; do
  case $command in
    barrier) barrier "$argument" ;;
    *) testbed-workload request "$id" "$command" ${argument:+"$argument"} >&3 2>/dev/null ;;
  esac
done
