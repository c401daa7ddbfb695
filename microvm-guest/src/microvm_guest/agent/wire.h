/* The protocol's numbers: docs/reference/agent-protocol.md describes them.
 *
 * microvm_guest/protocol/ holds the host's copy; a test reads this file and compares.
 * All integers are little endian. */

#ifndef MICROVM_WIRE_H
#define MICROVM_WIRE_H

#define WIRE_MAJOR 1
#define WIRE_MINOR 2
#define WIRE_MAGIC "mvmagent"
#define WIRE_MAGIC_BYTES 8

#define WIRE_GUEST_PORT 1025 /* the agent listens here */
#define WIRE_HOST_PORT 1024  /* and dials this one when it is ready */

#define WIRE_FORWARD_PORT 1026 /* the agent takes forwards here */

/* u8 request, u8 family, u16 address length, u16 port, u16 zero, u32 the host's port; the address */
#define WIRE_FORWARD_BYTES 12
#define WIRE_MAX_ADDRESS 107 /* bytes of a path that a socket can have */
/* u32 the guest's errno or 0, u32 the port that LISTEN chose */
#define WIRE_FORWARD_REPLY_BYTES 8
#define WIRE_MAX_FORWARDS 1024
#define WIRE_DATAGRAM_BYTES 2 /* u16 length, before each datagram */

/* u32 payload length, u8 type, u8 flags, u16 zero, u32 stream */
#define WIRE_HEADER_BYTES 12
#define WIRE_MAX_PAYLOAD 65536
#define WIRE_MAX_ERROR_TEXT 512

#define WIRE_STDIN_WINDOW 131072 /* what a command's stdin may be ahead of the command */
#define WIRE_MAX_WINDOW 16777216 /* what the host may allow one output to be ahead of it */
#define WIRE_MAX_COMMANDS 1000
#define WIRE_MAX_CONNECTIONS 16

#define WIRE_MAX_JOBS 32          /* detached commands, those that have ended too */
#define WIRE_MAX_ATTACHMENTS 256
#define WIRE_LOG_BYTES 262144     /* of what a job prints, the last that is kept */
#define WIRE_MAX_LOG_BYTES 16777216
#define WIRE_JOB_BYTES 48         /* what a JOB field begins with; the argument vector follows */
#define WIRE_MAX_JOB_TEXT 512

/* records of files: u32 payload length, u8 kind, three zero bytes */
#define WIRE_RECORD_BYTES 8
#define WIRE_MAX_RECORD 65536
#define WIRE_MAX_DEPTH 128 /* directories within directories, in what is sent or taken as one */
#define WIRE_MAX_NAME 255

enum frame_type {
    FRAME_HELLO = 0x01,
    FRAME_PING = 0x02,
    FRAME_PONG = 0x03,
    FRAME_STATUS = 0x04,
    FRAME_SET_CLOCK = 0x05,
    FRAME_SHUTDOWN = 0x06,
    FRAME_ERROR = 0x07,
    FRAME_JOBS = 0x08,
    FRAME_NOTICE = 0x09,
    FRAME_RUN = 0x10,
    FRAME_STARTED = 0x11,
    FRAME_STDIN = 0x12,
    FRAME_STDOUT = 0x13,
    FRAME_STDERR = 0x14,
    FRAME_WINDOW = 0x15,
    FRAME_EXIT = 0x16,
    FRAME_KILL = 0x17,
    FRAME_RESIZE = 0x18,
    FRAME_CLOSE = 0x19,
    FRAME_ATTACH = 0x1a,
    FRAME_SKIPPED = 0x1b,
};

enum frame_flag {
    FLAG_EOF = 0x01,       /* STDIN, STDOUT, STDERR: the last of its direction */
    FLAG_CLOSED = 0x01,    /* WINDOW from the agent: nobody reads stdin any more */
    FLAG_POWER_OFF = 0x01, /* SHUTDOWN: cut the power rather than reset */
    FLAG_FORGET = 0x01,    /* ATTACH, CLOSE of an attachment: end the job and forget it */
};

enum field_tag {
    FIELD_ARG = 1,
    FIELD_ENV = 2,
    FIELD_CWD = 3,
    FIELD_USER = 4,
    FIELD_TTY = 5,
    FIELD_WINDOW = 6,
    FIELD_RUN_FLAGS = 7,
    FIELD_WALL_TIME = 8,
    FIELD_LOG_BYTES = 9,
    FIELD_JOB = 10,
    FIELD_LOG_FROM = 11,
    FIELD_BUILD = 16,
    FIELD_KERNEL = 17,
    FIELD_BOOT_NS = 18,
    FIELD_STDIN_WINDOW = 19,
    FIELD_MAX_COMMANDS = 20,
    FIELD_UPTIME_MS = 32,
    FIELD_MEM_TOTAL_KIB = 33,
    FIELD_MEM_AVAILABLE_KIB = 34,
    FIELD_COMMANDS = 35,
    FIELD_CONNECTIONS = 36,
    FIELD_PID = 37,
    FIELD_LOAD_1 = 38,
    FIELD_LOAD_5 = 39,
    FIELD_LOAD_15 = 40,
    FIELD_JOBS = 41,
    FIELD_PAUSES = 42,
};

enum run_flag {
    RUN_MERGE = 0x01,    /* stderr goes where stdout goes */
    RUN_NO_STDIN = 0x02, /* stdin is /dev/null */
    RUN_KEEP = 0x04,     /* the command outlives the connection */
    RUN_FILES = 0x08,    /* not a program: the agent's own way with files */
    RUN_DETACH = 0x10,   /* a job: a command without a stream, its output in a log */
};

enum channel {
    CHANNEL_STDIN = 0,
    CHANNEL_STDOUT = 1,
    CHANNEL_STDERR = 2,
};

enum error_code {
    ERROR_PROTOCOL = 1,  /* stream 0: the connection ends */
    ERROR_BUSY = 2,      /* too many commands or connections, or the guest is going down */
    ERROR_RESOURCES = 3, /* the guest is out of processes, memory or descriptors */
    ERROR_NOT_FOUND = 4, /* no such program */
    ERROR_EXEC = 5,      /* a program that can't be executed */
    ERROR_CWD = 6,
    ERROR_USER = 7,
    ERROR_TTY = 8,
    ERROR_JOB = 9, /* no such job */
};

enum notice {
    NOTICE_PAUSING = 1, /* the virtual CPUs will stand still */
    NOTICE_RESUMED = 2, /* they do no longer, or the host has slept */
    NOTICE_CLOCK_SET_BACK = 3, /* of the host's wall clock; since minor version 2 */
};

enum record_kind {
    RECORD_FILE = 1,      /* u32 mode, u64 time in ns, name; DATA and one END follow */
    RECORD_DIRECTORY = 2, /* the same; what is in it and one END follow */
    RECORD_SYMLINK = 3,   /* u32 mode, u64 time in ns, u16 length of name, name, target */
    RECORD_DATA = 4,
    RECORD_END = 5,
    RECORD_SKIPPED = 6, /* name of what is none of these */
    RECORD_INFO = 7,
    RECORD_DONE = 8,  /* all of it has been said, or done */
    RECORD_ERROR = 9, /* u32 errno, path */
};

enum forward_request {
    FORWARD_CONNECT = 1, /* be the stream to that address */
    FORWARD_LISTEN = 2,  /* listen there while this lasts; dial the host's port for each */
    FORWARD_DATAGRAMS = 3, /* carry the datagrams of the program that sends to that UDP port */
};

enum forward_family {
    FORWARD_TCP = 1,
    FORWARD_UNIX = 2,
};

#endif
