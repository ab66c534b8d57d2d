#!/bin/sh
# Makes a server of a workload's tree and writes it as ext4 into a partition of a disk.
#
#   server.sh TREE KERNEL MODULES VERSION GUEST EPOCH PACKAGES MKE2FS... <GRUB.CFG
#
# Run by vms/full/server.py in mount and process namespaces of its own, in an empty directory that becomes a tmpfs:
# whatever ends it takes the mounts, and with them all files, along. The tree is an overlay's lower layer and is not
# written to. The packages come from the host's apt, with the lists that it has, and only from Debian bookworm.
set -eu
tree=$1 kernel=$2 modules=$3 version=$4 guest=$5 epoch=$6 packages=$7
shift 7
work=$PWD
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH="$epoch"
umask 022

mount -t tmpfs -o mode=755 tmpfs "$work"
cd "$work"
mkdir lower upper scratch root
mount --bind "$tree" lower
# relative names: the path of the state directory may hold a comma
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=scratch,index=off,metacopy=off root
root=$work/root
mount -t proc proc root/proc

# What the workload's packages would start at boot, no container starts either.
rm -rf root/etc/systemd/system/*.wants

cat >preferences <<'END'
Package: *
Pin: release o=Debian,n=/^bookworm(-updates|-security)?$/
Pin-Priority: 500

Package: *
Pin: release o=*
Pin-Priority: -1
END
# the host's hooks and its debconf are about the host
cat >apt.conf <<END
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear APT::Update;
Dir::Etc::Preferences "$work/preferences";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Status "$root/var/lib/dpkg/status";
Dir::State::extended_states "$work/extended_states";
Dir::Cache::Archives "$root/var/cache/apt/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "$work";
DPkg::Chroot-Directory "$root";
DPkg::Use-Pty "false";
DPkg::Options:: "--force-unsafe-io";
DPkg::Options:: "--force-confold";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Retries "3";
END
mkdir -p root/var/cache/apt/archives/partial
printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d
chmod 755 root/usr/sbin/policy-rc.d
# shellcheck disable=SC2086 # a list
apt-get -q -y -c apt.conf install $packages >&2 </dev/null
rm root/usr/sbin/policy-rc.d

cp -r "$guest/." root/
find "$guest" -type f -printf '%P\0' | (cd root && xargs -0 chmod 644)
chmod 755 root/usr/lib/systemd/system-generators/isomark
mkdir -p root/boot/grub
cat >root/boot/grub/grub.cfg
cp "${kernel%/*}"/*"-$version" root/boot/ # with its configuration
mkdir -p root/usr/lib/modules
cp -r "$modules" "root/usr/lib/modules/$version"
depmod -b root "$version"
chroot root update-initramfs -c -k "$version" >&2
chroot root systemctl -q enable systemd-networkd.service systemd-networkd-wait-online.service \
    isomark-trial.service isomark-hostkey.service isomark-workload.service isomark-mark@sysinit.target.service \
    isomark-mark@basic.target.service isomark-mark@network-online.target.service isomark-mark@multi-user.target.service
chroot root systemctl -q disable e2scrub_reap.service e2scrub_all.timer # for volumes of LVM, which it has none of
chroot root systemctl -q mask serial-getty@ttyS0.service

# No two servers share an identity, and nothing is left that differs from one making to the next.
rm -f root/etc/ssh/ssh_host_*_key root/etc/ssh/ssh_host_*_key.pub root/var/lib/systemd/random-seed
rm -rf root/var/cache/apt/archives root/var/cache/debconf/*-old root/var/lib/dpkg/*-old root/var/cache/ldconfig
rm -f root/etc/passwd- root/etc/group- root/etc/shadow- root/etc/gshadow-
find root/var/log -xdev -type f -delete
find root/tmp root/run -xdev -mindepth 1 -delete
: >root/etc/machine-id
ln -sf /etc/machine-id root/var/lib/dbus/machine-id
sed -i 's/^\([^:]*:[^:]*\):[0-9]*:/\1:19518:/' root/etc/shadow # the day of each password: that of EPOCH
umount root/proc
# a server that has booted before: systemd rebuilds no caches
for updated in etc var; do printf 'TIMESTAMP_NSEC=%s000000000\n' "$epoch" >"root/$updated/.updated"; done
find root -xdev -newermt "@$epoch" -exec touch -h -d "@$epoch" {} +

exec "$@"
