#!/bin/sh
# Runs the workload on the console until it ends; its unit powers the server off then.
console=/dev/console
# shellcheck source=/dev/null
. /run/isomark/trial
[ -d /isomark/scratch ] || { mkdir -p /isomark/scratch && chmod 1777 /isomark/scratch; }
stty -F "$console" raw -echo
payload <>"$console" >&0 2>&0 &
child=$!
signalled=
trap 'signalled=yes; kill -TERM "$child"' TERM
wait "$child"
status=$?
# a signal ends wait early; the second tells how the payload ended, unless the first did already
while [ -n "$signalled" ]; do
    signalled=
    wait "$child"
    ended=$?
    [ "$ended" -eq 127 ] || status=$ended
done
echo "isomark exit $status" >"$console"
stty -F "$console" raw -echo # waits until the console has taken the last byte
