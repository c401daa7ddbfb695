/* A guest that means no good.
 *
 *   as process 1           act out /script, then sleep for ever
 *   hostile dial PORT N    begin N connections to the host's PORT, keep those that it takes, print
 *                          how many were taken and how many refused, and end with standard input
 *
 * A script is records of one byte, a u32 count and a u32 length, little endian, and a payload:
 *
 *   P  print the payload on the console, count times
 *   D  connect to the host's port number count
 *   S  send the payload, count times
 *   W  read frames of the agent protocol until one of type number count has come
 *   C  close the connection
 *   R  reset the machine
 *   X  end, which process 1 must not
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* vsock(7). Declared here, since musl-gcc does not see the kernel's <linux/vm_sockets.h>. */
#define VMADDR_CID_HOST 2u
struct sockaddr_vm {
	sa_family_t svm_family;
	unsigned short svm_reserved1;
	unsigned svm_port;
	unsigned svm_cid;
	unsigned char svm_zero[4];
};

#define RECORD_BYTES 9
#define HEADER_BYTES 12 /* of a frame: docs/reference/agent-protocol.md, "Frames" */

static unsigned char script[1 << 20];

static void fail(const char *what)
{
	perror(what);
	for (;;)
		pause();
}

static uint32_t u32(const unsigned char *at)
{
	return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static int dial(unsigned port)
{
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&host, sizeof host) == 0)
		return fd;
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return -1;
}

static void write_all(int fd, const unsigned char *data, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, data, length);
		if (n <= 0)
			fail("write");
		data += n;
		length -= (size_t)n;
	}
}

static void read_all(int fd, unsigned char *data, size_t length)
{
	while (length > 0) {
		ssize_t n = read(fd, data, length);
		if (n <= 0)
			fail("read");
		data += n;
		length -= (size_t)n;
	}
}

static void wait_frame(int fd, unsigned type)
{
	static unsigned char payload[1 << 16];
	unsigned char header[HEADER_BYTES];
	do {
		read_all(fd, header, sizeof header);
		if (u32(header) > sizeof payload)
			fail("frame");
		read_all(fd, payload, u32(header));
	} while (header[4] != type);
}

static void act(void)
{
	int file = open("/script", O_RDONLY), connection = -1;
	ssize_t length = read(file, script, sizeof script);
	if (length <= 0)
		fail("/script");
	for (unsigned char *at = script; at < script + length;) {
		unsigned char *payload = at + RECORD_BYTES;
		uint32_t count = u32(at + 1), size = u32(at + 5);
		switch (*at) {
		case 'P':
			while (count-- > 0)
				write_all(STDOUT_FILENO, payload, size);
			break;
		case 'D':
			if ((connection = dial(count)) < 0)
				fail("connect");
			break;
		case 'S':
			while (count-- > 0)
				write_all(connection, payload, size);
			break;
		case 'W':
			wait_frame(connection, count);
			break;
		case 'C':
			close(connection);
			break;
		case 'R':
			reboot(RB_AUTOBOOT);
			break;
		case 'X':
			_exit(0);
		}
		at = payload + size;
	}
	for (;;)
		pause();
}

static int dial_many(unsigned port, int count)
{
	struct rlimit limit = {.rlim_cur = 65536, .rlim_max = 65536};
	int taken = 0, refused = 0;
	char byte;
	setrlimit(RLIMIT_NOFILE, &limit);
	while (count-- > 0) {
		if (dial(port) >= 0)
			taken++;
		else if (errno == ECONNRESET || errno == ECONNREFUSED)
			refused++;
		else
			perror("connect");
	}
	printf("%d %d\n", taken, refused);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}

int main(int argc, char **argv)
{
	if (getpid() == 1)
		act();
	if (argc == 4 && strcmp(argv[1], "dial") == 0)
		return dial_many((unsigned)atoi(argv[2]), atoi(argv[3]));
	return 2;
}
