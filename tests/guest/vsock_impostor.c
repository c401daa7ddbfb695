/* Any program of the guest's, in the place of one that the host waits for.
 *
 *   vsock_impostor PORT...   dial each of the host's ports, again and again, until standard input
 *                            ends; where it is let in, ask for name and password as OpenVPN does,
 *                            and print "PORT: " and what comes back. Last, how often it went round.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

#define PAUSE_MS 2
#define ANSWER_WITHIN_MS 1500

static void dial(unsigned port)
{
	static const char question[] = ">PASSWORD:Need 'Auth' username/password\n";
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0)
		exit(1);
	if (connect(fd, (struct sockaddr *)&host, sizeof host) == 0) {
		struct pollfd answer = {.fd = fd, .events = POLLIN};
		char buffer[2000];
		ssize_t n = send(fd, question, strlen(question), MSG_NOSIGNAL);
		printf("%u: ", port);
		while (n >= 0 && poll(&answer, 1, ANSWER_WITHIN_MS) > 0 &&
		       (n = read(fd, buffer, sizeof buffer)) > 0)
			fwrite(buffer, 1, (size_t)n, stdout);
		puts("");
		fflush(stdout);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct pollfd input = {.fd = 0, .events = POLLIN};
	unsigned rounds = 0;
	for (; poll(&input, 1, PAUSE_MS) == 0; rounds++)
		for (int i = 1; i < argc; i++)
			dial((unsigned)strtoul(argv[i], NULL, 10));
	printf("%u rounds\n", rounds);
	return 0;
}
