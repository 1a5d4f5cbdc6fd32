package clock

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ThisBoot asks the kernel: proc_sys_kernel(5) random/boot_id, and clock_gettime(2)
// CLOCK_BOOTTIME. A boot without an id is another one each time.
func ThisBoot() Boot {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return Boot{}
	}
	return Boot{ID: strings.TrimSpace(string(id)), Since: time.Duration(ts.Nano())}
}
