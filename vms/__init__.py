"""Virtual servers: kernels, disks and domain XML, and the libvirt driver that starts them."""
