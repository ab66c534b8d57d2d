#!/bin/busybox sh
# Process 1 of a direct guest: the root disk, the network, then the payload on the console.
# Every applet is a fork of busybox, some milliseconds on an emulated CPU, so there are few of them.
# A virtio console speaks only once its module is loaded; until then this script has no output at all.
echo 'isomark init' || late=yes
. /etc/terminal
end=poweroff    # what Ctrl-Alt-Del asks for is a reboot; whether that ends the domain is for the hypervisor to say

fail() {
    echo "isomark error $1"
    leave
}

# The console's last bytes are still on their way when echo returns; setting the terminal waits for them.
leave() {
    stty -F "$TERMINAL" raw -echo
    exec "$end" -n -f
}

mount -t devtmpfs devtmpfs /dev || fail 'no /dev'
for module in /modules/*.ko; do
    insmod "$module" || fail "cannot load $module"
done
if [ "$late" ]; then
    until [ -c "$TERMINAL" ] && true >"$TERMINAL"; do :; done    # its port comes a moment after its module
    exec <"$TERMINAL" >"$TERMINAL" 2>&1
    echo 'isomark init'
fi
mount -a -T /etc/early || fail 'cannot mount the root disk'
cp -a /links/. /root/dev/ && mount -a -T /etc/late || fail 'cannot prepare /dev'

echo 1 >/root/proc/sys/kernel/printk          # from now on only a panic may print between the payload's lines
echo 0 >/root/proc/sys/kernel/ctrl-alt-del    # Ctrl-Alt-Del, which the hypervisor can press, is SIGINT to process 1
. /trial
. /etc/child
echo "$NAME" >/root/proc/sys/kernel/hostname

ifconfig lo 127.0.0.1
if [ -n "$ADDRESS" ]; then
    ifconfig eth0 "$ADDRESS" netmask "$NETMASK" && route add default gw "$GATEWAY" || fail 'no network'
fi
[ -d /root/isomark/scratch ] || mkdir -p -m 1777 /root/isomark/scratch
stty -F "$TERMINAL" raw -echo

payload <"$TERMINAL" >"$TERMINAL" 2>&1 &
child=$!
trap 'end=reboot; kill -TERM "$child"' INT
await_child
leave
