"""vhost-user, the back end's side: our devices for VMMs of others (`serve_vhost_user`).

* `message`: numbers, layouts and codec;
* `plan`, `session`: what was said, and what follows from it (no IO);
* `signals`, `mapping`, `server`: descriptors, memory, the socket and the tasks.
"""

from microvm.virtio.vhost_user.server import serve_vhost_user

__all__ = ["serve_vhost_user"]
