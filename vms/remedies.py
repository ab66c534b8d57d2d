"""What helps against the errors that libvirt reports, by fragments of their texts (its codes are too coarse)."""

from __future__ import annotations

from typing import Final

_NO_KVM: Final = "isomark doctor says what KVM lacks; the driver qemu needs none"
_MACHINES: Final = "virsh domcapabilities lists the machine types of this QEMU"
_NOT_YOU: Final = "this libvirt is not open to you: be root, or a member of its group (libvirt)"
_ENDED: Final = "libvirtd ended or was restarted; script/bootstrap starts it"

_WORKING: Final = (
    ("permission denied", "isomark doctor says which directory libvirt's user cannot enter"),
    ("no space left", "df -h on libvirt's host shows which file system is full"),
    ("cannot allocate memory", "grant less memory, or free some on the host"),
    ("emulator does not support machine type", _MACHINES),
    ("is not supported by emulator", _MACHINES),
    ("satisfying virtiofsd", "the guests' host lacks virtiofsd: of a package of that name, or qemu-system-common"),
    ("/dev/kvm", _NO_KVM),
    ("does not support virt type 'kvm'", _NO_KVM),
    ("domain type kvm", _NO_KVM),
    ("already exists", "isomark clean removes what dead runs left; a domain without isomark's mark is somebody else's"),
    ("cannot recv data", _ENDED),
    ("end of file while reading", _ENDED),
    ("keepalive timeout", "libvirtd, or the way to its host, hangs; the next trial connects anew"),
    ("client socket is closed", "libvirtd, or the way to its host, is gone; the next trial connects anew"),
    ("memory.memsw", "boot the host with swapaccount=1, without which memory and swap are not limited together"),
    ("libvirt_lxc", "the log in /var/log/libvirt/lxc may say more"),
    ("unable to read from monitor", "the hypervisor ended; its last lines may say why"),
    ("libxenlight failed to create", "a kernel that Xen cannot enter, or too little memory (xl info); its host's log: "
     "/var/log/libvirt/libxl"),
)  # fmt: skip

_CONNECTING: Final = (
    ("host key", "if it is the host that is meant, put its key into known_hosts: log in once with ssh"),
    ("publickey", "ssh refuses the key: keyfile=… and the user of the URI must be ones that the host lets in"),
    ("no worthy mechs", "the login needs a name and a password from libvirt's auth.conf, or authfile=… in the URI"),
    ("certificate", "the certificates in /etc/pki/libvirt, or at pkipath=…, do not fit that host; virt-pki-validate "
     "says why"),
    ("polkit", _NOT_YOU),
    ("system bus", _NOT_YOU),  # polkit again, which cannot even be asked
    ("libvirt-sock': permission denied", _NOT_YOU),
    ("authentication", "the login was refused: virsh -c {uri} list must work without a question (libvirt's auth.conf)"),
    ("no connection driver available", "set ISOMARK_LIBVIRT_URI to one like qemu:///system, ISOMARK_XEN_URI to one "
     "like xen+tcp://HOST/system"),
    ("unable to resolve", "the host's name in {uri} is not known"),
    ("cannot recv data", "virsh -c {uri} list must work without a question: for ssh a key, for tunnels their command"),
    ("transport in url", "transports are unix, ssh, tcp, tls, ext and libssh2, as in qemu+ssh://HOST/system"),
)  # fmt: skip


def hint_for(text: str) -> str:
    """What helps against the libvirt error ``text``; libvirt's log where nothing better is known."""
    known = (hint for fragment, hint in _WORKING if fragment in text.lower())
    return next(known, "the log in /var/log/libvirt/qemu may say more")


def connecting_hint(text: str, address: str, *, remote: bool) -> str:
    """What helps when no connection to libvirt at ``address``, ``remote`` or here, comes about."""
    known = (hint.format(uri=address) for fragment, hint in _CONNECTING if fragment in text.lower())
    if remote:
        return next(known, f"does virsh -c {address} list work? libvirtd must listen there and be let through")
    return next(known, "script/bootstrap, or: virtlogd -d; libvirtd -d")
