// Package failpoint lets a test kill the hub at a named point, as a power loss
// or the kernel might. It does nothing unless the environment names the point,
// and then only what whoever starts the program can do anyway: it ends itself.
package failpoint

import (
	"os"
	"sync"
	"syscall"
)

// Variable names the point at which the process kills itself. For tests.
const Variable = "CAUSEWAY_FAILPOINT"

var armed = sync.OnceValue(func() string { return os.Getenv(Variable) })

// Hit kills the process by SIGKILL if name is the armed point.
func Hit(name string) {
	if armed() != name || name == "" {
		return
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal ends it
}
