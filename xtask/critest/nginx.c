/* Stands for nginx and httpd in critest's images: answers each connection with a page, and is named like nginx' master. */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void leave(int signo)
{
	(void)signo;
	_exit(0);
}

int main(int argc, char **argv)
{
	static char *const renamed[] = { "nginx: master process nginx -g daemon off;", NULL };
	static const char answer[] = "HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: text/html\r\n"
				     "Content-Length: 33\r\nConnection: close\r\n\r\n"
				     "<title>Welcome to nginx!</title>\n";
	const char *port = getenv("PORT");
	struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port ? atoi(port) : 80) };
	int one = 1, listener;

	if (argc > 0 && !strstr(argv[0], "master"))
		execv("/bin/nginx", renamed);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	signal(SIGTERM, leave);
	signal(SIGQUIT, leave);
	listener = socket(AF_INET6, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&at, sizeof(at)) || listen(listener, 64)) {
		perror("cannot listen");
		return 1;
	}
	FILE *pid = fopen("/var/run/nginx.pid", "w");
	if (pid) {
		fprintf(pid, "%d\n", getpid());
		fclose(pid);
	}
	printf("httpd: nginx listens\n");
	fflush(stdout);
	for (;;) {
		char buffer[4096];
		int peer = accept(listener, NULL, NULL);

		if (peer < 0)
			continue;
		if (fork() == 0) {
			if (read(peer, buffer, sizeof(buffer)) > 0 && write(peer, answer, strlen(answer)) > 0)
				shutdown(peer, SHUT_WR);
			while (read(peer, buffer, sizeof(buffer)) > 0)
				;
			_exit(0);
		}
		close(peer);
	}
}
