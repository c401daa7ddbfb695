"""An example device for microvm: a virtio entropy device with a seed."""
