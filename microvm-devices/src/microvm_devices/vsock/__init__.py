"""virtio-vsock: the channel between host and guest."""
