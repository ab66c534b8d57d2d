"""A real Xen to test against: an emulated machine with Xen, a Debian dom0 and libvirt's Xen driver.

It is a test lab and no part of isomark: figures from emulation inside emulation say nothing about Xen.

    packages.py    which Debian packages, in which versions; fetching the kernel
    tree.py        dom0's files, from packages and from files/
    boot.py        what the machine boots: Xen, dom0's kernel, its first program and modules
    machine.py     the outer machine: QEMU's command and process
    monitor.py     talking to QEMU
    recipe.py      the key under which a built lab is kept
    build.py       all that once: make the disk, boot, freeze
    lab.py         a running lab, thawed in seconds: what tests use
    guests.py      the smallest guests of the three types
    keeper.py      a lab that outlives the command that asked for it: `script/xen-lab`
"""
