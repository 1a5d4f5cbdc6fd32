// Package socktest helps tests to open sockets in a network of their own.
package socktest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// InNamespace runs the commands ("ip addr add …"), and then f, on a thread in
// a network namespace of its own, whose loopback interface is up. Sockets that
// f opens stay in it. Without root the test is skipped, in CI it fails.
func InNamespace(t testing.TB, f func(), commands ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes a network namespace")
		}
		t.Skip("needs root: makes a network namespace")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(done)      // f may end the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		for _, c := range append([]string{"ip link set lo up"}, commands...) {
			w := strings.Fields(c)
			if out, err := exec.Command(w[0], w[1:]...).CombinedOutput(); err != nil {
				done <- fmt.Errorf("%s: %w: %s", c, err, out)
				return
			}
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if t.Failed() {
		t.FailNow()
	}
}
