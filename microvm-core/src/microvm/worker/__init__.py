"""A machine in a process of its own (`isolation="process"`).

The caller's process keeps the handle, the provisioners and the guest's streams; the worker has
the platform's machine and the devices. Between them is one AF_UNIX stream socket, and on it
frames of JSON (`frames`), some of which carry a descriptor. No payload goes that way: a stream
into the guest is a socket, and it is handed over itself.

    caller's process                              worker process (`__main__`)
      Machine                                       Guardian: dies with the caller
        WorkerPlatform ── spawns ──────────────────►  plan -> platform, devices (`_assembly`)
        WorkerMachine ──── Wire ═══ socket ═══ Wire ── Service ── RunningMachine
        WorkerChannels ─┘                                      └─ GuestChannels
        trio.SocketStream ════════════ the very socket ═══════════ the device's other end

What is said, in frames that are objects:

    caller                                          worker
    {plan: ...}                     first of all    (no answer)
    {do: start, id}                                 {id, ok: {marks}} or {id, error}
    {do: pause | resume | press | kill | snapshot, id}  {id, ok} or {id, error}
    {do: connect, id, port}                         {id, ok, fd} or {id, error}
    {do: console, id}                               {id, ok, fd} or {id, error}
    {do: cancel, id}                                (the answer, if it is under way already)
    {do: listen, listener, port}                    {event: accepted, listener, fd}, as often as
    {do: more, listener}                               `more` allows, or
    {do: unlisten, listener}                        {event: listener_failed, listener, error}
                                                    {event: outcome, outcome, snapshot}
                                                    {event: log, level, logger, text}

The caller ends a worker by closing its direction of the socket; the worker then leaves its
contexts and exits. A worker is believed less than the caller: a guest that got out of its machine
is the worker. Whatever comes from it is bounded and checked (`frames`, `values`), and what breaks
the rules ends it.

Nothing here but the two tasks' sides (`machine`, `service`) imports trio before it is needed: both
processes import theirs while the platform's own comes up.
"""
