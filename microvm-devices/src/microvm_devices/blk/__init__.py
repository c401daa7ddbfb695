"""virtio-blk: disks of the guest, kept in raw files and block devices of the host.

What is decided from values is pure: `layout` (the standard's numbers), `request` (from chain to
request), `durability` (when a write may be said to be done). What touches the host is behind
`disk.Disk`. Between them, `executor` serves one request, `request_queue` a virtqueue.
"""
