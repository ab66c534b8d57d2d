"""What a guest is put together from: looked for before the first is started."""

from __future__ import annotations

from pathlib import Path

from vms import host
from vms.domain import Platform
from vms.full.needs import require_full, require_uefi
from vms.initramfs import find_busybox
from vms.kernel import GuestKernel, find_kernel
from vms.modules import load_order
from vms.options import DomainOptions
from vms.schema import load_schema
from vms.sharing import require_sharing


def require_parts(state: Path, platform: Platform, options: DomainOptions, *, here: bool) -> GuestKernel:
    """Check for all that ``options`` need on this host, and on ``here`` for the hypervisor; return the guest's kernel.

    Raises:
        DriverUnavailable: something is missing; the hint says what would help.
    """
    host.require_programs(() if here else host.EMULATORS)
    if here:
        host.require_usable_kvm(required=platform.domain_type == "kvm")
        require_sharing(options)
    kernel = find_kernel(state)
    if options.guest == "direct":
        load_order(kernel.modules, platform.modules)
        find_busybox()
    elif options.guest == "full":
        require_full()
    if options.firmware == "ovmf":
        require_uefi()
    load_schema()
    return kernel
