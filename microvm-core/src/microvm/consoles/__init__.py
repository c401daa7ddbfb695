"""Where a guest's console leads: out to files, terminals and other programs, and in from them.

    vCPU thread, or a platform's reader          trio thread
      port ──feed──► ConsoleHub ══ ConsoleTap ──► serve_client ══ socket ══ a ConsoleSink,
      port ◄─────── PortInput ◄─────────────────── (a task)                 or a program

The hub keeps the last bytes and gives each reader its own bounded buffer: whoever is slow loses
bytes, which are counted, and nobody ever waits for it. A reader has one end of a socket pair, so
that it may as well be in another process: a machine in a worker has its sink in the caller's.
"""
