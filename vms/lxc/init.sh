# Process 1 of a container that libvirt starts, after what vms.initramfs.trial_script writes: the payload as its child,
# and a line on how that ended, which libvirt tells nobody. 3 and 4 are pipes to the trial: libvirt's console loses
# what is printed last. 5 is this script.
exec 2>&4 >&4
read -r _ <&3 || exit    # a line, once the network is connected
payload <&3 3<&- 4>&- 5<&- &
child=$!
exec 3<&- 4>&- 5<&-
trap 'kill -TERM "$child"' TERM
await_child
