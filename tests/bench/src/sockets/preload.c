/* socket(2) as in libraries that bind a program to a link with LD_PRELOAD: each IP socket is bound to the link in
 * BIND_INTERFACE, or is not made. The environment is read once, which is the minimum for such a library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int (*next)(int, int, int);
static const char *interface;

__attribute__((constructor)) static void prepare(void) {
    next = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    interface = getenv("BIND_INTERFACE");
}

int socket(int domain, int type, int protocol) {
    int made = next(domain, type, protocol);
    if (made < 0 || !interface || (domain != AF_INET && domain != AF_INET6)) {
        return made;
    }
    if (setsockopt(made, SOL_SOCKET, SO_BINDTODEVICE, interface, strlen(interface)) != 0) {
        int why = errno;
        close(made);
        errno = why;
        return -1;
    }
    return made;
}
