# What process 1 of a direct guest (init.sh) and of libvirt's container (lxc/init.sh) do alike, with the payload as $child.

# Wait until it has ended, and say how. A signal ends wait early; wait also reaps whatever was left to process 1.
await_child() {
    while :; do
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    echo "isomark exit $status"
}
