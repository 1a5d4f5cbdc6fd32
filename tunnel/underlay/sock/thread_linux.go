package sock

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LockBatchThread binds the calling goroutine, for the rest of
// its life, to a thread of the policy SCHED_BATCH (sched(7)): woken, it does not
// take the processor from a thread that is at work. So while processors are
// busy it finds more waiting at a time and costs less for each datagram; while
// they are not, it runs at once all the same. It reports whether the kernel, or
// a sandbox, let it.
func LockBatchThread() error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	var param struct{ priority int32 }
	if _, _, e := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_BATCH, uintptr(unsafe.Pointer(&param))); e != 0 {
		return e
	}
	return nil
}
