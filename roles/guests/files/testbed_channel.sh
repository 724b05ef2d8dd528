#!/bin/sh
# Answers the hypervisor's requests, one JSON object a line, on the second serial port. A shell and not Python waits here,
# since whatever waits is part of what an idle guest's memory holds; and a serial port and not virtio-serial, whose reader
# returns at once while nobody is connected, so that every idle guest would have to poll.
stty -F /dev/ttyS1 115200 raw -echo clocal || exit 1
exec 3<>/dev/ttyS1
while read -r request <&3; do
  /usr/local/sbin/testbed-workload request "$request" >&3 2>/dev/null
done
