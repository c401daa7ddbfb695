"""A running machine's door for other programs of its user: one AF_UNIX socket, lines of JSON.

    $XDG_RUNTIME_DIR/microvm/NAME.sock      the directory 0700, the socket 0600

    client                                  machine
    {"do": "info"}                          {"ok": {"name": ..., "state": ..., ...}}
    {"do": "stats"}                         {"ok": {"devices": ..., "exits": ..., ...}}
    {"do": "stop"}                          {"ok": {"reason": ..., "detail": ...}}, when ended
    {"do": "copy-in", "local": PATH, "guest": PATH}
                                            {"ok": {"entries": ..., "bytes": ...}}, when copied
    {"do": "copy-out", "local": PATH, "guest": PATH}
                                            the same
    {"do": "device-command", "device": DEVICE, "name": COMMAND, "arguments": {...}}
                                            {"ok": {...}}: what the device says to it
    {"do": "device-stream", "device": DEVICE, "name": NAME}
                                            {"ok": {}}, with a socket that is the stream
    {"do": "console"}                       {"ok": {}}, and from there on bytes, both ways
    anything else                           {"error": CODE, "message": ..., "remedy": ...}

Requests are answered in order, as many as the client likes on one connection. Who leaves, or says
that no more will come, before a copy is done or a device has answered, gives that up. A line is
bounded and must come within a time; who breaks that is told so and cut off, and nothing else comes
of it. Only our own user, and root, are heard at all.

Flat, one socket a name: a folder for each machine would have to be made and removed, and between
the two another machine could be starting in it.
"""
