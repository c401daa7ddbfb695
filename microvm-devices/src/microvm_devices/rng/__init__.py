"""virtio-rng: the host's entropy for the guest (virtio 1.2, 5.4 Entropy Device)."""
